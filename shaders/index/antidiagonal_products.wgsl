// XAttention estimate, pass 1 of 2, on subgroup matrices: what antidiagonal_softmax.wgsl does, as a product of long rows.
//
//   s[r, j] = log2(e) * scale / STRIDE * sum_t q[STRIDE r + STRIDE - 1 - t] . k[STRIDE j + t] = A_r . W_j
//   m[tile, r] = max_j s[r, j],   block_sums[c, r] = sum over key groups j of c of exp2(s[r, j] - m[tile, r]),   l = sum_c block_sums[c, r]
//
// A_r is the queries of row group r side by side, the last one first, W_j the keys of key group j. The product runs as those of models
// do, in blocks of BLOCK_M row groups and BLOCK_N key groups: src/index/antidiagonal_products.ts writes main. A tile is the TILE_GROUPS
// key groups of a subgroup, whose statistics are its own.
//
// Grid: x = block of row groups, y = block of key groups, z = head. Constants from the pipeline's prelude: HEAD_DIM, STRIDE (8 or 16),
// TILE_GROUPS, and those of src/kernels/matrix_product.ts. Bindings:
//   0  params      lib/index_antidiagonal_params.wgsl
//   1 to 4         lib/index_tensors.wgsl; q and k are f16, and their rows start on 16 bytes
//   5  partial     [heads, strips of 64 row groups, tiles, 64] (m, l)
//   6  block_sums  [heads, row_tiles, tiles, key blocks of a tile, BLOCK_M]; nothing for blocks that no row group sees

alias StorageVec4 = vec4<u32>;

@group(0) @binding(5) var<storage, read_write> partial: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read_write> block_sums: array<f32>;

const INDEX_BLOCK: u32 = 64u;
const STRIP: u32 = 64u;
const D8: u32 = HEAD_DIM / 8u;
const LENGTH: u32 = STRIDE * HEAD_DIM;
const GROUPS: u32 = INDEX_BLOCK / STRIDE;          // groups of a block of 64 rows or keys: 8 or 4
const BLOCK_TILES: u32 = BLOCK_N / TILE_GROUPS;
const TILE_BLOCKS: u32 = TILE_GROUPS / GROUPS;
// Two invocations share a row of a tile, and each has half of its key blocks.
const HALF_BLOCKS: u32 = TILE_BLOCKS / 2u;
const HALF_WORDS: u32 = TILE_GROUPS / 8u;

// Where the words of a row group, those of its last query, and of a key group begin in q and k.
fn query_start(head: u32, group: u32) -> u32 {
  return ((tensors.q_base + head * tensors.q_head_stride) >> 1u) + (group * STRIDE + STRIDE - 1u) * (tensors.q_row_stride >> 1u);
}

fn key_start(head: u32, group: u32) -> u32 {
  return ((tensors.k_base + head * tensors.k_head_stride) >> 1u) + group * STRIDE * (tensors.k_row_stride >> 1u);
}

// Words `word` of A and W, `groups` groups behind the one that starts there.
fn query_place(start: u32, groups: u32, word: u32) -> u32 {
  return start - word / D8 * (tensors.q_row_stride >> 1u) + word % D8 + groups * STRIDE * (tensors.q_row_stride >> 1u);
}

fn key_place(start: u32, groups: u32, word: u32) -> u32 {
  return start + word / D8 * (tensors.k_row_stride >> 1u) + word % D8 + groups * STRIDE * (tensors.k_row_stride >> 1u);
}

// Is a word that of a query or a key that does not exist? It counts as zero.
fn is_no_query(group: u32, word: u32) -> bool {
  return group * STRIDE + STRIDE - 1u - word / D8 >= params.n_q;
}

fn is_no_key(group: u32, word: u32) -> bool {
  return group * STRIDE + word / D8 >= params.q_offset + params.n_q;
}

// Does any row group of a block see any key group?
fn block_is_visible(workgroup: vec3<u32>) -> bool {
  return workgroup.y * BLOCK_N * STRIDE <= group_end(params.first_row + (workgroup.x + 1u) * BLOCK_M - 1u);
}

// Where (m, l) of a row group of the block lies.
fn partial_place(workgroup: vec3<u32>, row: u32, tile: u32) -> u32 {
  let strip = (workgroup.z * params.row_tiles + workgroup.x) * (BLOCK_M / STRIP) + row / STRIP;
  return (strip * params.tiles + tile) * STRIP + row % STRIP;
}

// What pass 2 takes for a block that no row group sees.
fn see_nothing(workgroup: vec3<u32>, thread: u32) {
  for (var i = thread; i < BLOCK_M * BLOCK_TILES; i += THREADS) {
    partial[partial_place(workgroup, i % BLOCK_M, workgroup.y * BLOCK_TILES + i / BLOCK_M)] = vec2<f32>(M_START, 0.0);
  }
}

// Half of a row group's scores in a tile.
struct Half {
  at: u32,               // first word in `tile`
  key: u32,              // position of the first key
  end: u32,              // position of the row group's last row
  exists: bool,
}

fn row_half(at: u32, group: u32, first_key_group: u32) -> Half {
  return Half(at, first_key_group * STRIDE, group_end(group), group * STRIDE < params.n_q);
}

// Four scores, scaled and masked.
fn scores_of(half: Half, word: u32) -> vec4<f32> {
  let keys = vec4<u32>(half.key) + (vec4<u32>(4u * word) + vec4<u32>(0u, 1u, 2u, 3u)) * STRIDE;
  let visible = vec4<bool>(half.exists) & (keys <= vec4<u32>(half.end));
  return select(vec4<f32>(MASKED), bitcast<vec4<f32>>(tile[half.at + word]) * params.scale_log2, visible);
}

fn maximum_of(half: Half) -> f32 {
  var m = vec4<f32>(M_START);
  for (var word = 0u; word < HALF_WORDS; word++) {
    m = max(m, scores_of(half, word));
  }
  return max4(m);
}

// Stores the sums of the half's key blocks, `to` and then every BLOCK_M elements, and returns theirs.
fn add_blocks(half: Half, m: f32, to: u32) -> f32 {
  var l = 0.0;
  for (var block = 0u; block < HALF_BLOCKS; block++) {
    var sum = vec4<f32>();
    for (var word = 0u; word < GROUPS / 4u; word++) {
      sum += exp2(scores_of(half, block * (GROUPS / 4u) + word) - m);
    }
    let block_sum = sum4(sum);
    block_sums[to + block * BLOCK_M] = block_sum;
    l += block_sum;
  }
  return l;
}
