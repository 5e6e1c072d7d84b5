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

const TILES_PER_BLOCK: u32 = INDEX_BLOCK / BLOCK_N;

fn tile_count(entry: HeadEntry, row0: u32) -> u32 {
  let block_row0 = (row0 / INDEX_BLOCK) * INDEX_BLOCK;
  var blocks = min(entry.arg0, last_position(block_row0, INDEX_BLOCK) / INDEX_BLOCK + 1u);
  if (entry.arg1 != 0u) {
    blocks = index[entry.index_offset + entry.arg1 + row0 / INDEX_BLOCK];
  }
  return blocks * TILES_PER_BLOCK;
}

fn key_at(entry: HeadEntry, row0: u32, tile: u32, slot: u32) -> u32 {
  let block = index[entry.index_offset + (row0 / INDEX_BLOCK) * entry.arg0 + tile / TILES_PER_BLOCK];
  return block * INDEX_BLOCK + (tile % TILES_PER_BLOCK) * BLOCK_N + slot;
}

fn is_visible(entry: HeadEntry, position: u32, key: u32) -> bool {
  return key <= position;
}
