// For blocks of an odd number of halves: reads at even byte offsets of `weights`, and bytes at any.

fn word_at(byte: u32) -> u32 {
  let low = weights[byte / 4u];
  return select((low >> 16u) | (weights[byte / 4u + 1u] << 16u), low, (byte & 2u) == 0u);
}

fn half_at(byte: u32) -> f32 {
  return half(weights[byte / 4u] >> (8u * (byte & 2u)));
}

fn byte_at(byte: u32) -> u32 {
  return (weights[byte / 4u] >> (8u * (byte & 3u))) & 255u;
}
