// Weights [n, k] in blocks of 32 and 24 bytes: f16 d, f16 m, 32 bits that are the highest ones of elements 0 to 31, then 16 bytes whose
// low nibbles are elements 0 to 15 and whose high nibbles are elements 16 to 31.   w_i = d q_i + m
@group(0) @binding(1) var<storage, read> weights: array<u32>;

const BLOCK: u32 = 32u;
const BLOCK_STEP: u32 = 6u;
const SPAN: u32 = 4u;
const SCALED: u32 = 1u;
const HAS_MINIMUM: u32 = 1u;

fn load_scale(row: u32, group: u32) -> Scale {
  let x = weights[block_of(row, group)];
  return Scale(half(x), half(x >> 16u));
}

fn load_quants(row: u32, group: u32) -> Eight {
  let block = block_of(row, group);
  let bits = weights[block + 1u] >> (8u * (group % 4u));
  let at = block + 2u + 2u * (group % 2u);
  let shift = 2u * (group & 2u);
  return Eight(
    bytes(five_bits(weights[at] >> shift, bits), 0.0),
    bytes(five_bits(weights[at + 1u] >> shift, bits >> 4u), 0.0),
  );
}
