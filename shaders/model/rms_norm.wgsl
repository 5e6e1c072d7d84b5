// y[i, :] = w * x[row_start + i, :] / sqrt(mean(x[row_start + i, :]^2) + eps): the f32 residual stream to activations.
//
// Constant from the pipeline's prelude: THREADS. Bindings: 0 params, 1 x [., k] f32, 2 w [k] f32, 3 y [m, k].
// Workgroups: m.

struct NormParams {
  k: u32,                // a multiple of 4
  row_start: u32,
  eps: f32,
}

@group(0) @binding(0) var<uniform> params: NormParams;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<Output>>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let k4 = params.k / 4u;
  let source = (params.row_start + workgroup.x) * k4;
  var squares = 0.0;
  for (var i = thread; i < k4; i += THREADS) {
    squares += dot(x[source + i], x[source + i]);
  }
  let scale = inverseSqrt(workgroup_sum(squares, thread) / f32(params.k) + params.eps);
  for (var i = thread; i < k4; i += THREADS) {
    y[workgroup.x * k4 + i] = pack_output(x[source + i] * scale * w[i]);
  }
}
