// Weights [n, k] in blocks of 256 and 210 bytes: 128 bytes with the low 4 bits, 64 bytes with the high 2 bits, 16 signed
// bytes of scales (one for each 16 elements), f16 d. Each half of 128 elements is four quarters of 32: quarter t has its
// low bits in nibble t / 2 of bytes 32 (t % 2) on, and its high bits in bits 2 t of 32 bytes.   w_i = d s (x_i - 32)
@group(0) @binding(1) var<storage, read> weights: array<u32>;

const BLOCK: u32 = 256u;
const BLOCK_STEP: u32 = 210u;
const SPAN: u32 = 2u;
const SCALED: u32 = 1u;
const HAS_MINIMUM: u32 = 0u;

fn load_scale(row: u32, group: u32) -> Scale {
  let block = block_of(row, group);
  return Scale(half_at(block + 208u) * (whole(byte_at(block + 192u + group % 32u / 2u) ^ 128u) - 128.0), 0.0);
}

fn load_quants(row: u32, group: u32) -> Eight {
  let block = block_of(row, group);
  let part = group / 16u % 2u;
  let quarter = group / 4u % 4u;
  let column = 8u * (group % 4u);
  let low_at = block + 64u * part + 32u * (quarter % 2u) + column;
  let high_at = block + 128u + 32u * part + column;
  let low_shift = 4u * (quarter / 2u);
  let high_shift = 2u * quarter;
  let a = ((word_at(low_at) >> low_shift) & 0x0f0f0f0fu) | (((word_at(high_at) >> high_shift) & 0x03030303u) << 4u);
  let b = ((word_at(low_at + 4u) >> low_shift) & 0x0f0f0f0fu) | (((word_at(high_at + 4u) >> high_shift) & 0x03030303u) << 4u);
  return Eight(bytes(a, 32.0), bytes(b, 32.0));
}
