// Joins the splits of decode_attention.wgsl:   o = sum_s exp2(m_s - m) o_s / sum_s exp2(m_s - m) l_s,   m = max_s m_s
//
// Constants from the pipeline's prelude: D4 (vec4 columns of a head). Bindings: 0 params, 1 partial o
// [heads, splits, D4] vec4<f32>, 2 partial (m, l) [heads, splits], 3 o [heads, D4]. Workgroups: heads.

struct CombineParams {
  splits: u32,
}

@group(0) @binding(0) var<uniform> params: CombineParams;
@group(0) @binding(1) var<storage, read> partial_o: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> partial_ml: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> o: array<vec4<Output>>;

@compute @workgroup_size(D4)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) column: u32) {
  let first = workgroup.x * params.splits;
  var m = -1e30;
  for (var s = 0u; s < params.splits; s++) {
    m = max(m, partial_ml[first + s].x);
  }
  var l = 0.0;
  var sum = vec4<f32>();
  for (var s = 0u; s < params.splits; s++) {
    let weight = exp2(partial_ml[first + s].x - m);
    l += weight * partial_ml[first + s].y;
    sum += weight * partial_o[(first + s) * D4 + column];
  }
  o[workgroup.x * D4 + column] = pack_output(sum / l);
}
