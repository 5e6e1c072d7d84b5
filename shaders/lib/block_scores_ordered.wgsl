// Writes scores of block_scores.wgsl as u32 keys in the same order, the diagonal above all: key blocks that hold a row of the row
// block. The selection looks at the greatest of eight first.
//
//   4  scores       [heads, strip_rows, row_stride] u32 keys
//   5  maxima       [heads, strip_rows, row_stride / 8] greatest of eight neighbouring keys

@group(0) @binding(5) var<storage, read_write> maxima: array<u32>;

const FORCED: u32 = 0xffffffffu;

// Both zeros get the same key.
fn ordered_key(x: vec4<f32>) -> vec4<u32> {
  let bits = select(bitcast<vec4<u32>>(x), vec4<u32>(0u), x == vec4<f32>(0.0));
  return select(bits | vec4<u32>(0x80000000u), ~bits, bits >= vec4<u32>(0x80000000u));
}

// Scores of eight key blocks from `key` on, whose place counts groups of eight.
fn write_scores(at: u32, a: vec4<f32>, b: vec4<f32>, key: u32, diagonal: u32) {
  let keys = vec4<u32>(key, key + 1u, key + 2u, key + 3u);
  let x = select(ordered_key(a), vec4<u32>(FORCED), keys >= vec4<u32>(diagonal));
  let y = select(ordered_key(b), vec4<u32>(FORCED), keys + vec4<u32>(4u) >= vec4<u32>(diagonal));
  scores[2u * at] = x;
  scores[2u * at + 1u] = y;
  let most = max(x, y);
  maxima[at] = max(max(most.x, most.y), max(most.z, most.w));
}
