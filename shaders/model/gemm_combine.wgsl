// Sums what workgroups made of shares of the columns of A and W (split-K), and finishes the product:
//
//   C[m, n] (+)= sum_s partial[s, m, n] + bias[n],   or, of gate and up four rows of each in turn,
//   C[m, n / 2] = silu(gate) * up
//
// One thread makes one element of C. Constants from the pipeline's prelude: ADD (1: add to what C holds), HAS_BIAS, SWIGLU; the alias
// Output and to_output from output_*.wgsl.
// Bindings: 0 params, 1 partial [splits, m, n] f32, 2 bias, 3 C. Workgroups: elements of C / 256, along x and y.

struct CombineParams {
  m: u32,
  n: u32,                // columns of partial
  splits: u32,
  c_base: u32,           // column of C that the first one gives; counts elements, as the stride does
  c_stride: u32,
}

@group(0) @binding(0) var<uniform> params: CombineParams;
@group(0) @binding(1) var<storage, read> partial: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> c: array<Output>;

fn total(at: u32) -> f32 {
  var sum = 0.0;
  for (var s = 0u; s < params.splits; s++) {
    sum += partial[s * params.m * params.n + at];
  }
  return sum;
}

@compute @workgroup_size(256)
fn main(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) workgroups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let columns = select(params.n, params.n / 2u, SWIGLU == 1u);
  let i = (workgroup.y * workgroups.x + workgroup.x) * 256u + thread;
  let row = i / columns;
  let column = i % columns;
  if (row >= params.m) {
    return;
  }
  let at = row * params.c_stride + params.c_base + column;
  if (SWIGLU == 1u) {
    let pair = row * params.n + column / 4u * 8u + column % 4u;
    let gate = total(pair);
    c[at] = to_output(gate / (1.0 + exp(-gate)) * total(pair + 4u));
    return;
  }
  var x = total(row * params.n + column);
  if (HAS_BIAS == 1u) {
    x += bias[params.c_base + column];
  }
  if (ADD == 1u) {
    x += f32(c[at]);
  }
  c[at] = to_output(x);
}
