// Does every row of the workgroup see every key of the tile, whose first key is key0? Slash keys descend
// within a tile, so the first one is the last to become visible. Columns ascend and leave gaps, so tiles of columns always
// count as partial. With two row blocks a key that one of them does not see is no small number, and 32 keys in a row that
// both see belong to one run.
fn tile_is_full(entry: HeadEntry, row0: u32, tile: u32, key0: u32) -> bool {
  if (INDEX_BLOCKS == 1u) {
    return (tile + 1u) * BLOCK_N <= slash_keys && key0 <= params.q_offset + row0;
  }
  let last = tile_keys[tile % (2u * KEY_BATCH) * BLOCK_N + BLOCK_N - 1u];
  return last <= key0 && key0 - last == BLOCK_N - 1u && key0 <= params.q_offset + row0;
}
