// Does every row of the workgroup see every key of the tile, whose first key is key0?
fn tile_is_full(entry: HeadEntry, row0: u32, tile: u32, key0: u32) -> bool {
  let range = a_shape_range(entry, row0);
  let end = key0 + BLOCK_N;
  // Tri-shape: in a workgroup with dense rows the range is every key, but other rows may be A-shape.
  let seen_by_all = select(min(range.n_init, entry.arg0), range.n_init, row0 >= first_dense_row(entry));
  let initial = tile < div_ceil(range.n_init, BLOCK_N) && end <= seen_by_all;
  let local = key0 >= range.local_start && last_position(row0, BLOCK_M) - key0 < entry.arg1;
  return end - 1u <= params.q_offset + row0 && (initial || local);
}
