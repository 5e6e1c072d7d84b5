// A head's attention probabilities, averaged over square cells: the picture of a head.
//
//   map[a, b] = sum over rows i and keys j <= p_i of cell (a, b) of exp(scale * q[i] . k[j] - lse[i]) / rows of the cell
//
// A cell has `cell` rows and keys, a power of two from 8 on. A workgroup does 64 rows and 128 keys at a
// time (lib/index_score_tile.wgsl), for one cell or for all that fit such a tile.
//
// Grid: x = group of cells along the keys, y = group of cells along the rows (from params.first_group on). Bindings:
//   0  params
//   1  q, 2  k   the tensors, read through strides
//   3  lse       [rows] f32 of this head, natural logarithm
//   4  map       [map_rows, map_keys] f32

struct MapParams {
  n_q: u32,
  q_offset: u32,
  cell: u32,
  map_rows: u32,
  map_keys: u32,
  scale_log2: f32,
  q_base: u32,          // bases and strides count vec4 elements, bases modulo 2^32
  q_row_stride: u32,
  k_base: u32,
  k_row_stride: u32,
  lse_base: u32,
  first_group: u32,
}

@group(0) @binding(0) var<uniform> params: MapParams;
@group(0) @binding(1) var<storage, read> q: array<StorageVec4>;
@group(0) @binding(2) var<storage, read> k: array<StorageVec4>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read_write> map: array<f32>;

const LOG2E: f32 = 1.4426950408889634;

var<private> first_row: u32;
var<private> first_key: u32;
var<workgroup> squares: array<f32, THREADS>;

fn row_vec4(row: u32, d: u32) -> vec4<f32> {
  if (first_row + row >= params.n_q) {
    return vec4<f32>();
  }
  return unpack_vec4(q[params.q_base + (first_row + row) * params.q_row_stride + d]);
}

fn key_vec4(key: u32, d: u32) -> vec4<f32> {
  if (first_key + key >= params.q_offset + params.n_q) {
    return vec4<f32>();
  }
  return unpack_vec4(k[params.k_base + (first_key + key) * params.k_row_stride + d]);
}

@compute @workgroup_size(TX, TY)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
  let tx = local.x;
  let ty = local.y;
  let thread = ty * TX + tx;
  let group_rows = max(params.cell, TILE_ROWS);
  let group_keys = max(params.cell, TILE_KEYS);
  let group = params.first_group + workgroup.y;
  let row_start = group * group_rows;
  let row_end = min(row_start + group_rows, params.n_q);
  let key_start = workgroup.x * group_keys;
  let key_end = min(key_start + group_keys, params.q_offset + row_end);
  var total = 0.0;
  for (var row0 = row_start; row0 < row_end; row0 += TILE_ROWS) {
    for (var key0 = key_start; key0 < key_end; key0 += TILE_KEYS) {
      first_row = row0;
      first_key = key0;
      var s: array<vec4<f32>, 16>;
      score_tile(&s, tx, ty);
      let key = vec4<u32>(key0 + 8u * tx) + vec4<u32>(0u, 1u, 2u, 3u);
      for (var a = 0u; a < 8u; a++) {
        let row = row0 + 8u * ty + a;
        if (row < params.n_q) {
          let position = vec4<u32>(params.q_offset + row);
          let row_lse = vec4<f32>(lse[params.lse_base + row] * LOG2E);
          let lo = exp2(s[2u * a] * params.scale_log2 - row_lse);
          let hi = exp2(s[2u * a + 1u] * params.scale_log2 - row_lse);
          total += sum4(select(vec4<f32>(), lo, key <= position));
          total += sum4(select(vec4<f32>(), hi, key + vec4<u32>(4u) <= position));
        }
      }
    }
  }
  squares[thread] = total;
  workgroupBarrier();

  // Cells of the group, and the 8 x 8 squares of a cell.
  let cells_x = group_keys / params.cell;
  let cells_y = group_rows / params.cell;
  if (thread < cells_x * cells_y) {
    let squares_x = TX / cells_x;
    let squares_y = TY / cells_y;
    let cell_x = thread % cells_x;
    let cell_y = thread / cells_x;
    var sum = 0.0;
    for (var y = 0u; y < squares_y; y++) {
      for (var x = 0u; x < squares_x; x++) {
        sum += squares[(cell_y * squares_y + y) * TX + cell_x * squares_x + x];
      }
    }
    let map_row = group * cells_y + cell_y;
    let map_key = workgroup.x * cells_x + cell_x;
    if (map_row < params.map_rows && map_key < params.map_keys) {
      let rows = min((map_row + 1u) * params.cell, params.n_q) - map_row * params.cell;
      map[map_row * params.map_keys + map_key] = sum / f32(rows);
    }
  }
}
