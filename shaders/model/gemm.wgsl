// C[m, n] (+)= A[m, k] W[n, k]^T + bias[n] for many rows, f32 arithmetic.
//
// A workgroup of TY x TX threads computes BLOCK_M x BLOCK_N elements. A and W are staged through workgroup memory DEPTH
// columns at a time, W dequantised on its way. Thread (ty, tx) holds rows ty + r * TY (r < ROWS) and columns
// tx + c * TX (c < COLS) of C in registers, and multiplies four columns of A and W at a time.
//
// Constants from the pipeline's prelude: BLOCK_M, BLOCK_N, TX, TY, DEPTH, ADD (1: add to what C holds), HAS_BIAS; the aliases
// Activation and TileVec4 say how A is stored and staged.
// Bindings: 0 params, 1 weights, 2 A, 3 bias, 4 C. Workgroups: (m / BLOCK_M, n / BLOCK_N), rounded up.

@group(0) @binding(2) var<storage, read> a: array<vec4<Activation>>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> c: array<Output>;

const ROWS: u32 = BLOCK_M / TY;
const COLS: u32 = BLOCK_N / TX;
const THREADS: u32 = TX * TY;
const DEPTH4: u32 = DEPTH / 4u;
const STRIDE: u32 = DEPTH4 + 1u;      // padded: neighbouring rows fall into different banks

var<workgroup> a_tile: array<TileVec4, BLOCK_M * STRIDE>;
var<workgroup> w_tile: array<TileVec4, BLOCK_N * STRIDE>;

fn dot_add(x: vec4<f32>, y: vec4<f32>, sum: f32) -> f32 {
  return fma(x.w, y.w, fma(x.z, y.z, fma(x.y, y.y, fma(x.x, y.x, sum))));
}

@compute @workgroup_size(TX, TY)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
  let tx = local.x;
  let ty = local.y;
  let thread = ty * TX + tx;
  let row0 = workgroup.x * BLOCK_M;
  let column0 = workgroup.y * BLOCK_N;

  // Rows and columns past the end repeat the last one; their results are not stored.
  var sum: array<f32, ROWS * COLS>;
  for (var k0 = 0u; k0 < params.k; k0 += DEPTH) {
    workgroupBarrier();
    for (var i = thread; i < BLOCK_M * DEPTH4; i += THREADS) {
      let row = min(row0 + i / DEPTH4, params.m - 1u);
      a_tile[(i / DEPTH4) * STRIDE + i % DEPTH4] =
        TileVec4(vec4<f32>(a[params.a_base + row * params.a_stride + k0 / 4u + i % DEPTH4]));
    }
    for (var i = thread; i < BLOCK_N * DEPTH4 / 2u; i += THREADS) {
      let column = min(column0 + i / (DEPTH4 / 2u), params.n - 1u);
      let group = i % (DEPTH4 / 2u);
      let w = load_weights(column, k0 / 8u + group);
      let at = (i / (DEPTH4 / 2u)) * STRIDE + 2u * group;
      w_tile[at] = TileVec4(w.lo);
      w_tile[at + 1u] = TileVec4(w.hi);
    }
    workgroupBarrier();
    for (var d = 0u; d < DEPTH4 * params.unit; d++) {
      var w: array<vec4<f32>, COLS>;
      for (var j = 0u; j < COLS; j++) {
        w[j] = vec4<f32>(w_tile[(tx + j * TX) * STRIDE + d]);
      }
      for (var r = 0u; r < ROWS; r++) {
        let x = vec4<f32>(a_tile[(ty + r * TY) * STRIDE + d]);
        for (var j = 0u; j < COLS; j++) {
          sum[r * COLS + j] = dot_add(x, w[j], sum[r * COLS + j]);
        }
      }
    }
  }

  for (var r = 0u; r < ROWS; r++) {
    let row = row0 + ty + r * TY;
    for (var j = 0u; j < COLS; j++) {
      let column = column0 + tx + j * TX;
      if (row < params.m && column < params.n) {
        let at = row * params.c_stride + params.c_base + column;
        var x = sum[r * COLS + j];
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
