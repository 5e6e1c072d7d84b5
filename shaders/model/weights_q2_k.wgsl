// Weights [n, k] in blocks of 256 and 84 bytes: 16 bytes with a scale s (low nibble) and a minimum x for each 16 elements, 64 bytes of 2-bit
// numbers, f16 d, f16 d_min. Each half of 128 elements is four quarters of 32: quarter t has bits 2 t of 32 bytes.
//   w_i = d s q_i - d_min x
@group(0) @binding(1) var<storage, read> weights: array<u32>;

const SPAN: u32 = 2u;
const SCALED: u32 = 1u;
const HAS_MINIMUM: u32 = 1u;

fn block_of(row: u32, group: u32) -> u32 {
  return (row * (params.k / 256u) + group / 32u) * 21u;
}

fn load_scale(row: u32, group: u32) -> Scale {
  let block = block_of(row, group);
  let at = group % 32u / 2u;
  let byte = weights[block + at / 4u] >> (8u * (at % 4u));
  let x = weights[block + 20u];
  return Scale(half(x) * whole(byte & 15u), -half(x >> 16u) * whole((byte >> 4u) & 15u));
}

fn load_quants(row: u32, group: u32) -> Eight {
  let at = block_of(row, group) + 4u + 8u * (group / 16u % 2u) + 2u * (group % 4u);
  let shift = 2u * (group / 4u % 4u);
  return Eight(bytes((weights[at] >> shift) & 0x03030303u, 0.0), bytes((weights[at + 1u] >> shift) & 0x03030303u, 0.0));
}
