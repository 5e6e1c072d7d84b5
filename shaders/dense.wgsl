// Dense causal attention, FlashAttention-2 style: the baseline and the fallback.
//
//   o[h, i] = sum_j softmax_j(scale * q[h, i] . k[hkv, j]) v[hkv, j],   j <= q_offset + i
//
// A workgroup owns BLOCK_M query rows of one head and walks over all keys up to its last row, BLOCK_N at
// a time. Bindings: lib/attention_bindings.wgsl. Loop: lib/flash_attention.wgsl, which calls the functions
// below to learn which keys each tile holds.

fn tile_count(entry: HeadEntry, row0: u32) -> u32 {
  return div_ceil(last_position(row0, BLOCK_M) + 1u, BLOCK_N);
}

fn key_at(entry: HeadEntry, row0: u32, tile: u32, slot: u32) -> u32 {
  return tile * BLOCK_N + slot;
}

fn is_visible(entry: HeadEntry, position: u32, key: u32) -> bool {
  return key <= position;
}
