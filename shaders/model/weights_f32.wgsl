// Weights [n, k] in f32.
@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>;

const SPAN: u32 = 1u;
const SCALED: u32 = 0u;
const HAS_MINIMUM: u32 = 0u;

fn load_scale(row: u32, group: u32) -> Scale {
  return Scale(1.0, 0.0);
}

fn load_quants(row: u32, group: u32) -> Eight {
  let at = (row * (params.k / 8u) + group) * 2u;
  return Eight(weights[at], weights[at + 1u]);
}
