// FlexPrefill's choice of a pattern for each head (arXiv 2502.20766, algorithm 2), by its last R = min(64, N) query rows.
//
//   true[c]      = mean_r sum_(j in block c) A[r, j]                         attention that key block c really gets
//   estimated[c] = softmax_c(scale * mean_r(q[r]) . kbar[c])                 what pooled q and k say of it
//   distance     = sqrt(JSD(true, estimated)),   JSD(p, e) = KL(p, m) / 2 + KL(e, m) / 2,   m = (p + e) / 2
//
// A head whose distance is below tau is query-aware: pooled q and k can be trusted to find its blocks. Else it is
// vertical-slash. The searches of the pattern that was not chosen do not run.
//
// Grid: x = head, one workgroup each. Bindings:
//   0  params
//   1  q               read through strides
//   2  kbar            [key head slots, k_blocks, HEAD_DIM] f32
//   3  heads
//   4  scores          [heads, 2, score_stride]; the first of the two lists is the sums of A along columns
//   5  chosen          (slot in qbar, slot in kbar, first u32 of the head's blocks in the index,
//                       0: vertical-slash, or 1 + key blocks before the diagonal that every row block keeps)
//   6  searches        [heads, 4]: columns by sum, by count, diagonals by sum, by count
//   7  block_searches  [heads]
// Constant from the pipeline's prelude: HEAD_DIM. lib/merge_statistics.wgsl has merge.

struct DecideParams {
  rows: u32,             // R
  first_row: u32,        // query row that is row 0 here
  blocks: u32,           // key blocks that any row sees
  k_blocks: u32,         // key blocks in kbar
  score_stride: u32,     // a multiple of 128
  scale_log2: f32,       // softmax scale times log2(e)
  q_base: u32,           // base and strides count vec4 elements, the base modulo 2^32
  q_head_stride: u32,
  q_row_stride: u32,
}

struct Head {
  head: u32,             // query head
  kbar_slot: u32,
  blocks_offset: u32,    // first u32 of the head's blocks in the index
  tau: f32,
  sum_slack: u32,        // slack of columns and diagonals, see lib/index_cumulative.wgsl
  count_slack: u32,      // columns and diagonals that may be left out
  block_slack: u32,
  near: u32,             // key blocks before the diagonal that every row block keeps
}

@group(0) @binding(0) var<uniform> params: DecideParams;
@group(0) @binding(1) var<storage, read> q: array<StorageVec4>;
@group(0) @binding(2) var<storage, read> kbar: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> heads: array<Head>;
@group(0) @binding(4) var<storage, read> scores: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> chosen: array<vec4<u32>>;
@group(0) @binding(6) var<storage, read_write> searches: array<vec4<u32>>;
@group(0) @binding(7) var<storage, read_write> block_searches: array<vec4<u32>>;

const THREADS: u32 = 256u;
const D4: u32 = HEAD_DIM / 4u;
const BLOCK4: u32 = 16u;
const M_START: f32 = -1e30;

var<workgroup> q_mean: array<vec4<f32>, D4>;
// Estimated score of a key block, times log2(e).
fn block_logit(slot: u32, block: u32) -> f32 {
  let at = (slot * params.k_blocks + block) * D4;
  var sum = vec4<f32>();
  for (var d = 0u; d < D4; d++) {
    sum = fma(q_mean[d], kbar[at + d], sum);
  }
  return ((sum.x + sum.y) + (sum.z + sum.w)) * params.scale_log2;
}

// p * ln(p / m)
fn divergence(p: f32, m: f32) -> f32 {
  return select(0.0, p * log(p / m), p > 0.0);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let slot = workgroup.x;
  let head = heads[slot];
  if (thread < D4) {
    let at = params.q_base + head.head * params.q_head_stride + params.first_row * params.q_row_stride + thread;
    var sum = vec4<f32>();
    for (var row = 0u; row < params.rows; row++) {
      sum += unpack_vec4(q[at + row * params.q_row_stride]);
    }
    q_mean[thread] = sum / f32(params.rows);
  }
  workgroupBarrier();

  var own = vec2<f32>(M_START, 0.0);
  for (var block = thread; block < params.blocks; block += THREADS) {
    let x = block_logit(head.kbar_slot, block);
    let m = max(own.x, x);
    own = vec2<f32>(m, own.y * exp2(own.x - m) + exp2(x - m));
  }
  let all = merge(thread, own);

  var jsd = 0.0;
  for (var block = thread; block < params.blocks; block += THREADS) {
    let estimated = exp2(block_logit(head.kbar_slot, block) - all.x) / all.y;
    var sum = vec4<f32>();
    for (var i = 0u; i < BLOCK4; i++) {
      sum += scores[2u * slot * (params.score_stride / 4u) + block * BLOCK4 + i];
    }
    let real = ((sum.x + sum.y) + (sum.z + sum.w)) / f32(params.rows);
    let m = 0.5 * (real + estimated);
    jsd += 0.5 * (divergence(real, m) + divergence(estimated, m));
  }
  let distance = sqrt(max(0.0, merge(thread, vec2<f32>(0.0, jsd)).y));

  if (thread == 0u) {
    let aware = select(0u, 1u, distance < head.tau);
    chosen[slot] = vec4<u32>(slot, head.kbar_slot, head.blocks_offset, aware * (1u + head.near));
    for (var list = 0u; list < 4u; list++) {
      let slack = select(head.sum_slack, head.count_slack, list % 2u == 1u);
      searches[4u * slot + list] = vec4<u32>(0u, 0u, slack, 1u - aware);
    }
    block_searches[slot] = vec4<u32>(0u, 0u, head.block_slack, aware);
  }
}
