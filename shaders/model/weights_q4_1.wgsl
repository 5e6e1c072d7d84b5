// Weights [n, k] in blocks of 32 and 20 bytes: f16 d, f16 m, then 16 bytes whose low nibbles are elements 0 to 15 and
// whose high nibbles are elements 16 to 31.   w_i = d q_i + m
@group(0) @binding(1) var<storage, read> weights: array<u32>;

fn load_weights(row: u32, group: u32) -> Eight {
  let block = (row * (params.k / 32u) + group / 4u) * 5u;
  let d = half(weights[block]);
  let m = half(weights[block] >> 16u);
  let at = block + 1u + 2u * (group % 2u);
  let shift = 2u * (group & 2u);
  return Eight(d * nibbles(weights[at] >> shift) + m, d * nibbles(weights[at + 1u] >> shift) + m);
}
