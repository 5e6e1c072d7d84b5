// Weights [n, k] in blocks of 256 and 84 bytes: 16 bytes with a scale s (low nibble) and a minimum x for each 16 elements, 64 bytes of 2-bit
// numbers, f16 d, f16 d_min. Each half of 128 elements is four quarters of 32: quarter t has bits 2 t of 32 bytes.
//   w_i = d s q_i - d_min x
@group(0) @binding(1) var<storage, read> weights: array<u32>;

const BLOCK: u32 = 256u;
const BLOCK_STEP: u32 = 84u;
const SPAN: u32 = 2u;
const SCALED: u32 = 1u;
const HAS_MINIMUM: u32 = 1u;

fn load_scale(row: u32, group: u32) -> Scale {
  let block = block_of(row, group);
  let x = byte_at(block + group % 32u / 2u);
  return Scale(half_at(block + 80u) * whole(x & 15u), -half_at(block + 82u) * whole(x >> 4u));
}

fn load_quants(row: u32, group: u32) -> Eight {
  // Blocks and these bytes begin at whole words.
  let at = (block_of(row, group) + 16u + 32u * (group / 16u % 2u) + 8u * (group % 4u)) / 4u;
  let shift = 2u * (group / 4u % 4u);
  return Eight(bytes((weights[at] >> shift) & 0x03030303u, 0.0), bytes((weights[at + 1u] >> shift) & 0x03030303u, 0.0));
}
