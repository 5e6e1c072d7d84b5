// Weights [n, k] in blocks of 256 and 144 bytes: f16 d, f16 d_min, 12 bytes with a 6-bit scale s and minimum m for
// each of 8 sub-blocks of 32, then 128 bytes: each 32 of them are sub-blocks 2 j (low nibbles) and 2 j + 1 (high).
//   w_i = d s q_i - d_min m
@group(0) @binding(1) var<storage, read> weights: array<u32>;

// Byte i of the 12 bytes of scales from word `at` on.
fn scale_byte(at: u32, i: u32) -> u32 {
  return (weights[at + i / 4u] >> (8u * (i % 4u))) & 255u;
}

fn load_weights(row: u32, group: u32) -> Eight {
  let block = (row * (params.k / 256u) + group / 32u) * 36u;
  let sub = (group / 4u) % 8u;
  let low = sub % 4u;
  // Sub-blocks 0 to 3: 6 bits of bytes sub and sub + 4. From 4 on: nibbles of byte sub + 4, upper bits from the others' tops.
  let first = scale_byte(block + 1u, low);
  let second = scale_byte(block + 1u, 4u + low);
  let third = scale_byte(block + 1u, 8u + low);
  let scale = select((third & 15u) | ((first >> 6u) << 4u), first & 63u, sub < 4u);
  let minimum = select((third >> 4u) | ((second >> 6u) << 4u), second & 63u, sub < 4u);
  let d = half(weights[block]) * f32(scale);
  let m = half(weights[block] >> 16u) * f32(minimum);
  let at = block + 4u + 8u * (sub / 2u) + 2u * (group % 4u);
  let shift = 4u * (sub % 2u);
  return Eight(d * nibbles(weights[at] >> shift) - m, d * nibbles(weights[at + 1u] >> shift) - m);
}
