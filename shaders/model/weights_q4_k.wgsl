// Weights [n, k] in blocks of 256 and 144 bytes: f16 d, f16 d_min, 12 bytes with a 6-bit scale s and minimum x for
// each of 8 sub-blocks of 32, then 128 bytes: each 32 of them are sub-blocks 2 j (low nibbles) and 2 j + 1 (high).
//   w_i = d s q_i - d_min x
// A block is nine 16-byte words: one that scales need, and eight of nibbles.
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;

const SPAN: u32 = 4u;
const SCALED: u32 = 1u;
const HAS_MINIMUM: u32 = 1u;

fn block_of(row: u32, group: u32) -> u32 {
  return (row * (params.k / 256u) + group / 32u) * 9u;
}

fn load_scale(row: u32, group: u32) -> Scale {
  return scale_of(weights[block_of(row, group)], group / 4u % 8u);
}

// The scale of a sub-block, from a block's first word.
fn scale_of(head: vec4<u32>, sub: u32) -> Scale {
  // Sub-blocks 0 to 3: 6 bits of bytes sub and sub + 4. From 4 on: nibbles of byte sub + 4, upper bits from the others' tops.
  let x = head.yzw >> vec3<u32>(8u * (sub % 4u));
  let scale = select((x.z & 15u) | ((x.x >> 2u) & 0x30u), x.x & 63u, sub < 4u);
  let minimum = select(((x.z >> 4u) & 15u) | ((x.y >> 2u) & 0x30u), x.y & 63u, sub < 4u);
  return Scale(half(head.x) * whole(scale), -half(head.x >> 16u) * whole(minimum));
}

fn load_quants(row: u32, group: u32) -> Eight {
  let sub = group / 4u % 8u;
  let word = weights[block_of(row, group) + 1u + 2u * (sub / 2u) + group % 4u / 2u];
  let x = select(word.xy, word.zw, group % 2u == 1u) >> vec2<u32>(4u * (sub % 2u));
  return Eight(low_nibbles(x.x, 0.0), low_nibbles(x.y, 0.0));
}
