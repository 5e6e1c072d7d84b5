// Scores of the last R <= 64 query rows against a tile of 128 keys (MInference section 3.2).
//
//   s[r, j] = log2(e) * scale * q[r] . k[j]   where j <= position of row r,   MASKED elsewhere

@group(0) @binding(1) var<storage, read> q: array<StorageVec4>;
@group(0) @binding(2) var<storage, read> k: array<StorageVec4>;
@group(0) @binding(3) var<storage, read> heads: array<vec2<u32>>;   // query head, key head

const MASKED: f32 = -2e30;
const M_START: f32 = -1e30;           // above MASKED, so that masked keys get exp2(-1e30) = 0

var<private> q_start: u32;            // row 0
var<private> k_start: u32;            // key 0 of the tensor
var<private> first_key: u32;          // key 0 of the tile

// Where four dimensions of a row or key lie in q or k: of the last one instead where it does not exist.
struct Place {
  at: u32,
  exists: bool,
}

fn row_place(row: u32, d: u32) -> Place {
  return Place(q_start + min(row, params.rows - 1u) * params.q_row_stride + d, row < params.rows);
}

fn key_place(key: u32, d: u32) -> Place {
  let end = params.first_position + params.rows;
  return Place(k_start + min(first_key + key, end - 1u) * params.k_row_stride + d, first_key + key < end);
}

fn row_vec4(row: u32, d: u32) -> vec4<f32> {
  let place = row_place(row, d);
  return select(vec4<f32>(), unpack_vec4(q[place.at]), place.exists);
}

fn key_vec4(key: u32, d: u32) -> vec4<f32> {
  let place = key_place(key, d);
  return select(vec4<f32>(), unpack_vec4(k[place.at]), place.exists);
}

// Every thread of the workgroup must call this together; take_part gets the unscaled scores.
fn estimate_tile(thread: u32, head_slot: u32, tile: u32) {
  let head = heads[head_slot];
  q_start = params.q_base + head.x * params.q_head_stride + params.first_row * params.q_row_stride;
  k_start = params.k_base + head.y * params.k_head_stride;
  first_key = tile * TILE_KEYS;
  score_parts(thread);
}

// Scores of a row and four keys of the tile, scaled and masked.
fn estimate_four(row: u32, key: u32, s: vec4<f32>) -> vec4<f32> {
  let keys = vec4<u32>(first_key + key) + vec4<u32>(0u, 1u, 2u, 3u);
  let visible = vec4<bool>(row < params.rows) & (keys <= vec4<u32>(params.first_position + row));
  return select(vec4<f32>(MASKED), s * params.scale_log2, visible);
}
