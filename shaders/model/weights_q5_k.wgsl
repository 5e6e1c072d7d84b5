// Weights [n, k] in blocks of 256 and 176 bytes: 16 bytes as in weights_k_scales.wgsl, 32 bytes with the highest bits (element i of
// sub-block b has bit b of byte i), then 128 bytes: each 32 of them are sub-blocks 2 j (low nibbles) and 2 j + 1 (high).
//   w_i = d s q_i - d_min x
// A block is eleven 16-byte words: one that scales need, two of highest bits, and eight of nibbles.
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;

const BLOCK: u32 = 256u;
const BLOCK_STEP: u32 = 11u;
const SPAN: u32 = 4u;
const SCALED: u32 = 1u;
const HAS_MINIMUM: u32 = 1u;

fn load_quants(row: u32, group: u32) -> Eight {
  let block = block_of(row, group);
  let sub = group / 4u % 8u;
  let low = (eight_bytes(block + 3u + 2u * (sub / 2u), group) >> vec2<u32>(4u * (sub % 2u))) & vec2<u32>(0x0f0f0f0fu);
  let high = (eight_bytes(block + 1u, group) >> vec2<u32>(sub)) & vec2<u32>(0x01010101u);
  let x = low | (high << vec2<u32>(4u));
  return Eight(bytes(x.x, 0.0), bytes(x.y, 0.0));
}
