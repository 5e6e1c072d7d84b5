// Scores of the last R <= 64 query rows against a tile of 128 keys, as both passes of the vertical-slash
// estimate need them (MInference section 3.2).
//
//   s[r, j] = log2(e) * scale * q[r] . k[j]   where j <= position of row r,   MASKED elsewhere

struct EstimateParams {
  rows: u32,             // R = min(64, query rows of the call)
  first_row: u32,        // query row that is row 0 here
  first_position: u32,   // its absolute position
  tiles: u32,            // tiles of 128 keys per head
  first_tile: u32,       // tile of workgroup 0
  scale_log2: f32,       // softmax scale times log2(e)
  q_base: u32,           // bases and strides count vec4 elements, bases modulo 2^32
  q_head_stride: u32,
  q_row_stride: u32,
  k_base: u32,
  k_head_stride: u32,
  k_row_stride: u32,
  forced_columns: u32,   // first columns that get +inf
  kept_tiles: u32,       // tiles of each head whose scores pass 1 keeps for pass 2
}

@group(0) @binding(0) var<uniform> params: EstimateParams;
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

// Where one thread's share of a kept tile begins: 16 vec4, `THREADS` apart.
fn kept_start(head_slot: u32, tile: u32, tx: u32, ty: u32) -> u32 {
  return (head_slot * params.kept_tiles + tile) * 16u * THREADS + ty * TX + tx;
}

// Every thread of the workgroup must call this together.
fn estimate_tile(s: ptr<function, array<vec4<f32>, 16>>, head_slot: u32, tile: u32, tx: u32, ty: u32) {
  let head = heads[head_slot];
  q_start = params.q_base + head.x * params.q_head_stride + params.first_row * params.q_row_stride;
  k_start = params.k_base + head.y * params.k_head_stride;
  first_key = tile * TILE_KEYS;
  score_tile(s, tx, ty);
  let key = vec4<u32>(first_key + 8u * tx) + vec4<u32>(0u, 1u, 2u, 3u);
  for (var a = 0u; a < 8u; a++) {
    let row = 8u * ty + a;
    let position = vec4<u32>(params.first_position + row);
    let real = vec4<bool>(row < params.rows);
    (*s)[2u * a] = select(vec4<f32>(MASKED), (*s)[2u * a] * params.scale_log2, real & (key <= position));
    (*s)[2u * a + 1u] =
      select(vec4<f32>(MASKED), (*s)[2u * a + 1u] * params.scale_log2, real & (key + vec4<u32>(4u) <= position));
  }
}
