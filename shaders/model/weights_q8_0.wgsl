// Weights [n, k] in blocks of 32 and 34 bytes: f16 d, then 32 signed bytes.   w_i = d q_i
@group(0) @binding(1) var<storage, read> weights: array<u32>;

fn load_weights(row: u32, group: u32) -> Eight {
  let block = (row * (params.k / 32u) + group / 4u) * 34u;
  let d = half_at(block);
  let at = block + 2u + 8u * (group % 4u);
  return Eight(d * signed_bytes(word_at(at)), d * signed_bytes(word_at(at + 4u)));
}
