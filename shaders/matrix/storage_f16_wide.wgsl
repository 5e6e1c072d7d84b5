// Tensors stored as f16 whose rows all start on 16 bytes: eight consecutive elements of a row are one
// vec4<u32>, moved to and from workgroup memory without conversion. `at` counts groups of 4 elements and is even.
alias StorageVec4 = vec4<u32>;

fn load_q(at: u32) -> vec4<u32> {
  return q[at >> 1u];
}

// Word d of a key's row: eight elements. Halves of what a loop does not change are taken before it.
fn load_k(k_head: u32, key: u32, d: u32) -> vec4<u32> {
  return k[(k_head >> 1u) + key * (params.k_row_stride >> 1u) + d];
}

fn load_v(v_head: u32, key: u32, d: u32) -> vec4<u32> {
  return v[(v_head >> 1u) + key * (params.v_row_stride >> 1u) + d];
}

fn load_o(at: u32) -> vec4<u32> {
  return o[at >> 1u];
}

fn store_o(at: u32, a: vec4<f32>, b: vec4<f32>) {
  o[at >> 1u] = pack_halves(a, b);
}
