// Numbers of 5 bits: nibbles of four bytes, and the bits that stand above them, the lowest four of `bits`.
fn five_bits(nibbles: u32, bits: u32) -> u32 {
  let above = ((bits & 1u) << 4u) | ((bits & 2u) << 11u) | ((bits & 4u) << 18u) | ((bits & 8u) << 25u);
  return (nibbles & 0x0f0f0f0fu) | above;
}
