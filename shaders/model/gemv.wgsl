// C[m, n] (+)= A[m, k] W[n, k]^T + bias[n] for few rows (M = m, 1 to 4): every weight is read once.
// With NORM = 1, A is the RMS norm of the residual stream X:   a_i = norm * x_i / sqrt(mean(x_i^2) + eps)
// With SWIGLU = 1:   C[m, n / 2] = silu(A Wg^T) * (A Wu^T),   Wg the first n / 2 rows of W, Wu those from params.up_start on.
//
// LANES threads share the columns of ROWS_W rows of W, TEAMS such groups make a workgroup. Each thread takes a run of GROUPS times 8
// columns at a time (runs_*.wgsl), and activations once for its rows. Of weights that share a scale, it sums products of what they
// are without:
//   sum of a_i (d q_i + m) = d (sum of a_i q_i) + m (sum of a_i)
// A row's partial sums meet in lane_sums of lane_sums_*.wgsl, and with NORM those of x_i^2: the root divides what comes out.
//
// Constants from the pipeline's prelude: M, ROWS_W (for SwiGLU half are rows of gate, and half the same of up), LANES, TEAMS, GROUPS, ADD
// (1: add to what C holds), HAS_BIAS, SWIGLU, NORM. Bindings: 0 params, 1 weights, 2 A or X in activations_*.wgsl, 3 bias, 4 C,
// 5 norm [k].
// Workgroups: n / (TEAMS * ROWS_W), rounded up, over x and y.

@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> c: array<Output>;
@group(0) @binding(5) var<storage, read> norm: array<vec4<f32>>;

const THREADS: u32 = LANES * TEAMS;
const ROWS: u32 = ROWS_W * M;
const SUMS: u32 = ROWS + NORM * M;
const PAIRS: u32 = ROWS_W / 2u;      // SwiGLU: rows of gate of a thread
// Groups of a thread that share a scale.
const SHARED: u32 = select(GROUPS, min(GROUPS, SPAN), SCALED == 1u);
const_assert SHARED == 1u || SHARED == 2u || SHARED == 4u;
const_assert GROUPS == SHARED || GROUPS == 2u * SHARED || GROUPS == 4u * SHARED;

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

// What a thread adds up. Of a span, `part` is of the weights without their scale.
struct Sums {
  all: array<f32, SUMS>,
  part: array<f32, ROWS>,
  activations: array<f32, M>,
}

// Adds up group g of a run.
fn add_group(g: u32, run: u32, w: ptr<function, array<Run, ROWS_W>>, sum: ptr<function, Sums>) {
  let group = run * GROUPS + g;
  var x: array<Eight, M>;
  for (var i = 0u; i < M; i++) {
    x[i] = load_activations(i, group);
    if (NORM == 1u) {
      (*sum).all[min(ROWS + i, SUMS - 1u)] += dot(x[i].lo, x[i].lo) + dot(x[i].hi, x[i].hi);
      x[i] = Eight(norm[2u * group] * x[i].lo, norm[2u * group + 1u] * x[i].hi);
    }
    if (HAS_MINIMUM == 1u) {
      (*sum).activations[i] += total(x[i]);
    }
  }
  for (var r = 0u; r < ROWS_W; r++) {
    let q = run_quants((*w)[r], g);
    for (var i = 0u; i < M; i++) {
      (*sum).part[r * M + i] += dot(q.lo, x[i].lo) + dot(q.hi, x[i].hi);
    }
  }
}

// Adds up groups s to s + SHARED - 1 of a run, which share a scale. Call by call, as what calls it: drivers leave a loop around
// this much as it is, and then have to choose among registers.
fn add_span(s: u32, run: u32, w: ptr<function, array<Run, ROWS_W>>, sum: ptr<function, Sums>) {
  (*sum).part = array<f32, ROWS>();
  (*sum).activations = array<f32, M>();
  add_group(s, run, w, sum);
  if (SHARED > 1u) {
    add_group(s + 1u, run, w, sum);
  }
  if (SHARED > 2u) {
    add_group(s + 2u, run, w, sum);
    add_group(s + 3u, run, w, sum);
  }
  for (var r = 0u; r < ROWS_W; r++) {
    let scale = run_scale((*w)[r], s);
    for (var i = 0u; i < M; i++) {
      if (SCALED == 0u) {
        (*sum).all[r * M + i] += (*sum).part[r * M + i];
      } else {
        (*sum).all[r * M + i] += scale.d * (*sum).part[r * M + i];
      }
      if (HAS_MINIMUM == 1u) {
        (*sum).all[r * M + i] += scale.m * (*sum).activations[i];
      }
    }
  }
}

@compute @workgroup_size(LANES, TEAMS)
fn main(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) workgroups: vec3<u32>,
  @builtin(local_invocation_id) local: vec3<u32>,
) {
  let tx = local.x;
  let ty = local.y;
  let first = ((workgroup.y * workgroups.x + workgroup.x) * TEAMS + ty) * ROWS_W;
  var sums: Sums;
  for (var run = tx; run < params.k / (8u * GROUPS); run += LANES) {
    var w: array<Run, ROWS_W>;
    for (var r = 0u; r < ROWS_W; r++) {
      w[r] = load_run(weight_row(first, r), run);
    }
    add_span(0u, run, &w, &sums);
    if (GROUPS > SHARED) {
      add_span(SHARED, run, &w, &sums);
    }
    if (GROUPS > 2u * SHARED) {
      add_span(2u * SHARED, run, &w, &sums);
      add_span(3u * SHARED, run, &w, &sums);
    }
  }
  var sum = sums.all;
  lane_sums(&sum, ty * LANES + tx);
  if (NORM == 1u) {
    for (var i = 0u; i < M; i++) {
      let scale = inverseSqrt(sum[min(ROWS + i, SUMS - 1u)] / f32(params.k) + params.eps);
      for (var r = 0u; r < ROWS_W; r++) {
        sum[r * M + i] *= scale;
      }
    }
  }
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
