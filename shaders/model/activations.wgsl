// Activations [m, k] of a product. params as in gemm_bindings.wgsl; the alias Activation says how they are stored.
@group(0) @binding(2) var<storage, read> a: array<vec4<Activation>>;

// Columns 8 * group to 8 * group + 7 of a row.
fn load_activations(row: u32, group: u32) -> Eight {
  let at = params.a_base + row * params.a_stride + 2u * group;
  return Eight(vec4<f32>(a[at]), vec4<f32>(a[at + 1u]));
}
