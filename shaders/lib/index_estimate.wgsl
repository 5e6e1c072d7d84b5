// Scores of the last R <= 64 query rows against a tile of 128 keys (MInference section 3.2).
//
//   s[r, j] = log2(e) * scale * q[r] . k[j]   where j <= position of row r,   MASKED elsewhere

var<private> first_key: u32;          // key 0 of the tile

fn row_place(row: u32, d: u32) -> Place {
  let i = params.first_row + min(row, params.rows - 1u);
  return Place(q_start + i * tensors.q_row_stride + d, row < params.rows);
}

// Where a key begins in k; the last one instead where there is none.
fn key_start(key: u32) -> u32 {
  return k_start + min(key, params.first_position + params.rows - 1u) * tensors.k_row_stride;
}

fn key_place(key: u32, d: u32) -> Place {
  return Place(key_start(first_key + key) + d, first_key + key < params.first_position + params.rows);
}

// Scores of a row and four keys of the tile, scaled and masked.
fn estimate_four(row: u32, key: u32, s: vec4<f32>) -> vec4<f32> {
  let keys = vec4<u32>(first_key + key) + vec4<u32>(0u, 1u, 2u, 3u);
  let visible = vec4<bool>(row < params.rows) & (keys <= vec4<u32>(params.first_position + row));
  return select(vec4<f32>(MASKED), s * params.scale_log2, visible);
}
