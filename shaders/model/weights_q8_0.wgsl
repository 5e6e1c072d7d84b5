// Weights [n, k] in blocks of 32 and 34 bytes: f16 d, then 32 signed bytes.   w_i = d q_i
@group(0) @binding(1) var<storage, read> weights: array<u32>;

const BLOCK: u32 = 32u;
const BLOCK_STEP: u32 = 34u;
const SPAN: u32 = 4u;
const SCALED: u32 = 1u;
const HAS_MINIMUM: u32 = 0u;

fn load_scale(row: u32, group: u32) -> Scale {
  return Scale(half_at(block_of(row, group)), 0.0);
}

fn load_quants(row: u32, group: u32) -> Eight {
  let at = block_of(row, group) + 2u + 8u * (group % 4u);
  // With its top bit flipped, a signed byte is an unsigned one that is 128 more.
  return Eight(bytes(word_at(at) ^ 0x80808080u, 128.0), bytes(word_at(at + 4u) ^ 0x80808080u, 128.0));
}
