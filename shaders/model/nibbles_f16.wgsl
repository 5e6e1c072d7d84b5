// Nibbles of four bytes as numbers, less `zero`: exactly, since every step is. In f16, in which bits 0 to 9 are added to 1024: two
// at a time, half of the instructions that f32 would take. unit (1) keeps the exponent in a register, where one instruction reads
// both it and a mask.

fn nibbles_of(x: u32, mask: u32) -> vec2<f16> {
  return bitcast<vec2<f16>>((x & mask) | (0x64006400u * params.unit));
}

fn low_nibbles(x: u32, zero: f32) -> vec4<f32> {
  let even = nibbles_of(x, 0x000f000fu) - f16(1024.0 + zero);
  let odd = nibbles_of(x >> 8u, 0x000f000fu) - f16(1024.0 + zero);
  return vec4<f32>(vec2<f32>(even), vec2<f32>(odd)).xzyw;
}

fn high_nibbles(x: u32, zero: f32) -> vec4<f32> {
  let even = nibbles_of(x, 0x00f000f0u) * 0.0625h - f16(64.0 + zero);
  let odd = nibbles_of(x >> 8u, 0x00f000f0u) * 0.0625h - f16(64.0 + zero);
  return vec4<f32>(vec2<f32>(even), vec2<f32>(odd)).xzyw;
}
