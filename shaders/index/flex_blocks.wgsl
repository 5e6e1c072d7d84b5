// FlexPrefill's block index (arXiv 2502.20766, algorithm 4): writes, for each row block, the key blocks whose scores reach
// the least one selected over all row blocks of the head (lib/index_cumulative.wgsl), ascending; none for heads that are
// not query-aware.
//
//   kept = { c : forced, or p[b, c] >= least };   when those are more than `room`, the forced and the largest others
//
// Grid: x = row block of the strip, y = head. Bindings:
//   0  params
//   1  heads     (unused, unused, first u32 of the head in `index`, 0: not query-aware)
//   2  searches  [heads]
//   3  scores    [heads, strip_rows, row_stride] bits of f32, +inf where forced
//   4  index     per head [q_blocks, room] block numbers, then [q_blocks] counts (see ../block_sparse.wgsl)

struct SelectParams {
  first_block: u32,      // first row block of the strip
  q_blocks: u32,
  strip_rows: u32,
  row_stride: u32,
  q_offset: u32,
  n_q: u32,
  room: u32,
  top_bit: u32,          // 2^30. As a constant, it would let drivers unroll the search below, and compile for minutes
}

struct Search {
  found: u32,
  rank: u32,
  slack: u32,
  running: u32,
}

@group(0) @binding(0) var<uniform> params: SelectParams;
@group(0) @binding(1) var<storage, read> heads: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> searches: array<Search>;
@group(0) @binding(3) var<storage, read> scores: array<u32>;
@group(0) @binding(4) var<storage, read_write> index: array<u32>;

const INDEX_BLOCK: u32 = 64u;
const INFINITY_BITS: u32 = 0x7f800000u;

// Keys of a row from `least` on. Every thread must call this together.
fn count_from(thread: u32, row: u32, count: u32, least: u32) -> u32 {
  var own = 0u;
  for (var i = thread; i < count; i += THREADS) {
    own += select(0u, 1u, scores[row + i] >= least);
  }
  workgroupBarrier();
  let total = total_of(thread, prefix_sum(thread, own));
  if (thread == 0u) {
    row_count = total;
  }
  return workgroupUniformLoad(&row_count);
}

var<workgroup> row_count: u32;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let block = params.first_block + workgroup.x;
  let head = heads[workgroup.y];
  let count_at = head.z + params.q_blocks * params.room + block;
  if (head.w == 0u) {
    if (thread == 0u) {
      index[count_at] = 0u;
    }
    return;
  }
  let count = (params.q_offset + min((block + 1u) * INDEX_BLOCK, params.n_q) - 1u) / INDEX_BLOCK + 1u;
  let row = (workgroup.y * params.strip_rows + workgroup.x) * params.row_stride;
  var least = min(searches[workgroup.y].found, INFINITY_BITS);
  if (count_from(thread, row, count, least) > params.room) {
    // The least value that no more than `room` keys reach, bit by bit.
    var most = 0u;
    for (var bit = params.top_bit; bit > 0u; bit /= 2u) {
      if (count_from(thread, row, count, most | bit) > params.room) {
        most |= bit;
      }
    }
    least = most + 1u;
  }

  let out = head.z + block * params.room;
  var kept_before = 0u;
  for (var start = 0u; start < count; start += THREADS) {
    let i = start + thread;
    let keep = i < count && scores[row + min(i, count - 1u)] >= least;
    let end = prefix_sum(thread, select(0u, 1u, keep));
    let total = total_of(thread, end);
    if (keep) {
      index[out + kept_before + end - 1u] = i;
    }
    kept_before += total;
  }
  if (thread == 0u) {
    index[count_at] = kept_before;
  }
}
