// Joins the splits of decode_attention.wgsl:   o = sum_s exp2(m_s - m) o_s / sum_s exp2(m_s - m) l_s,   m = max_s m_s
//
// A workgroup does one head: PARTS threads share a vec4 column, and take every PARTS-th split.
//
// Constants from the pipeline's prelude: D4 (vec4 columns of a head), PARTS. Bindings: 0 params, 1 state (position of the
// row), 2 partial o [heads, splits, D4] vec4<f32>, 3 partial (m, l) [heads, splits], 4 o [heads, D4]. Workgroups: heads.

@group(0) @binding(0) var<uniform> params: DecodeParams;
@group(0) @binding(1) var<storage, read> state: array<u32>;
@group(0) @binding(2) var<storage, read> partial_o: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> partial_ml: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read_write> o: array<vec4<Output>>;

var<workgroup> part_ml: array<vec2<f32>, PARTS>;
var<workgroup> part_o: array<vec4<f32>, PARTS * D4>;

@compute @workgroup_size(D4, PARTS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
  let column = local.x;
  let part = local.y;
  let first = workgroup.x * params.splits;
  let splits = splits_of(min(state[0] + 1u, params.window), params.splits);
  var m = -1e30;
  for (var s = part; s < splits; s += PARTS) {
    m = max(m, partial_ml[first + s].x);
  }
  var l = 0.0;
  var sum = vec4<f32>();
  for (var s = part; s < splits; s += PARTS) {
    let weight = exp2(partial_ml[first + s].x - m);
    l += weight * partial_ml[first + s].y;
    sum += weight * partial_o[(first + s) * D4 + column];
  }
  if (column == 0u) {
    part_ml[part] = vec2<f32>(m, l);
  }
  part_o[part * D4 + column] = sum;
  workgroupBarrier();
  if (part == 0u) {
    for (var p = 0u; p < PARTS; p++) {
      m = max(m, part_ml[p].x);
    }
    l = 0.0;
    sum = vec4<f32>();
    for (var p = 0u; p < PARTS; p++) {
      let weight = exp2(part_ml[p].x - m);
      l += weight * part_ml[p].y;
      sum += weight * part_o[p * D4 + column];
    }
    o[workgroup.x * D4 + column] = pack_output(sum / l);
  }
}
