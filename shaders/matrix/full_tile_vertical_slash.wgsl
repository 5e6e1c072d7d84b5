// Keys descend over the tiles: they are visited in that order.
fn first_tile() -> u32 {
  return 0u;
}

// Does every row of the workgroup see every key of the tile, whose first key is key0? Slash keys descend
// within a tile and over the tiles, so the first one is the last to become visible. Columns that a run
// covers leave gaps, so tiles of columns always count as partial.
fn tile_is_full(entry: HeadEntry, row0: u32, tile: u32, key0: u32) -> bool {
  return (tile + 1u) * BLOCK_N <= slash_keys && key0 <= params.q_offset + row0;
}
