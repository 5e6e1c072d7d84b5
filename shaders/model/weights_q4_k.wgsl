// Weights [n, k] in blocks of 256 and 144 bytes: 16 bytes as in weights_k_scales.wgsl, a scale s and minimum x for each of 8 sub-blocks
// of 32, then 128 bytes: each 32 of them are sub-blocks 2 j (low nibbles) and 2 j + 1 (high).
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

fn load_quants(row: u32, group: u32) -> Eight {
  let sub = group / 4u % 8u;
  let word = weights[block_of(row, group) + 1u + 2u * (sub / 2u) + group % 4u / 2u];
  let x = select(word.xy, word.zw, group % 2u == 1u) >> vec2<u32>(4u * (sub % 2u));
  return Eight(low_nibbles(x.x, 0.0), low_nibbles(x.y, 0.0));
}
