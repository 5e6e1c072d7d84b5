// Weights [n, k] in f32.
@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>;

fn load_quants(row: u32, group: u32) -> Eight {
  let at = (row * (params.k / 8u) + group) * 2u;
  return Eight(weights[at], weights[at + 1u]);
}
