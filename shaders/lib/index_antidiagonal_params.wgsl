// Parameters of the first pass of XAttention's estimate, on tiles of scores or as a product. Constant: STRIDE.

struct EstimateParams {
  n_q: u32,
  q_offset: u32,
  first_row: u32,        // first row group of workgroup 0, a multiple of a tile's
  tiles: u32,            // tiles of key groups
  row_tiles: u32,        // tiles of row groups of this dispatch
  scale_log2: f32,       // softmax scale / STRIDE times log2(e)
}

@group(0) @binding(0) var<uniform> params: EstimateParams;

// Position of the last real row of a row group.
fn group_end(group: u32) -> u32 {
  return params.q_offset + min((group + 1u) * STRIDE, params.n_q) - 1u;
}
