// C[m, n] (+)= A[m, k] W[n, k]^T + bias[n] for few rows (M = m, 1 to 4): every weight is read once.
// With SWIGLU = 1:   C[m, n / 2] = silu(A Wg^T) * (A Wu^T),   Wg the first n / 2 rows of W, Wu those from params.up_start on.
//
// TX threads share the columns of ROWS_W rows of W, TY such groups make a workgroup. Each thread dequantises GROUPS
// times 8 neighbouring weights at a time. A row's partial sums meet in row_sum of row_sum_*.wgsl.
//
// Constants from the pipeline's prelude: M, ROWS_W (2 for SwiGLU: a row of gate, and the same of up), TX, TY, GROUPS, ADD (1: add to
// what C holds), HAS_BIAS, SWIGLU. Bindings: 0 params, 1 weights, 2 A, 3 bias, 4 C. Workgroups: n / (TY * ROWS_W), rounded up, over
// x and y.

@group(0) @binding(2) var<storage, read> a: array<vec4<Activation>>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> c: array<Output>;

const ROWS: u32 = ROWS_W * M;

// Row r of those that a thread works on: neighbours, or a row of gate and the same of up.
fn weight_row(first: u32, r: u32) -> u32 {
  if (SWIGLU == 1u) {
    return min(first / ROWS_W, params.n / 2u - 1u) + r * params.up_start;
  }
  return min(first + r, params.n - 1u);
}

@compute @workgroup_size(TX, TY)
fn main(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) workgroups: vec3<u32>,
  @builtin(local_invocation_id) local: vec3<u32>,
) {
  let tx = local.x;
  let ty = local.y;
  let first = ((workgroup.y * workgroups.x + workgroup.x) * TY + ty) * ROWS_W;
  var sum: array<f32, ROWS>;
  for (var run = tx; run < params.k / (8u * GROUPS); run += TX) {
    for (var g = 0u; g < GROUPS; g++) {
      let group = run * GROUPS + g;
      for (var r = 0u; r < ROWS_W; r++) {
        let w = load_weights(weight_row(first, r), group);
        for (var i = 0u; i < M; i++) {
          let at = params.a_base + i * params.a_stride + 2u * group;
          sum[r * M + i] += dot(w.lo, vec4<f32>(a[at])) + dot(w.hi, vec4<f32>(a[at + 1u]));
        }
      }
    }
  }
  row_sum(&sum, tx, ty);
  if (SWIGLU == 1u) {
    if (tx == 0u && first < params.n) {
      for (var i = 0u; i < M; i++) {
        let gate = sum[i];
        c[i * params.c_stride + params.c_base + first / ROWS_W] = to_output(gate / (1.0 + exp(-gate)) * sum[(ROWS_W - 1u) * M + i]);
      }
    }
  } else if (tx == 0u) {
    for (var r = 0u; r < ROWS_W; r++) {
      for (var i = 0u; i < M; i++) {
        if (first + r < params.n) {
          let at = i * params.c_stride + params.c_base + first + r;
          var x = sum[r * M + i];
          if (HAS_BIAS == 1u) {
            x += bias[params.c_base + first + r];
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
