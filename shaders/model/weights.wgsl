// What the weights_*.wgsl files share: a row of [n, k] is groups of 8 neighbouring weights, of which SPAN share a scale.
//   w_i = d q_i + m
// Each file defines load_quants(row, group): q of columns 8 * group to 8 * group + 7, and load_scale(row, group): d and m.
// Those with blocks also say how large these are, for weights_blocks.wgsl. SCALED = 0: q are the weights themselves. HAS_MINIMUM = 0: m
// is 0. k (params.k) is a multiple of 32, or of 256 for the types with such blocks.

struct Eight {
  lo: vec4<f32>,
  hi: vec4<f32>,
}

struct Scale {
  d: f32,
  m: f32,
}

// The 8 weights of a group.
fn load_weights(row: u32, group: u32) -> Eight {
  let q = load_quants(row, group);
  if (SCALED == 0u) {
    return q;
  }
  let scale = load_scale(row, group);
  return Eight(scale.d * q.lo + scale.m, scale.d * q.hi + scale.m);
}

fn halves_of(w: Eight) -> vec4<u32> {
  return vec4<u32>(pack2x16float(w.lo.xy), pack2x16float(w.lo.zw), pack2x16float(w.hi.xy), pack2x16float(w.hi.zw));
}

// The f16 in the low 16 bits. (unpack2x16float may flush subnormal values, which small block scales are.)
fn half(bits: u32) -> f32 {
  // 2^-14 (1 + x / 1024) - 2^-14
  let tiny = bitcast<f32>(0x38800000u | ((bits & 0x3ffu) << 13u)) - 6.103515625e-5;
  let subnormal = select(tiny, -tiny, (bits & 0x8000u) != 0u);
  return select(unpack2x16float(bits).x, subnormal, (bits & 0x7c00u) == 0u);
}

// GPUs turn integers into floats slowly. As the low bits of the f32 2^23 they are added to it, exactly.
const MAGIC: u32 = 0x4b000000u;

// An integer below 2^23.
fn whole(x: u32) -> f32 {
  return bitcast<f32>(MAGIC | x) - 8388608.0;
}

// Four bytes, less `zero`: exactly, since every step is. The odd ones stay where they are, 256 times as large.
fn bytes(x: u32, zero: f32) -> vec4<f32> {
  let high = x >> 16u;
  let bits = (vec4<u32>(x, x, high, high) & vec4<u32>(0xffu, 0xff00u, 0xffu, 0xff00u)) | vec4<u32>(MAGIC);
  return bitcast<vec4<f32>>(bits) * vec4<f32>(1.0, 0.00390625, 1.0, 0.00390625)
    - (vec4<f32>(8388608.0, 32768.0, 8388608.0, 32768.0) + zero);
}
