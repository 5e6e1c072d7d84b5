// How far the sparse attention of one head is from the dense one.
//
//   recall of row i = exp(lse_sparse[i] - lse_dense[i])     share of the dense attention mass that is kept
//   per chunk of 64 rows: sum of recall, least recall, sum |o_sparse - o_dense|^2, sum |o_dense|^2
//
// Grid: x = chunk of 64 rows, from params.first_row on. Bindings:
//   0  params
//   1  o_dense, 2  o_sparse      one head each, rows of HEAD_DIM values
//   3  lse_dense, 4  lse_sparse  [rows] f32, natural logarithm
//   5  partial                   [chunks] vec4
//   6  recall                    [rows] f32
// Constant from the pipeline's prelude: HEAD_DIM.

struct CompareParams {
  rows: u32,
  first_row: u32,     // rows before it are left out of the sums
  dense_base: u32,    // bases count vec4 elements, lse bases f32 elements
  sparse_base: u32,
  dense_lse_base: u32,
  sparse_lse_base: u32,
}

@group(0) @binding(0) var<uniform> params: CompareParams;
@group(0) @binding(1) var<storage, read> o_dense: array<StorageVec4>;
@group(0) @binding(2) var<storage, read> o_sparse: array<StorageVec4>;
@group(0) @binding(3) var<storage, read> lse_dense: array<f32>;
@group(0) @binding(4) var<storage, read> lse_sparse: array<f32>;
@group(0) @binding(5) var<storage, read_write> partial: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> recall: array<f32>;

const ROWS: u32 = 64u;
const D4: u32 = HEAD_DIM / 4u;

var<workgroup> row_sums: array<vec4<f32>, ROWS>;

@compute @workgroup_size(ROWS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let row = workgroup.x * ROWS + thread;
  var sums = vec4<f32>(0.0, 1e30, 0.0, 0.0);
  if (row < params.rows) {
    let kept = exp(lse_sparse[params.sparse_lse_base + row] - lse_dense[params.dense_lse_base + row]);
    recall[row] = kept;
    if (row >= params.first_row) {
      sums = vec4<f32>(kept, kept, 0.0, 0.0);
      for (var d = 0u; d < D4; d++) {
        let a = unpack_vec4(o_dense[params.dense_base + row * D4 + d]);
        let b = unpack_vec4(o_sparse[params.sparse_base + row * D4 + d]);
        sums.z += dot(a - b, a - b);
        sums.w += dot(a, a);
      }
    }
  }
  row_sums[thread] = sums;
  workgroupBarrier();
  if (thread == 0u) {
    for (var i = 1u; i < ROWS; i++) {
      let other = row_sums[i];
      sums = vec4<f32>(sums.x + other.x, min(sums.y, other.y), sums.z + other.z, sums.w + other.w);
    }
    partial[workgroup.x] = sums;
  }
}
