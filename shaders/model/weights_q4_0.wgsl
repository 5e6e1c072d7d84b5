// Weights [n, k] in blocks of 32 and 18 bytes: f16 d, then 16 bytes whose low nibbles are elements 0 to 15 and whose
// high nibbles are elements 16 to 31.   w_i = d (x_i - 8)
@group(0) @binding(1) var<storage, read> weights: array<u32>;

const BLOCK: u32 = 32u;
const BLOCK_STEP: u32 = 18u;
const SPAN: u32 = 4u;
const SCALED: u32 = 1u;
const HAS_MINIMUM: u32 = 0u;
const ZERO: f32 = 8.0;

fn load_scale(row: u32, group: u32) -> Scale {
  return Scale(half_at(block_of(row, group)), 0.0);
}

fn load_quants(row: u32, group: u32) -> Eight {
  let at = block_of(row, group) + 2u + 8u * (group % 2u);
  let shift = 2u * (group & 2u);
  return Eight(low_nibbles(word_at(at) >> shift, ZERO), low_nibbles(word_at(at + 4u) >> shift, ZERO));
}
