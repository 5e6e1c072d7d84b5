// XAttention's estimate (arXiv 2503.16428): groups of STRIDE query rows against groups of STRIDE keys. A group
// pair's score is the sum along the antidiagonal of its STRIDE x STRIDE square of scores.
//
//   s[r, j] = log2(e) * scale / STRIDE * sum_t q[STRIDE r + STRIDE - 1 - t] . k[STRIDE j + t]
//
// visible where the key group starts at or before the row group's last row. Rows and keys that do not exist
// count as zero. HEAD_DIM of lib/index_score_tile.wgsl is STRIDE times the head size: it sees the rows of a
// group side by side. Constants from the pipeline's prelude: HEAD_DIM, STRIDE; parameters: index_antidiagonal_params.wgsl.

const ROW4: u32 = D4 / STRIDE;

var<private> first_group: u32;
var<private> first_key_group: u32;

fn row_place(row: u32, d: u32) -> Place {
  let i = (first_group + row) * STRIDE + STRIDE - 1u - d / ROW4;
  return Place(q_start + min(i, params.n_q - 1u) * tensors.q_row_stride + d % ROW4, i < params.n_q);
}

fn key_place(key: u32, d: u32) -> Place {
  let j = (first_key_group + key) * STRIDE + d / ROW4;
  let end = params.q_offset + params.n_q;
  return Place(k_start + min(j, end - 1u) * tensors.k_row_stride + d % ROW4, j < end);
}

// Scores of TILE_ROWS row groups and 128 key groups. Every thread of the workgroup must call this together.
fn antidiagonal_tile(s: ptr<function, array<vec4<f32>, 16>>, head_slot: u32, row_tile: u32, tile: u32, tx: u32, ty: u32) {
  begin_heads(head_slot);
  first_group = params.first_row + row_tile * TILE_ROWS;
  first_key_group = tile * TILE_KEYS;
  score_tile(s, tx, ty);
  let key = (vec4<u32>(first_key_group + 8u * tx) + vec4<u32>(0u, 1u, 2u, 3u)) * STRIDE;
  for (var a = 0u; a < 8u; a++) {
    let group = first_group + 8u * ty + a;
    let real = vec4<bool>(group * STRIDE < params.n_q);
    let end = vec4<u32>(group_end(group));
    (*s)[2u * a] = select(vec4<f32>(MASKED), (*s)[2u * a] * params.scale_log2, real & (key <= end));
    (*s)[2u * a + 1u] =
      select(vec4<f32>(MASKED), (*s)[2u * a + 1u] * params.scale_log2, real & (key + vec4<u32>(4u * STRIDE) <= end));
  }
}

// Does any row group of a tile see any key group of a tile?
fn tile_is_visible(row_tile: u32, tile: u32) -> bool {
  let end = group_end(params.first_row + (row_tile + 1u) * TILE_ROWS - 1u);
  return tile * TILE_KEYS * STRIDE <= end;
}
