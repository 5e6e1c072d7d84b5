// Means of blocks of rows, as f32: [head slots, blocks, HEAD_DIM]. For lib/index_score_tile.wgsl.

@group(0) @binding(1) var<storage, read> qbar: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> kbar: array<vec4<f32>>;

fn row_vec4(row: u32, d: u32) -> vec4<f32> {
  if (row >= q_rows) {
    return vec4<f32>();
  }
  return qbar[(first_q + row) * D4 + d];
}

fn key_vec4(key: u32, d: u32) -> vec4<f32> {
  if (key >= k_rows) {
    return vec4<f32>();
  }
  return kbar[(first_k + key) * D4 + d];
}
