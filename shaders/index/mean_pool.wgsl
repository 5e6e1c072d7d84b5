// Means of blocks of 64 rows of q or k, the block-sparse estimate's pooled tensors (MInference section 3.2).
//
//   pooled[h, b] = mean over the real rows i of [64 b, 64 b + 64) of x[h, i]
//
// Grid: x + y * (workgroups in x) = block, z = head. Bindings:
//   0  params
//   1  x            the tensor, read through strides
//   2  heads        [heads] head of the tensor
//   3  pooled       [heads, blocks, HEAD_DIM] f32; with SPLIT = 1 [heads, blocks, (hi, lo), HEAD_DIM] f16, whose sum is the mean
// Constants from the pipeline's prelude: HEAD_DIM, SPLIT.

struct PoolParams {
  rows: u32,
  blocks: u32,
  base: u32,          // base and strides count vec4 elements, the base modulo 2^32
  head_stride: u32,
  row_stride: u32,
}

@group(0) @binding(0) var<uniform> params: PoolParams;
@group(0) @binding(1) var<storage, read> x: array<StorageVec4>;
@group(0) @binding(2) var<storage, read> heads: array<u32>;
@group(0) @binding(3) var<storage, read_write> pooled: array<vec2<u32>>;

const INDEX_BLOCK: u32 = 64u;
const THREADS: u32 = 256u;
const D4: u32 = HEAD_DIM / 4u;
const LANES: u32 = THREADS / D4;      // rows that are read at a time

var<workgroup> lane_sums: array<vec4<f32>, THREADS>;

@compute @workgroup_size(THREADS)
fn main(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) grid: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let block = workgroup.y * grid.x + workgroup.x;
  if (block >= params.blocks) {
    return;
  }
  let lane = thread / D4;
  let d = thread % D4;
  let start = params.base + heads[workgroup.z] * params.head_stride + d;
  let first_row = block * INDEX_BLOCK;
  let end_row = min(first_row + INDEX_BLOCK, params.rows);
  var sum = vec4<f32>();
  if (lane < LANES) {
    for (var row = first_row + lane; row < end_row; row += LANES) {
      sum += unpack_vec4(x[start + row * params.row_stride]);
    }
  }
  lane_sums[thread] = sum;
  workgroupBarrier();
  if (lane == 0u) {
    for (var i = 1u; i < LANES; i++) {
      sum += lane_sums[i * D4 + d];
    }
    let mean = sum * (1.0 / f32(end_row - first_row));
    let at = (workgroup.z * params.blocks + block) * 2u * D4;
    if (SPLIT == 1u) {
      // The leading 11 bits, which f16 holds as they are: some compilers take unpacking what was packed for nothing done.
      let hi = bitcast<vec4<f32>>(bitcast<vec4<u32>>(mean) & vec4<u32>(0xffffe000u));
      let lo = mean - hi;
      pooled[at + d] = vec2<u32>(pack2x16float(hi.xy), pack2x16float(hi.zw));
      pooled[at + D4 + d] = vec2<u32>(pack2x16float(lo.xy), pack2x16float(lo.zw));
    } else {
      let bits = bitcast<vec4<u32>>(mean);
      pooled[at + 2u * d] = bits.xy;
      pooled[at + 2u * d + 1u] = bits.zw;
    }
  }
}
