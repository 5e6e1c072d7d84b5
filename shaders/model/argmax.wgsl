// token[0] = the index of the greatest of n logits, the lowest among equals.
//
// Bindings: 0 params, 1 logits [n] f32, 2 token [1]. Workgroups: 1.

struct ArgmaxParams {
  n: u32,
}

@group(0) @binding(0) var<uniform> params: ArgmaxParams;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> token: array<u32>;

const THREADS: u32 = 256u;

var<workgroup> best_value: array<f32, THREADS>;
var<workgroup> best_index: array<u32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_index) thread: u32) {
  var value = -3.4e38;
  var index = 0xffffffffu;
  for (var i = thread; i < params.n; i += THREADS) {
    if (logits[i] > value) {
      value = logits[i];
      index = i;
    }
  }
  best_value[thread] = value;
  best_index[thread] = index;
  for (var half = THREADS / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (thread < half) {
      let other = best_value[thread + half];
      let better = other > best_value[thread] || (other == best_value[thread] && best_index[thread + half] < best_index[thread]);
      if (better) {
        best_value[thread] = other;
        best_index[thread] = best_index[thread + half];
      }
    }
  }
  if (thread == 0u) {
    token[0] = min(best_index[0], params.n - 1u);
  }
}
