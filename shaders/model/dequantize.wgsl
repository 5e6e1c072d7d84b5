// Weights as f16:   out[to_row + r, c] = f16(W[first_row + r, c])
// W [., k] in the type of binding 1 (one of the weights_*.wgsl files), out [., k]. n rows. An invocation does 8 columns.

struct DequantizeParams {
  n: u32,
  k: u32,                // a multiple of 32
  first_row: u32,
  to_row: u32,
}

@group(0) @binding(0) var<uniform> params: DequantizeParams;
@group(0) @binding(2) var<storage, read_write> halves: array<vec4<u32>>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
  let at = (workgroup.y * workgroups.x + workgroup.x) * 256u + thread;
  let groups = params.k / 8u;
  if (at >= params.n * groups) {
    return;
  }
  halves[params.to_row * groups + at] = halves_of(load_weights(params.first_row + at / groups, at % groups));
}
