// C[m, n] (+)= A[m, k] W[n, k]^T + bias[n] for many rows, f32 arithmetic.
//
// A workgroup of TY x TX threads computes BLOCK_M x BLOCK_N elements. A and W are staged through workgroup memory DEPTH
// columns at a time, W dequantised on its way, and transposed: four rows of one column are a vec4, so that a thread reads
// with two or four vec4 all that ROWS x COLS products need. Thread (ty, tx) holds rows 4 * (ty + g * TY) .. + 3 and columns
// 4 * (tx + g * TX) .. + 3 of C in registers. Neighbouring threads alternate between LANE_ROWS rows of threads, as in
// lib/flash_attention.wgsl.
//
// Constants from the pipeline's prelude: BLOCK_M, BLOCK_N, TX, TY, LANE_ROWS, DEPTH (8, 16 or 32), ADD (1: add to what C
// holds), HAS_BIAS; the alias Activation says how A is stored. UNIT: see withUnit in src/kernels/shader_text.ts.
// Workgroup memory: lib/stage_patch.wgsl.
// Bindings: 0 params, 1 weights, 2 A, 3 bias, 4 C. Workgroups: (m / BLOCK_M, n / BLOCK_N, k / k_share), rounded up; where these are
// several, C is [k / k_share, m, n] f32, which gemm_combine.wgsl sums.

@group(0) @binding(2) var<storage, read> a: array<vec4<Activation>>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> c: array<Output>;

const ROW_VECS: u32 = BLOCK_M / TY / 4u;
const COL_VECS: u32 = BLOCK_N / TX / 4u;
const THREADS: u32 = TX * TY;
const DEPTH4: u32 = DEPTH / 4u;
const DEPTH8: u32 = DEPTH / 8u;
const A_STRIDE: u32 = BLOCK_M / 4u;
const W_STRIDE: u32 = BLOCK_N / 4u;
// What a thread stages at a time: four rows of A and four columns of them, four rows of W and eight columns.
const A_PATCHES: u32 = A_STRIDE * DEPTH4;
const W_PATCHES: u32 = W_STRIDE * DEPTH8;
const A_TURNS: u32 = (A_PATCHES + THREADS - 1u) / THREADS;
const W_TURNS: u32 = (W_PATCHES + THREADS - 1u) / THREADS;
// From four columns to the next four. Neighbours stage different columns of the same rows: padded, they fall into different banks.
const PAD: u32 = 8u / DEPTH4;
const A_GROUP: u32 = 4u * A_STRIDE + PAD;
const W_GROUP: u32 = 4u * W_STRIDE + PAD;

// Where W begins in workgroup memory; A is in front.
const W_AT: u32 = DEPTH4 * A_GROUP;
const STAGE_SIZE: u32 = W_AT + DEPTH4 * W_GROUP;

fn load_a(row: u32, group: u32) -> vec4<f32> {
  return vec4<f32>(a[params.a_base + min(row, params.m - 1u) * params.a_stride + group]);
}

// Stages DEPTH columns of A and W, from k0 on.
fn stage_tiles(thread: u32, row0: u32, column0: u32, k0: u32) {
  for (var turn = 0u; turn < A_TURNS * UNIT; turn++) {
    let i = thread + turn * THREADS;
    if (A_PATCHES % THREADS == 0u || i < A_PATCHES) {
      let rows = i / DEPTH4;
      let group = i % DEPTH4;
      let row = row0 + 4u * rows;
      let at = k0 / 4u + group;
      stage_patch(
        group * A_GROUP + rows, A_STRIDE,
        load_a(row, at), load_a(row + 1u, at), load_a(row + 2u, at), load_a(row + 3u, at));
    }
  }
  for (var turn = 0u; turn < W_TURNS * UNIT; turn++) {
    // First those threads that had no rows of A.
    let i = (thread + THREADS - A_PATCHES % THREADS) % THREADS + turn * THREADS;
    if (W_PATCHES % THREADS == 0u || i < W_PATCHES) {
      let rows = i / DEPTH8;
      let group = i % DEPTH8;
      let x0 = load_weights(min(column0 + 4u * rows, params.n - 1u), k0 / 8u + group);
      let x1 = load_weights(min(column0 + 4u * rows + 1u, params.n - 1u), k0 / 8u + group);
      let x2 = load_weights(min(column0 + 4u * rows + 2u, params.n - 1u), k0 / 8u + group);
      let x3 = load_weights(min(column0 + 4u * rows + 3u, params.n - 1u), k0 / 8u + group);
      let at = W_AT + 2u * group * W_GROUP + rows;
      stage_patch(at, W_STRIDE, x0.lo, x1.lo, x2.lo, x3.lo);
      stage_patch(at + W_GROUP, W_STRIDE, x0.hi, x1.hi, x2.hi, x3.hi);
    }
  }
}

@compute @workgroup_size(LANE_ROWS, TX, TY / LANE_ROWS)
fn main(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(local_invocation_id) local: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let tx = local.y;
  let ty = local.z * LANE_ROWS + local.x;
  let row0 = workgroup.x * BLOCK_M;
  let column0 = workgroup.y * BLOCK_N;

  // Rows and columns past the end repeat the last one; their results are not stored.
  var sum: array<vec4<f32>, 4u * ROW_VECS * COL_VECS>;
  let k_begin = workgroup.z * params.k_share;
  let k_end = min(k_begin + params.k_share, params.k);
  for (var k0 = k_begin; k0 < k_end; k0 += DEPTH) {
    workgroupBarrier();
    stage_tiles(thread, row0, column0, k0);
    workgroupBarrier();
    for (var group = 0u; group < DEPTH4 * UNIT; group++) {
      for (var e = 0u; e < 4u; e++) {
        var w: array<vec4<f32>, COL_VECS>;
        for (var j = 0u; j < COL_VECS; j++) {
          w[j] = stage[W_AT + group * W_GROUP + e * W_STRIDE + tx + j * TX];
        }
        for (var g = 0u; g < ROW_VECS; g++) {
          let x = stage[group * A_GROUP + e * A_STRIDE + ty + g * TY];
          let at = 4u * g * COL_VECS;
          for (var r = 0u; r < 4u; r++) {
            for (var j = 0u; j < COL_VECS; j++) {
              sum[at + r * COL_VECS + j] = fma(vec4<f32>(x[r]), w[j], sum[at + r * COL_VECS + j]);
            }
          }
        }
      }
    }
  }

  for (var r = 0u; r < 4u * ROW_VECS; r++) {
    let row = row0 + 4u * (ty + r / 4u * TY) + r % 4u;
    for (var j = 0u; j < COL_VECS; j++) {
      for (var i = 0u; i < 4u; i++) {
        let column = column0 + 4u * (tx + j * TX) + i;
        if (row < params.m && column < params.n) {
          let at = (workgroup.z * params.m + row) * params.c_stride + params.c_base + column;
          var x = sum[r * COL_VECS + j][i];
          if (HAS_BIAS == 1u) {
            x += bias[params.c_base + column];
          }
          if (ADD == 1u) {
            x += f32(c[at]);
          }
          c[at] = to_output(x);
        }
      }
    }
  }
}
