// Block-sparse estimate: scores of row blocks against key blocks, from their means.
//
//   score[b, c] = qbar[b] . kbar[c]                  +inf for the diagonal: key blocks that hold a row of b
//
// Scores are written as u32 keys in the same order (see ordered_key), ready for block_topk.wgsl; with RAW = 1 as they
// are, nothing forced, ready for flex_block_softmax.wgsl. Tiles above the diagonal are skipped; blocks right of a
// row's last visible one hold arbitrary values. Constants from the pipeline's prelude: RAW, and those of
// lib/index_score_tile.wgsl or lib/index_score_tile_matrix.wgsl.
//
// Grid: x = tile of 128 key blocks, y = tile of TILE_ROWS row blocks of the strip, z = head. Bindings:
//   0  params
//   1  means of q   [head slots, q_blocks], see lib/block_means.wgsl and lib/block_means_split.wgsl
//   2  means of k   [head slots, k_blocks]
//   3  heads        (slot in the means of q, slot in those of k, unused, 0: skip this head)
//   4  scores       [heads, strip_rows, row_stride] u32 keys, or bits of f32

struct BlockParams {
  first_block: u32,   // first row block of the strip
  q_blocks: u32,
  k_blocks: u32,
  strip_rows: u32,    // rows of `scores` per head, a multiple of 128
  row_stride: u32,    // a multiple of 128
  q_offset: u32,
  n_q: u32,
}

@group(0) @binding(0) var<uniform> params: BlockParams;
@group(0) @binding(3) var<storage, read> heads: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> scores: array<vec4<u32>>;

const INDEX_BLOCK: u32 = 64u;
const FORCED: u32 = 0xffffffffu;

// For the means' library: the first mean of the tile, and how many there are from it on.
var<private> first_q: u32;
var<private> q_rows: u32;
var<private> first_k: u32;
var<private> k_rows: u32;

// u32 keys in the order of the numbers; both zeros get the same key.
fn ordered_key(x: vec4<f32>) -> vec4<u32> {
  let bits = select(bitcast<vec4<u32>>(x), vec4<u32>(0u), x == vec4<f32>(0.0));
  return select(bits | vec4<u32>(0x80000000u), ~bits, bits >= vec4<u32>(0x80000000u));
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let tx = thread % TX;
  let ty = thread / TX;
  let first_row = params.first_block + workgroup.y * TILE_ROWS;
  let first_key = workgroup.x * TILE_KEYS;
  let last_position = params.q_offset + min((first_row + TILE_ROWS) * INDEX_BLOCK, params.n_q) - 1u;
  let head = heads[workgroup.z];
  if (head.w == 0u || first_key > last_position / INDEX_BLOCK) {
    return;
  }
  first_q = head.x * params.q_blocks + first_row;
  q_rows = params.q_blocks - min(first_row, params.q_blocks);
  first_k = head.y * params.k_blocks + first_key;
  k_rows = params.k_blocks - min(first_key, params.k_blocks);
  var s: array<vec4<f32>, 16>;
  score_tile(&s, tx, ty);

  let key = vec4<u32>(first_key + 8u * tx) + vec4<u32>(0u, 1u, 2u, 3u);
  for (var a = 0u; a < 8u; a++) {
    let row = 8u * ty + a;
    let diagonal = vec4<u32>((params.q_offset + (first_row + row) * INDEX_BLOCK) / INDEX_BLOCK);
    let at = ((workgroup.z * params.strip_rows + workgroup.y * TILE_ROWS + row) * params.row_stride + key.x) / 4u;
    if (RAW == 1u) {
      scores[at] = bitcast<vec4<u32>>(s[2u * a]);
      scores[at + 1u] = bitcast<vec4<u32>>(s[2u * a + 1u]);
    } else {
      scores[at] = select(ordered_key(s[2u * a]), vec4<u32>(FORCED), key >= diagonal);
      scores[at + 1u] = select(ordered_key(s[2u * a + 1u]), vec4<u32>(FORCED), key + vec4<u32>(4u) >= diagonal);
    }
  }
}
