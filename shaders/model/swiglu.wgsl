// y = silu(gate) * up,   silu(x) = x / (1 + exp(-x))
//
// Bindings: 0 params, 1 gate and up side by side [m, 2 inner], 2 y [m, inner]. Workgroups: (ceil(inner / 4 / 64), m).

struct SwigluParams {
  inner: u32,            // a multiple of 4
}

@group(0) @binding(0) var<uniform> params: SwigluParams;
@group(0) @binding(1) var<storage, read> gate_up: array<vec4<Output>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<Output>>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let inner4 = params.inner / 4u;
  if (id.x < inner4) {
    let gate = vec4<f32>(gate_up[id.y * 2u * inner4 + id.x]);
    let up = vec4<f32>(gate_up[(id.y * 2u + 1u) * inner4 + id.x]);
    y[id.y * inner4 + id.x] = pack_output(gate / (1.0 + exp(-gate)) * up);
  }
}
