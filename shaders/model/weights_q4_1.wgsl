// Weights [n, k] in blocks of 32 and 20 bytes: f16 d, f16 m, then 16 bytes whose low nibbles are elements 0 to 15 and
// whose high nibbles are elements 16 to 31.   w_i = d q_i + m
@group(0) @binding(1) var<storage, read> weights: array<u32>;

const BLOCK: u32 = 32u;
const BLOCK_STEP: u32 = 5u;
const SPAN: u32 = 4u;
const SCALED: u32 = 1u;
const HAS_MINIMUM: u32 = 1u;
const ZERO: f32 = 0.0;

fn load_scale(row: u32, group: u32) -> Scale {
  let x = weights[block_of(row, group)];
  return Scale(half(x), half(x >> 16u));
}

fn load_quants(row: u32, group: u32) -> Eight {
  let at = block_of(row, group) + 1u + 2u * (group % 2u);
  let shift = 2u * (group & 2u);
  return Eight(low_nibbles(weights[at] >> shift, ZERO), low_nibbles(weights[at + 1u] >> shift, ZERO));
}
