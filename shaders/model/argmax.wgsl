// The index of the greatest of n logits, the lowest among equals. Each workgroup takes every workgroups-th run of THREADS
// logits and writes its best one; a second dispatch of one workgroup, with LAST = 1, chooses among those.
//
// Constants from the pipeline's prelude: THREADS, LAST. Bindings: 0 params, 1 logits [n] f32, or with LAST = 1 the value
// and the index of each of n candidates, 2 candidates [workgroups], or with LAST = 1 the token [1]. Workgroups: any number;
// 1 with LAST = 1.

struct ArgmaxParams {
  n: u32,
  most: u32,             // largest index that is an answer, should all logits be NaN
}

@group(0) @binding(0) var<uniform> params: ArgmaxParams;
@group(0) @binding(1) var<storage, read> candidates: array<u32>;
@group(0) @binding(2) var<storage, read_write> best: array<u32>;

var<workgroup> best_value: array<f32, THREADS>;
var<workgroup> best_index: array<u32, THREADS>;

fn is_better(value: f32, index: u32, than_value: f32, than_index: u32) -> bool {
  return value > than_value || (value == than_value && index < than_index);
}

@compute @workgroup_size(THREADS)
fn main(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) workgroups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  var value = -3.4e38;
  var index = 0xffffffffu;
  for (var i = workgroup.x * THREADS + thread; i < params.n; i += workgroups.x * THREADS) {
    var x = 0.0;
    var at = i;
    if (LAST == 1u) {
      x = bitcast<f32>(candidates[2u * i]);
      at = candidates[2u * i + 1u];
    } else {
      x = bitcast<f32>(candidates[i]);
    }
    if (is_better(x, at, value, index)) {
      value = x;
      index = at;
    }
  }
  best_value[thread] = value;
  best_index[thread] = index;
  for (var half = THREADS / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (thread < half && is_better(best_value[thread + half], best_index[thread + half], best_value[thread], best_index[thread])) {
      best_value[thread] = best_value[thread + half];
      best_index[thread] = best_index[thread + half];
    }
  }
  if (thread == 0u) {
    if (LAST == 1u) {
      best[0] = min(best_index[0], params.most);
    } else {
      best[2u * workgroup.x] = bitcast<u32>(best_value[0]);
      best[2u * workgroup.x + 1u] = best_index[0];
    }
  }
}
