// The first keys, which often hold a row's largest score.
fn first_tile() -> u32 {
  return 0u;
}

// Does every row of the workgroup see every key of the tile, whose first key is key0?
fn tile_is_full(entry: HeadEntry, row0: u32, tile: u32, key0: u32) -> bool {
  return key0 + BLOCK_N - 1u <= position_of(row0);
}
