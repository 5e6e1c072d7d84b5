// Nibbles of four bytes as numbers, less `zero`: exactly, since every step is. See `bytes` in weights.wgsl; three nibbles fit where
// they are.

fn low_nibbles(x: u32, zero: f32) -> vec4<f32> {
  let bits = (vec4<u32>(x, x, x, x >> 16u) & vec4<u32>(0xfu, 0xf00u, 0xf0000u, 0xf00u)) | vec4<u32>(MAGIC);
  return bitcast<vec4<f32>>(bits) * vec4<f32>(1.0, 0.00390625, 0.0000152587890625, 0.00390625)
    - (vec4<f32>(8388608.0, 32768.0, 128.0, 32768.0) + zero);
}

fn high_nibbles(x: u32, zero: f32) -> vec4<f32> {
  return low_nibbles(x >> 4u, zero);
}
