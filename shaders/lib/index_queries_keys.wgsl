// Queries and keys of an estimate, as lib/index_score_tile.wgsl and lib/index_score_tile_matrix.wgsl read them. The estimate's own file
// says where: row_place(row, d) and key_place(key, d), dimensions 4 * d .. 4 * d + 3 of a row or key of the tile.

// Where the heads at hand begin in q and k.
var<private> q_start: u32;
var<private> k_start: u32;

// Where four dimensions lie in q or k: of the last row or key instead where there is none.
struct Place {
  at: u32,
  exists: bool,
}

fn begin_heads(head_slot: u32) {
  let head = heads[head_slot];
  q_start = tensors.q_base + head.x * tensors.q_head_stride;
  k_start = tensors.k_base + head.y * tensors.k_head_stride;
}

fn row_vec4(row: u32, d: u32) -> vec4<f32> {
  let place = row_place(row, d);
  return select(vec4<f32>(), unpack_vec4(q[place.at]), place.exists);
}

fn key_vec4(key: u32, d: u32) -> vec4<f32> {
  let place = key_place(key, d);
  return select(vec4<f32>(), unpack_vec4(k[place.at]), place.exists);
}
