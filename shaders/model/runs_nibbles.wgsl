// What a thread of the matrix-vector kernel takes of a row at a time, loaded at once: a block of 32 whose low nibbles are elements 0
// to 15, and whose high ones are elements 16 to 31.
const_assert GROUPS == 4u;

struct Run {
  head: u32,             // what the block's scale is in
  words: vec4<u32>,
}

// g of a run's GROUPS.
fn run_quants(x: Run, g: u32) -> Eight {
  let bytes = select(x.words.xy, x.words.zw, g % 2u == 1u);
  if (g < 2u) {
    return Eight(low_nibbles(bytes.x, ZERO), low_nibbles(bytes.y, ZERO));
  }
  return Eight(high_nibbles(bytes.x, ZERO), high_nibbles(bytes.y, ZERO));
}
