// Constants and conversions of the matrix tier's online softmax.

const LN2: f32 = 0.6931471805599453;
const LOG2E: f32 = 1.4426950408889634;
// Scores stay unscaled until exp2, so the scale must not be negative (the queries are negated instead) nor
// zero. MASKED times the least scale lies far below M_START, so that masked keys get exactly 0.
const SCALE_MIN: f32 = 1e-20;
const MASKED: f32 = -1e38;
const M_START: f32 = -1e16;
// Output and sums are rescaled only when a row's maximum rises by more than this (in log2): probabilities
// then stay below 2^8, well inside of f16.
const MAX_RISE: f32 = 8.0;
// More tiles than any row has.
const MOST_TILES: u32 = 0x7fffffffu;

fn max_of(x: vec4<f32>) -> f32 {
  return max(max(x.x, x.y), max(x.z, x.w));
}

fn sum_of(x: vec4<f32>) -> f32 {
  return (x.x + x.y) + (x.z + x.w);
}

// Tiles of neighbouring keys in the order of their visit: at first one that every row sees, if there is one, then from the last
// one, which is the nearest, down. Maxima settle early so, and output is rarely rescaled.
fn visited(step: u32, tiles: u32) -> u32 {
  let first = first_tile();
  let down = tiles - min(step, tiles);
  return select(down - select(0u, 1u, down <= first && down > 0u), first, step == 0u);
}

// Probabilities of 16 keys lie in the order 0-3, 8-11, 4-7, 12-15: the words of eight that each of a row's two invocations packs. Rows
// of V must lie in the same order.
fn slot_of(key: u32) -> u32 {
  return (key & ~12u) | ((key & 4u) << 1u) | ((key & 8u) >> 1u);
}
