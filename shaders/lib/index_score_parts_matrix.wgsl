// score_parts(thread) computes the scores and calls the kernel's take_part(part, thread) for each part of them: see
// index_score_parts.wgsl.

// Four i of a row of the part at hand.
fn part_four(row: u32, i: u32) -> vec4<f32> {
  return bitcast<vec4<f32>>(s_tile[row * SCORE_LINE + i]);
}
