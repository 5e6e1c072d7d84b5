// The initial keys, which often hold a row's largest score.
fn first_tile() -> u32 {
  return 0u;
}

// Does every row of the workgroup see every key of the tile, whose first key is key0?
fn tile_is_full(entry: HeadEntry, row0: u32, tile: u32, key0: u32) -> bool {
  let end = key0 + BLOCK_N;
  // Tri-shape: in a workgroup with dense rows the initial keys are all keys, but other rows may be A-shape.
  let seen_by_all = select(min(n_init, entry.arg0), n_init, row0 >= first_dense_row(entry));
  let is_seen = select(last_position(row0, BLOCK_M) - key0 < entry.arg1, end <= seen_by_all, tile < init_tiles);
  return end - 1u <= position_of(row0) && is_seen;
}
