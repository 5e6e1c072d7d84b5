// Weights [n, k] in blocks of 256 and 110 bytes: 32 bytes with the highest bits, 64 bytes with the low 2 bits, 12 bytes with 6 bits of a scale
// for each 16 elements, f16 d. Each half of 128 elements is four quarters of 32: quarter t of half h has its low bits in bits 2 t of 32
// bytes, and its highest ones in bit 4 h + t of all 32.   w_i = d (s - 32) (x_i - 4)
// Scale s of 16: its low nibble is in byte s % 8 (s < 8: the low one there, else the high one), its upper bits are bits 2 (s / 4) of
// byte 8 + s % 4.
@group(0) @binding(1) var<storage, read> weights: array<u32>;

const BLOCK: u32 = 256u;
const BLOCK_STEP: u32 = 110u;
const SPAN: u32 = 2u;
const SCALED: u32 = 1u;
const HAS_MINIMUM: u32 = 0u;

fn load_scale(row: u32, group: u32) -> Scale {
  let block = block_of(row, group);
  let s = group % 32u / 2u;
  let low = (byte_at(block + 96u + s % 8u) >> (4u * (s / 8u))) & 15u;
  let high = (byte_at(block + 104u + s % 4u) >> (2u * (s / 4u))) & 3u;
  return Scale(half_at(block + 108u) * (whole(low | (high << 4u)) - 32.0), 0.0);
}

fn load_quants(row: u32, group: u32) -> Eight {
  let block = block_of(row, group);
  let part = group / 16u % 2u;
  let quarter = group / 4u % 4u;
  let column = 8u * (group % 4u);
  let at = block + 32u + 32u * part + column;
  let bit = 4u * part + quarter;
  let a = ((word_at(at) >> (2u * quarter)) & 0x03030303u) | (((word_at(block + column) >> bit) & 0x01010101u) << 2u);
  let b = ((word_at(at + 4u) >> (2u * quarter)) & 0x03030303u) | (((word_at(block + column + 4u) >> bit) & 0x01010101u) << 2u);
  return Eight(bytes(a, 4.0), bytes(b, 4.0));
}
