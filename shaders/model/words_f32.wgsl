// Words of 16 bytes that hold 4 f32.
const PER_WORD: u32 = 1u;              // vec4

fn unpack_word(x: vec4<u32>) -> array<vec4<f32>, PER_WORD> {
  return array<vec4<f32>, PER_WORD>(bitcast<vec4<f32>>(x));
}
