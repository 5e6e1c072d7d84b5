// Block-sparse attention (MInference section 3.1): every block of 64 rows sees the blocks of 64 keys that
// its index lists, the diagonal among them.
//
//   keys(i) = { j <= q_offset + i : floor(j / 64) in blocks(floor(i / 64)) }
//
// The index holds, for row block b, room for arg0 ascending key-block numbers at index_offset + b * arg0. When arg1 is 0,
// the first min(arg0, number of key blocks that start at or before the block's last row) are real; else the word
// at index_offset + arg1 + b says how many.
//
// Head entry: arg0 = room for key blocks per row block, arg1 = where the counts start, or 0.
// Bindings: lib/attention_bindings.wgsl. Loop: lib/flash_attention.wgsl.

// Listed key blocks of the block of rows that holds row0.
fn block_count(entry: HeadEntry, row0: u32) -> u32 {
  if (entry.arg1 != 0u) {
    return index[entry.index_offset + entry.arg1 + row0 / INDEX_BLOCK];
  }
  let block_row0 = (row0 / INDEX_BLOCK) * INDEX_BLOCK;
  return min(entry.arg0, last_position(block_row0, INDEX_BLOCK) / INDEX_BLOCK + 1u);
}

fn tile_count(entry: HeadEntry, row0: u32) -> u32 {
  return div_ceil(block_count(entry, row0) * INDEX_BLOCK, BLOCK_N);
}

fn key_at(entry: HeadEntry, row0: u32, tile: u32, slot: u32) -> u32 {
  let n = tile * BLOCK_N + slot;
  let listed = n / INDEX_BLOCK;
  if (BLOCK_N > INDEX_BLOCK && listed >= block_count(entry, row0)) {
    return NO_KEY;
  }
  let block = index[entry.index_offset + (row0 / INDEX_BLOCK) * entry.arg0 + listed];
  return block * INDEX_BLOCK + n % INDEX_BLOCK;
}

fn is_visible(entry: HeadEntry, position: u32, key: u32) -> bool {
  return key <= position;
}
