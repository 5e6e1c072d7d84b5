// The sum of one f32 per thread over the THREADS (a power of two) of a workgroup, which must all call this together.

var<workgroup> sum_scratch: array<f32, THREADS>;

fn workgroup_sum(x: f32, thread: u32) -> f32 {
  workgroupBarrier();
  sum_scratch[thread] = x;
  for (var half = THREADS / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (thread < half) {
      sum_scratch[thread] += sum_scratch[thread + half];
    }
  }
  workgroupBarrier();
  return sum_scratch[0];
}
