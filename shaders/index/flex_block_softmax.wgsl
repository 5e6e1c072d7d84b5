// FlexPrefill's block scores of query-aware heads (arXiv 2502.20766, algorithm 4): the softmax of each row block over the
// key blocks that it sees, in place.
//
//   p[b, c] = softmax_c(scale * qbar[b] . kbar[c])    0 for blocks that no row of b sees
//   +inf for key block 0 and for the nearest: the diagonal, key blocks that hold a row of b, and `near` before it
//
// Grid: x = row block of the strip, y = head. Bindings:
//   0  params
//   1  heads    (unused, unused, unused, 0: skip this head, else 1 + near)
//   2  scores   [heads, strip_rows, row_stride] bits of f32
// lib/merge_statistics.wgsl has merge.

struct SoftmaxParams {
  first_block: u32,      // first row block of the strip
  strip_rows: u32,
  row_stride: u32,
  q_offset: u32,
  n_q: u32,
  scale_log2: f32,       // softmax scale times log2(e)
}

@group(0) @binding(0) var<uniform> params: SoftmaxParams;
@group(0) @binding(1) var<storage, read> heads: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> scores: array<u32>;

const THREADS: u32 = 256u;
const INDEX_BLOCK: u32 = 64u;
const INFINITY_BITS: u32 = 0x7f800000u;
const M_START: f32 = -1e30;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let chosen = heads[workgroup.y].w;
  if (chosen == 0u) {
    return;
  }
  let first_row = (params.first_block + workgroup.x) * INDEX_BLOCK;
  let diagonal = (params.q_offset + first_row) / INDEX_BLOCK;
  let count = (params.q_offset + min(first_row + INDEX_BLOCK, params.n_q) - 1u) / INDEX_BLOCK + 1u;
  let row = (workgroup.y * params.strip_rows + workgroup.x) * params.row_stride;

  var own = vec2<f32>(M_START, 0.0);
  for (var i = thread; i < count; i += THREADS) {
    let x = bitcast<f32>(scores[row + i]) * params.scale_log2;
    let m = max(own.x, x);
    own = vec2<f32>(m, own.y * exp2(own.x - m) + exp2(x - m));
  }
  let all = merge(thread, own);
  let lse2 = all.x + log2(all.y);
  for (var i = thread; i < params.row_stride; i += THREADS) {
    var bits = 0u;
    if (i < count) {
      let p = exp2(bitcast<f32>(scores[row + i]) * params.scale_log2 - lse2);
      bits = select(bitcast<u32>(p), INFINITY_BITS, i == 0u || i + chosen > diagonal);
    }
    scores[row + i] = bits;
  }
}
