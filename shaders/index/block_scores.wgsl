// Block-sparse estimate: scores of row blocks against key blocks, from their means.
//
//   score[b, c] = qbar[b] . kbar[c]
//
// lib/block_scores_ordered.wgsl writes them for block_topk.wgsl, lib/block_scores_raw.wgsl for flex_block_softmax.wgsl. Tiles
// above the diagonal are skipped; blocks right of a row's last visible one hold arbitrary values. Constants from the pipeline's
// prelude: those of lib/index_score_tile.wgsl or lib/index_score_tile_matrix.wgsl.
//
// Grid: x = tile of 128 key blocks, y = tile of TILE_ROWS row blocks of the strip, z = head. Bindings:
//   0  params
//   1  means of q   [head slots, q_blocks], see lib/block_means.wgsl and lib/block_means_split.wgsl
//   2  means of k   [head slots, k_blocks]
//   3  heads        (slot in the means of q, slot in those of k, unused, 0: skip this head)
//   4  scores       [heads, strip_rows, row_stride]

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

// For the means' library: the first mean of the tile, and how many there are from it on.
var<private> first_q: u32;
var<private> q_rows: u32;
var<private> first_k: u32;
var<private> k_rows: u32;

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

  let key = first_key + 8u * tx;
  for (var a = 0u; a < 8u; a++) {
    let row = 8u * ty + a;
    let diagonal = (params.q_offset + (first_row + row) * INDEX_BLOCK) / INDEX_BLOCK;
    let at = (workgroup.z * params.strip_rows + workgroup.y * TILE_ROWS + row) * params.row_stride + key;
    write_scores(at / 8u, s[2u * a], s[2u * a + 1u], key, diagonal);
  }
}
