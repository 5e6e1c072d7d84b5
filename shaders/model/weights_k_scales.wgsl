// The scale and minimum of a sub-block of 32 of the blocks of 256 whose first 16-byte word is f16 d, f16 d_min, and 12 bytes with 6 bits of
// each of 8 scales s and minima x: sub-blocks 0 to 3 have those of bytes sub and sub + 4; from 4 on the nibbles of byte sub + 4, with
// upper bits from the others' tops.   w_i = d s q_i - d_min x
fn scale_of(head: vec4<u32>, sub: u32) -> Scale {
  let x = head.yzw >> vec3<u32>(8u * (sub % 4u));
  let scale = select((x.z & 15u) | ((x.x >> 2u) & 0x30u), x.x & 63u, sub < 4u);
  let minimum = select(((x.z >> 4u) & 15u) | ((x.y >> 2u) & 0x30u), x.y & 63u, sub < 4u);
  return Scale(half(head.x) * whole(scale), -half(head.x >> 16u) * whole(minimum));
}
