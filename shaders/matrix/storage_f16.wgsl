// Tensors stored as f16 whose rows start on 8 bytes: four consecutive elements of a row are one vec2<u32>.
// `at` counts groups of 4 elements.
alias StorageVec4 = vec2<u32>;

fn load_q(at: u32) -> vec4<u32> {
  return vec4<u32>(q[at], q[at + 1u]);
}

// Word d of a key's row: eight elements.
fn load_k(k_head: u32, key: u32, d: u32) -> vec4<u32> {
  let at = k_head + key * params.k_row_stride + 2u * d;
  return vec4<u32>(k[at], k[at + 1u]);
}

fn load_v(v_head: u32, key: u32, d: u32) -> vec4<u32> {
  let at = v_head + key * params.v_row_stride + 2u * d;
  return vec4<u32>(v[at], v[at + 1u]);
}

fn load_o(at: u32) -> vec4<u32> {
  return vec4<u32>(o[at], o[at + 1u]);
}

fn store_o(at: u32, a: vec4<f32>, b: vec4<f32>) {
  let packed = pack_halves(a, b);
  o[at] = packed.xy;
  o[at + 1u] = packed.zw;
}
