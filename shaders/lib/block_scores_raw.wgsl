// Writes scores of block_scores.wgsl as they are: [heads, strip_rows, row_stride] bits of f32. See lib/block_scores_ordered.wgsl.

fn write_scores(at: u32, a: vec4<f32>, b: vec4<f32>, key: u32, diagonal: u32) {
  scores[2u * at] = bitcast<vec4<u32>>(a);
  scores[2u * at + 1u] = bitcast<vec4<u32>>(b);
}
