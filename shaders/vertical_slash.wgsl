// Vertical-slash attention (MInference section 3.1): every block of 64 rows sees the key windows of its
// slashes (diagonals) and the vertical columns.
//
//   keys(i) = { j <= p : j in columns, or p0 - s <= j <= p0 + 63 - s for some slash s },
//   p = q_offset + i,  p0 = q_offset + 64 * floor(i / 64)
//
// The index is one list of columns and one list of runs of diagonals per head (see
// lib/vertical_slash_index.wgsl); each workgroup derives its own keys from it. The keys of all runs are
// numbered consecutively, so every tile but the last is full however short the runs are. A column that a
// run covers as well is skipped: no key counts twice. (The matrix tier reads tiles of keys instead: matrix/vertical_slash.wgsl.)
//
// Head entry: arg0 = room for columns, arg1 = room for runs.
// Bindings: lib/attention_bindings.wgsl. Loop: lib/flash_attention.wgsl.

// Per-thread memory of the walk. Tiles are visited in order, so the run that holds a slot's next key is
// the one of its last key or a later one.
var<private> slash_keys: u32 = 0u;
var<private> visible_columns: u32 = 0u;
var<private> run_cursor: u32 = 0u;

// Position of the last row of the 64-row index block that holds row0, were that block full.
fn index_block_end(row0: u32) -> u32 {
  return params.q_offset + (row0 / INDEX_BLOCK) * INDEX_BLOCK + INDEX_BLOCK - 1u;
}

fn tile_count(entry: HeadEntry, row0: u32) -> u32 {
  let block_end = index_block_end(row0);
  let keys = slash_key_count(entry, block_end);
  let columns = columns_up_to(entry, last_position(row0, BLOCK_M));
  slash_keys = keys;
  visible_columns = columns;
  // Not from the private variables: barriers stand in a loop with this bound, and WGSL takes those to differ between threads.
  return div_ceil(keys, BLOCK_N) + div_ceil(columns, BLOCK_N);
}

fn key_at(entry: HeadEntry, row0: u32, tile: u32, slot: u32) -> u32 {
  let block_end = index_block_end(row0);
  let slash_tiles = div_ceil(slash_keys, BLOCK_N);
  if (tile < slash_tiles) {
    let n = tile * BLOCK_N + slot;
    if (n >= slash_keys) {
      return NO_KEY;
    }
    var run = run_at(entry, run_cursor);
    while (n >= run.prefix + run.hi - run.lo + INDEX_BLOCK) {
      run_cursor += 1u;
      run = run_at(entry, run_cursor);
    }
    return block_end - run.lo - (n - run.prefix);
  }
  let column = (tile - slash_tiles) * BLOCK_N + slot;
  if (column >= visible_columns) {
    return NO_KEY;
  }
  let key = column_at(entry, column);
  return select(key, NO_KEY, covered_by_run(entry, block_end, key));
}

fn is_visible(entry: HeadEntry, position: u32, key: u32) -> bool {
  return key <= position;
}
