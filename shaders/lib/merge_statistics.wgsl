// Softmax statistics of a workgroup of THREADS threads: each has the maximum m and the sum l of exp2(x - m) of its own
// elements x.

var<workgroup> shared_statistics: array<vec2<f32>, THREADS>;

// (m, l) of the elements of all threads together. Every thread must call this together.
fn merge(thread: u32, own: vec2<f32>) -> vec2<f32> {
  workgroupBarrier();
  shared_statistics[thread] = own;
  workgroupBarrier();
  for (var half = THREADS / 2u; half > 0u; half /= 2u) {
    if (thread < half) {
      let a = shared_statistics[thread];
      let b = shared_statistics[thread + half];
      let m = max(a.x, b.x);
      shared_statistics[thread] = vec2<f32>(m, a.y * exp2(a.x - m) + b.y * exp2(b.x - m));
    }
    workgroupBarrier();
  }
  return workgroupUniformLoad(&shared_statistics[0]);
}
