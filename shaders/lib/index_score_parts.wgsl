// Hands the scores of index_score_tile.wgsl over in parts: the kernel's take_part(part, thread) is called for each, by all threads
// together, and reads what it likes of all rows by part_four. See index_score_part_places.wgsl.

const PART4: u32 = 4u;
const PARTS: u32 = TILE_KEYS / (8u * PART4);
const SCORE_LINE: u32 = 2u * PART4 + 1u;

// Four i of a row of the part at hand.
fn part_four(row: u32, i: u32) -> vec4<f32> {
  return stage[row * SCORE_LINE + i];
}

// Every thread of the workgroup must call this together.
fn score_parts(thread: u32) {
  let tx = thread % TX;
  let ty = thread / TX;
  var s: array<vec4<f32>, 16>;
  score_tile(&s, tx, ty);
  for (var part = 0u; part < PARTS; part++) {
    if (part_of(tx) == part) {
      for (var a = 0u; a < 8u; a++) {
        let at = (8u * ty + a) * SCORE_LINE + four_of(tx);
        stage[at] = s[2u * a];
        stage[at + 1u] = s[2u * a + 1u];
      }
    }
    workgroupBarrier();
    take_part(part, thread);
    workgroupBarrier();
  }
}
