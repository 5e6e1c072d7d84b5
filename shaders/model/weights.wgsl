// What the weights_*.wgsl files share. Each defines load_weights(row, group): the 8 weights of a row of [n, k] from
// column 8 * group on, as f32. k (params.k) is a multiple of 32, or of 256 for the types with such blocks.

struct Eight {
  lo: vec4<f32>,
  hi: vec4<f32>,
}

fn halves_of(w: Eight) -> vec4<u32> {
  return vec4<u32>(pack2x16float(w.lo.xy), pack2x16float(w.lo.zw), pack2x16float(w.hi.xy), pack2x16float(w.hi.zw));
}

// The f16 in the low 16 bits. (unpack2x16float may flush subnormal values, which small block scales are.)
fn half(bits: u32) -> f32 {
  let tiny = select(1.0, -1.0, (bits & 0x8000u) != 0u) * f32(bits & 0x3ffu) * 5.9604644775390625e-8;
  return select(unpack2x16float(bits).x, tiny, (bits & 0x7c00u) == 0u);
}

fn unsigned_bytes(x: u32) -> vec4<f32> {
  return vec4<f32>((vec4<u32>(x) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u));
}

fn signed_bytes(x: u32) -> vec4<f32> {
  return vec4<f32>(vec4<i32>(vec4<u32>(x) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}

// The low nibbles of four bytes.
fn nibbles(x: u32) -> vec4<f32> {
  return unsigned_bytes(x & 0x0f0f0f0fu);
}
