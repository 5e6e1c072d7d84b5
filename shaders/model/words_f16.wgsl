// Words of 16 bytes that hold 8 f16.
const PER_WORD: u32 = 2u;              // vec4

fn unpack_word(x: vec4<u32>) -> array<vec4<f32>, PER_WORD> {
  return array<vec4<f32>, PER_WORD>(
    vec4<f32>(unpack2x16float(x.x), unpack2x16float(x.y)),
    vec4<f32>(unpack2x16float(x.z), unpack2x16float(x.w)));
}
