// Merges softmax statistics of up to 128 key tiles into one, for each of 64 rows.
//
//   m = max_t m[t],   l = sum_t l[t] * exp2(m[t] - m)
//
// Grid: x = group of 128 tiles, y = head. Bindings:
//   0  params: (tiles in, groups out)
//   1  tiles_in    [heads, params.x, 64] (m, l)
//   2  groups_out  [heads, params.y, 64] (m, l)

const ROWS: u32 = 64u;
const LANES: u32 = 4u;
const FAN_IN: u32 = 128u;
const M_START: f32 = -1e30;

@group(0) @binding(0) var<uniform> params: vec4<u32>;
@group(0) @binding(1) var<storage, read> tiles_in: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> groups_out: array<vec2<f32>>;

var<workgroup> lane_statistics: array<vec2<f32>, ROWS * LANES>;

@compute @workgroup_size(ROWS, LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
  let row = local.x;
  let lane = local.y;
  let start = workgroup.x * FAN_IN;
  let end = min(start + FAN_IN, params.x);
  let first = workgroup.y * params.x;
  var m = M_START;
  for (var t = start + lane; t < end; t += LANES) {
    m = max(m, tiles_in[(first + t) * ROWS + row].x);
  }
  var l = 0.0;
  for (var t = start + lane; t < end; t += LANES) {
    let part = tiles_in[(first + t) * ROWS + row];
    l = fma(part.y, exp2(part.x - m), l);
  }
  lane_statistics[lane * ROWS + row] = vec2<f32>(m, l);
  workgroupBarrier();
  if (lane == 0u) {
    for (var i = 1u; i < LANES; i++) {
      let part = lane_statistics[i * ROWS + row];
      let m_next = max(m, part.x);
      l = l * exp2(m - m_next) + part.y * exp2(part.x - m_next);
      m = m_next;
    }
    groups_out[(workgroup.y * params.y + workgroup.x) * ROWS + row] = vec2<f32>(m, l);
  }
}
