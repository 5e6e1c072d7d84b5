// XAttention estimate, pass 2 of 2: the probabilities of the row groups, added up over blocks of 64 rows and 64 keys.
//
//   score[b, c] = sum over row groups r of b of exp2(m[tile, r] - lse2[r]) * block_sums[c, r],   c in the tile
//   +inf for key block 0 and for the diagonal: key blocks that hold a row of b
//
// Scores of tiles that no row group sees stay as they are. A block is GROUPS row groups.
// Grid: x = tile of TILE_GROUPS key groups, y = tile of TILE_ROWS row groups, z = head. Constants from the pipeline's prelude:
// STRIDE (8 or 16), TILE_ROWS, TILE_GROUPS. Bindings:
//   0  params
//   1  partial     [heads, strips of 64 row groups, tiles, 64] (m, l), from pass 1
//   2  block_sums  [heads, row_tiles, tiles, blocks of a tile, TILE_ROWS], from pass 1
//   3  merged      [heads, row_tiles, TILE_ROWS] (m, l) over all keys
//   4  scores      [heads, row blocks, row_stride] bits of f32

struct BlockParams {
  n_q: u32,
  q_offset: u32,
  first_row: u32,        // first row group of workgroup 0, a multiple of TILE_ROWS
  tiles: u32,            // tiles of key groups
  row_tiles: u32,        // tiles of TILE_ROWS row groups of this dispatch
  row_stride: u32,       // of the scores
}

@group(0) @binding(0) var<uniform> params: BlockParams;
@group(0) @binding(1) var<storage, read> partial: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read> block_sums: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> merged: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read_write> scores: array<u32>;

const THREADS: u32 = 128u;
const INDEX_BLOCK: u32 = 64u;
const STRIP: u32 = 64u;
const GROUPS: u32 = INDEX_BLOCK / STRIDE;              // 8 or 4
const TILE_BLOCKS: u32 = TILE_GROUPS / GROUPS;           // key blocks of a tile
const ROW_BLOCKS: u32 = TILE_ROWS / GROUPS;
const INFINITY_BITS: u32 = 0x7f800000u;

// exp2(m - lse2) of the row groups, 0 where there is none.
var<workgroup> weights: array<f32, TILE_ROWS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let slot = workgroup.z * params.row_tiles + workgroup.y;
  let first_group = params.first_row + workgroup.y * TILE_ROWS;
  let end = params.q_offset + min((first_group + TILE_ROWS) * STRIDE, params.n_q) - 1u;
  if (workgroup.x * TILE_BLOCKS * INDEX_BLOCK > end) {
    return;
  }
  for (var row = thread; row < TILE_ROWS; row += THREADS) {
    var weight = 0.0;
    if ((first_group + row) * STRIDE < params.n_q) {
      let strip = slot * (TILE_ROWS / STRIP) + row / STRIP;
      let all = merged[slot * TILE_ROWS + row];
      weight = exp2(partial[(strip * params.tiles + workgroup.x) * STRIP + row % STRIP].x - all.x - log2(all.y));
    }
    weights[row] = weight;
  }
  workgroupBarrier();
  for (var i = thread; i < ROW_BLOCKS * TILE_BLOCKS; i += THREADS) {
    let b = i / TILE_BLOCKS;
    let c = i % TILE_BLOCKS;
    let first_row = (first_group + b * GROUPS) * STRIDE;
    if (first_row < params.n_q) {
      let at = (((slot * params.tiles + workgroup.x) * TILE_BLOCKS + c) * TILE_ROWS + b * GROUPS) / 4u;
      var sum = 0.0;
      for (var g = 0u; g < GROUPS; g += 4u) {
        let r = b * GROUPS + g;
        sum += dot(vec4<f32>(weights[r], weights[r + 1u], weights[r + 2u], weights[r + 3u]), block_sums[at + g / 4u]);
      }
      let key_block = workgroup.x * TILE_BLOCKS + c;
      let forced = key_block == 0u || key_block >= (params.q_offset + first_row) / INDEX_BLOCK;
      scores[(slot * ROW_BLOCKS + b) * params.row_stride + key_block] = select(bitcast<u32>(sum), INFINITY_BITS, forced);
    }
  }
}
