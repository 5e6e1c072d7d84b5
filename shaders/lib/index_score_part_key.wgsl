// Key of a tile of scores that the four of part_four(row, i) begin with, in a part of them: see index_score_parts.wgsl.
fn part_key(part: u32, i: u32) -> u32 {
  return i / PART4 * (TILE_KEYS / 2u) + 4u * (part * PART4 + i % PART4);
}
