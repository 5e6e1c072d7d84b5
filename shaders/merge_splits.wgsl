// Joins what several workgroups computed of the same rows, each for a share of the keys (Flash-Decoding, split-KV):
//
//   w_s = exp(lse_s - max_s lse_s),   o = sum_s w_s o_s / sum_s w_s,   lse = max_s lse_s + ln(sum_s w_s)
//
// A workgroup makes ITEMS vec4 of o; PARTS threads share each and take every PARTS-th split.
//
// Constants from the pipeline's prelude: HEAD_DIM, ITEMS, PARTS. From lib/storage_*.wgsl: StorageVec4, pack_vec4, unpack_vec4.
// Bindings: 0 params, 1 heads, 2 partial o [splits, split_heads, rows, D], 3 partial lse [splits, split_heads, rows], 4 o [H, n, D],
// 5 lse [H, n]. Bases and strides of o count vec4 elements; bases count from head 0, row 0 of the layer, modulo 2^32.
// Workgroups: vec4 of the rows / ITEMS, heads.

struct MergeParams {
  row0: u32,             // first row
  rows: u32,
  splits: u32,
  split_heads: u32,      // heads from one split's results to the next one's
  write_lse: u32,
  partial_base: u32,
  partial_lse_base: u32,
  o_base: u32,
  o_head_stride: u32,
  o_row_stride: u32,
  lse_base: u32,
  lse_head_stride: u32,
}

@group(0) @binding(0) var<uniform> params: MergeParams;
@group(0) @binding(1) var<storage, read> heads: array<HeadEntry>;
@group(0) @binding(2) var<storage, read> partial_o: array<StorageVec4>;
@group(0) @binding(3) var<storage, read> partial_lse: array<f32>;
@group(0) @binding(4) var<storage, read_write> o: array<StorageVec4>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;

const D4: u32 = HEAD_DIM / 4u;
const M_START: f32 = -1e30;   // above -inf, so that differences of splits that saw no key are no NaN
const MINUS_INFINITY: u32 = 0xff800000u;   // its bits: WGSL has no literal for it

// Sums of a thread's splits, relative to its own greatest lse.
var<workgroup> part_m: array<f32, PARTS * ITEMS>;
var<workgroup> part_l: array<f32, PARTS * ITEMS>;
var<workgroup> part_o: array<vec4<f32>, PARTS * ITEMS>;

@compute @workgroup_size(ITEMS, PARTS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
  let head = heads[workgroup.y].head;
  let item = workgroup.x * ITEMS + local.x;
  let is_real = item / D4 < params.rows;
  let row = params.row0 + min(item / D4, params.rows - 1u);
  let d = item % D4;
  let at = local.y * ITEMS + local.x;

  var m = M_START;
  var l = 0.0;
  var sum = vec4<f32>();
  for (var s = local.y; s < params.splits; s += PARTS) {
    let place = (s * params.split_heads + head) * params.rows + row;
    let lse_s = partial_lse[params.partial_lse_base + place];
    let m_new = max(m, lse_s);
    let w = exp(lse_s - m_new);
    let alpha = exp(m - m_new);
    sum = sum * alpha + w * unpack_vec4(partial_o[params.partial_base + place * D4 + d]);
    l = l * alpha + w;
    m = m_new;
  }
  part_m[at] = m;
  part_l[at] = l;
  part_o[at] = sum;
  workgroupBarrier();
  if (local.y == 0u && is_real) {
    for (var p = 1u; p < PARTS; p++) {
      m = max(m, part_m[p * ITEMS + local.x]);
    }
    l = 0.0;
    sum = vec4<f32>();
    for (var p = 0u; p < PARTS; p++) {
      let w = exp(part_m[p * ITEMS + local.x] - m);
      l += w * part_l[p * ITEMS + local.x];
      sum += w * part_o[p * ITEMS + local.x];
    }
    let seen = l > 0.0;
    o[params.o_base + head * params.o_head_stride + row * params.o_row_stride + d] = pack_vec4(sum * select(0.0, 1.0 / l, seen));
    if (d == 0u && params.write_lse != 0u) {
      lse[params.lse_base + head * params.lse_head_stride + row] =
        select(bitcast<f32>(MINUS_INFINITY * min(params.splits, 1u)), m + log(l), seen);
    }
  }
}
