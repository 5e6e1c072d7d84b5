// score_tile(s, tx, ty) leaves thread (ty, tx) with the 8 x 8 square of rows 8 * ty + a and keys 8 * tx + b: s[2 * a] holds keys
// b = 0..3, s[2 * a + 1] keys b = 4..7.

// Reads this thread's square when it belongs to the scores that s_tile holds.
fn read_part(s: ptr<function, array<vec4<f32>, 16>>, part: u32, tx: u32, ty: u32) {
  if (part_of(tx) == part) {
    for (var a = 0u; a < 8u; a++) {
      let at = (8u * ty + a) * SCORE_LINE + four_of(tx);
      (*s)[2u * a] = bitcast<vec4<f32>>(s_tile[at]);
      (*s)[2u * a + 1u] = bitcast<vec4<f32>>(s_tile[at + 1u]);
    }
  }
}
