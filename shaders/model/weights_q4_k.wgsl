// Weights [n, k] in blocks of 256 and 144 bytes: 16 bytes as in weights_k_scales.wgsl, a scale s and minimum x for each of 8 sub-blocks
// of 32, then 128 bytes: each 32 of them are sub-blocks 2 j (low nibbles) and 2 j + 1 (high).
//   w_i = d s q_i - d_min x
// A block is nine 16-byte words: one that scales need, and eight of nibbles.
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;

const BLOCK: u32 = 256u;
const BLOCK_STEP: u32 = 9u;
const SPAN: u32 = 4u;
const SCALED: u32 = 1u;
const HAS_MINIMUM: u32 = 1u;

fn load_quants(row: u32, group: u32) -> Eight {
  let sub = group / 4u % 8u;
  let x = eight_bytes(block_of(row, group) + 1u + 2u * (sub / 2u), group) >> vec2<u32>(4u * (sub % 2u));
  return Eight(low_nibbles(x.x, 0.0), low_nibbles(x.y, 0.0));
}
