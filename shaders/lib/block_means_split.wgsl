// Means of blocks of rows, each as a sum of two f16: [head slots, blocks, (hi, lo), head size], so that products of f16 give
// what products of f32 would, to some 21 bits.
//
//   (hi + lo)_q . (hi + lo)_k  =  hi_q . hi_k + hi_q . lo_k + lo_q . hi_k  + what is too small to matter
//
// lib/index_score_tile_matrix.wgsl sees this as one product of HEAD_DIM = 3 head sizes: (hi, hi, lo) of q, (hi, lo, hi) of k.

@group(0) @binding(1) var<storage, read> q: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> k: array<vec2<u32>>;

const MEAN4: u32 = D4 / 3u;

struct Place {
  at: u32,
  exists: bool,
}

fn row_place(row: u32, d: u32) -> Place {
  let lo = select(0u, MEAN4, d >= 2u * MEAN4);
  return Place((first_q + min(row, max(q_rows, 1u) - 1u)) * 2u * MEAN4 + lo + d % MEAN4, row < q_rows);
}

fn key_place(key: u32, d: u32) -> Place {
  let lo = select(0u, MEAN4, d / MEAN4 == 1u);
  return Place((first_k + min(key, max(k_rows, 1u) - 1u)) * 2u * MEAN4 + lo + d % MEAN4, key < k_rows);
}
