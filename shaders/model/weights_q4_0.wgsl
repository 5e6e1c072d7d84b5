// Weights [n, k] in blocks of 32 and 18 bytes: f16 d, then 16 bytes whose low nibbles are elements 0 to 15 and whose
// high nibbles are elements 16 to 31.   w_i = d (q_i - 8)
@group(0) @binding(1) var<storage, read> weights: array<u32>;

fn load_weights(row: u32, group: u32) -> Eight {
  let block = (row * (params.k / 32u) + group / 4u) * 18u;
  let d = half_at(block);
  let at = block + 2u + 8u * (group % 2u);
  let shift = 2u * (group & 2u);
  return Eight(
    d * (nibbles(word_at(at) >> shift) - 8.0),
    d * (nibbles(word_at(at + 4u) >> shift) - 8.0));
}
