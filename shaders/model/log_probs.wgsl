// p[i] = logits[i, targets[i]] - ln(sum_j exp(logits[i, j])): the log-probability that each row gives to a token.
//
// Constant from the pipeline's prelude: THREADS. Bindings: 0 params, 1 logits [m, n] f32, 2 targets, 3 p. Workgroups: m.

struct LogProbParams {
  n: u32,
  row_start: u32,        // row 0 belongs to element row_start of targets and p
}

@group(0) @binding(0) var<uniform> params: LogProbParams;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read_write> p: array<f32>;

var<workgroup> row_max: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let source = workgroup.x * params.n;
  var top = -3.4e38;
  for (var i = thread; i < params.n; i += THREADS) {
    top = max(top, logits[source + i]);
  }
  row_max[thread] = top;
  for (var half = THREADS / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (thread < half) {
      row_max[thread] = max(row_max[thread], row_max[thread + half]);
    }
  }
  workgroupBarrier();
  top = row_max[0];
  var sum = 0.0;
  for (var i = thread; i < params.n; i += THREADS) {
    sum += exp(logits[source + i] - top);
  }
  sum = workgroup_sum(sum, thread);
  if (thread == 0u) {
    let row = params.row_start + workgroup.x;
    p[row] = logits[source + targets[row]] - top - log(sum);
  }
}
