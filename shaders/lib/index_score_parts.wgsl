// Hands the scores of index_score_tile.wgsl over in parts: the kernel's take_part(part, thread) is called for each, by all threads
// together, and reads what it likes of all rows by part_four. A part holds 4 * PART4 keys of each half of the keys.

const PART4: u32 = 4u;
const PARTS: u32 = TILE_KEYS / (8u * PART4);
const SCORE_LINE: u32 = 2u * PART4 + 1u;

// Four neighbouring scores of the part at hand: of the first half of the keys for i < PART4, then of the other one.
fn part_four(row: u32, i: u32) -> vec4<f32> {
  return stage[row * SCORE_LINE + i];
}

// Every thread of the workgroup must call this together.
fn score_parts(thread: u32) {
  let tx = thread % TX;
  let ty = thread / TX;
  var s: array<vec4<f32>, 16>;
  score_tile(&s, tx, ty);
  let half = tx / (TX / 2u);
  let four = 2u * (tx % (TX / 2u));
  for (var part = 0u; part < PARTS; part++) {
    if (four / PART4 == part) {
      for (var a = 0u; a < 8u; a++) {
        let at = (8u * ty + a) * SCORE_LINE + half * PART4 + four % PART4;
        stage[at] = s[2u * a];
        stage[at + 1u] = s[2u * a + 1u];
      }
    }
    workgroupBarrier();
    take_part(part, thread);
    workgroupBarrier();
  }
}
