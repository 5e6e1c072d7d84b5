// score_parts(thread) computes the scores and calls the kernel's take_part(part, thread) for each part of them: see
// index_score_parts.wgsl.

// Four neighbouring scores of the part at hand: of the first half of the keys for i < PART4, then of the other one.
fn part_four(row: u32, i: u32) -> vec4<f32> {
  return bitcast<vec4<f32>>(s_tile[row * SCORE_LINE + i]);
}
