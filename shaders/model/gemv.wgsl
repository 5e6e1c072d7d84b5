// C[m, n] (+)= A[m, k] W[n, k]^T + bias[n] for few rows (M = m, 1 to 4): every weight is read once.
// With SWIGLU = 1:   C[m, n / 2] = silu(A Wg^T) * (A Wu^T),   Wg the first n / 2 rows of W, Wu those from params.up_start on.
//
// TX threads share the columns of ROWS_W rows of W, TY such groups make a workgroup. Each thread takes GROUPS times 8 neighbouring
// columns at a time, and activations once for its rows. Of weights that share a scale, it sums products of what they are without:
//   sum of a_i (d q_i + m) = d (sum of a_i q_i) + m (sum of a_i)
// A row's partial sums meet in row_sum of row_sum_*.wgsl.
//
// Constants from the pipeline's prelude: M, ROWS_W (for SwiGLU half are rows of gate, and half the same of up), TX, TY, GROUPS, ADD
// (1: add to what C holds), HAS_BIAS, SWIGLU. Bindings: 0 params, 1 weights, 2 A in activations_*.wgsl, 3 bias, 4 C.
// Workgroups: n / (TY * ROWS_W), rounded up, over x and y.

@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> c: array<Output>;

const ROWS: u32 = ROWS_W * M;
const PAIRS: u32 = ROWS_W / 2u;      // SwiGLU: rows of gate of a thread
// Groups of a thread that share a scale.
const SHARED: u32 = select(GROUPS, min(GROUPS, SPAN), SCALED == 1u);

// Row r of those that a thread works on: neighbours, or some of gate and the same of up.
fn weight_row(first: u32, r: u32) -> u32 {
  if (SWIGLU == 1u) {
    return min(first / 2u + r % PAIRS, params.n / 2u - 1u) + r / PAIRS * params.up_start;
  }
  return min(first + r, params.n - 1u);
}

fn total(x: Eight) -> f32 {
  let sums = x.lo + x.hi;
  return (sums.x + sums.y) + (sums.z + sums.w);
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
    for (var s = 0u; s < GROUPS; s += SHARED) {
      let group = run * GROUPS + s;
      // Sums of the weights without their scale. (Zeroed by name: Dawn zeroes variables of a loop only once.)
      var part = array<f32, ROWS>();
      var a_sum = array<f32, M>();
      for (var g = 0u; g < SHARED; g++) {
        var x: array<Eight, M>;
        for (var i = 0u; i < M; i++) {
          x[i] = load_activations(i, group + g);
          if (HAS_MINIMUM == 1u) {
            a_sum[i] += total(x[i]);
          }
        }
        for (var r = 0u; r < ROWS_W; r++) {
          let q = load_quants(weight_row(first, r), group + g);
          for (var i = 0u; i < M; i++) {
            part[r * M + i] += dot(q.lo, x[i].lo) + dot(q.hi, x[i].hi);
          }
        }
      }
      for (var r = 0u; r < ROWS_W; r++) {
        let scale = load_scale(weight_row(first, r), group);
        for (var i = 0u; i < M; i++) {
          if (SCALED == 0u) {
            sum[r * M + i] += part[r * M + i];
          } else {
            sum[r * M + i] += scale.d * part[r * M + i];
          }
          if (HAS_MINIMUM == 1u) {
            sum[r * M + i] += scale.m * a_sum[i];
          }
        }
      }
    }
  }
  row_sum(&sum, tx, ty);
  if (SWIGLU == 1u) {
    if (tx == 0u) {
      for (var r = 0u; r < PAIRS; r++) {
        let row = first / 2u + r;
        for (var i = 0u; i < M; i++) {
          if (row < params.n / 2u) {
            let gate = sum[r * M + i];
            let up = sum[(PAIRS + r) * M + i];
            c[i * params.c_stride + params.c_base + row] = to_output(gate / (1.0 + exp(-gate)) * up);
          }
        }
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
