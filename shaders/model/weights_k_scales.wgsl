// Blocks of 256 in 16-byte words, of which the first is f16 d, f16 d_min, and 12 bytes with 6 bits of a scale s and a minimum x for each of 8
// sub-blocks of 32: sub-blocks 0 to 3 have those of bytes sub and sub + 4; from 4 on the nibbles of byte sub + 4, with upper bits from
// the others' tops.   w_i = d s q_i - d_min x
fn scale_of(head: vec4<u32>, sub: u32) -> Scale {
  let x = head.yzw >> vec3<u32>(8u * (sub % 4u));
  let scale = select((x.z & 15u) | ((x.x >> 2u) & 0x30u), x.x & 63u, sub < 4u);
  let minimum = select(((x.z >> 4u) & 15u) | ((x.y >> 2u) & 0x30u), x.y & 63u, sub < 4u);
  return Scale(half(head.x) * whole(scale), -half(head.x >> 16u) * whole(minimum));
}

fn load_scale(row: u32, group: u32) -> Scale {
  return scale_of(weights[block_of(row, group)], group / 4u % 8u);
}

// Bytes 8 * (group % 4) to 8 * (group % 4) + 7 of 32 that begin at a word.
fn eight_bytes(word: u32, group: u32) -> vec2<u32> {
  let x = weights[word + group % 4u / 2u];
  return select(x.xy, x.zw, group % 2u == 1u);
}
