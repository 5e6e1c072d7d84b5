// Weights [n, k] in f16, read through core builtins so that every device can.
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;

fn load_quants(row: u32, group: u32) -> Eight {
  let x = weights[row * (params.k / 8u) + group];
  return Eight(
    vec4<f32>(unpack2x16float(x.x), unpack2x16float(x.y)),
    vec4<f32>(unpack2x16float(x.z), unpack2x16float(x.w)));
}
