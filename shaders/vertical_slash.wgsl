// Vertical-slash attention (MInference section 3.1): every block of 64 rows sees the key windows of its
// slashes (diagonals) and the vertical columns.
//
//   keys(i) = { j <= p : j in columns, or p0 - s <= j <= p0 + 63 - s for some slash s },
//   p = q_offset + i,  p0 = q_offset + 64 * floor(i / 64)
//
// The index is one list of columns and one list of runs of diagonals per head (see
// lib/vertical_slash_index.wgsl); each workgroup derives its own keys from it. The keys of all runs are
// numbered consecutively, so every tile but the last is full however short the runs are. A column that a
// run covers as well is skipped: no key counts twice. Where the head has a band, slash_band.wgsl has done it, and left its
// part of the output and the log-sum-exp in o and lse: this kernel goes on from there.
//
// Head entry: arg0 = room for columns, arg1 = room for runs, arg2 = least diagonals of a band (0: no bands).
// Bindings: lib/attention_bindings.wgsl. Loop: lib/flash_attention.wgsl.

// Per-thread memory of the walk. Tiles are visited in order, so the run that holds a slot's next key is
// the one of its last key or a later one.
var<private> slash_keys: u32 = 0u;
var<private> band_keys: u32 = 0u;
var<private> visible_columns: u32 = 0u;
var<private> run_cursor: u32 = 0u;

// Position of the last row of the 64-row index block that holds row0, were that block full.
fn index_block_end(row0: u32) -> u32 {
  return params.q_offset + (row0 / INDEX_BLOCK) * INDEX_BLOCK + INDEX_BLOCK - 1u;
}

fn tile_count(entry: HeadEntry, row0: u32) -> u32 {
  let block_end = index_block_end(row0);
  let band = band_width(entry);
  let done = select(0u, min(band - 1u + INDEX_BLOCK, block_end + 1u), band > 0u);
  let keys = slash_key_count(entry, block_end) - done;
  let columns = columns_up_to(entry, last_position(row0, BLOCK_M));
  band_keys = done;
  slash_keys = keys;
  visible_columns = columns;
  run_cursor = select(0u, 1u, band > 0u);
  return div_ceil(keys, BLOCK_N) + div_ceil(columns, BLOCK_N);
}

fn key_at(entry: HeadEntry, row0: u32, tile: u32, slot: u32) -> u32 {
  let block_end = index_block_end(row0);
  let slash_tiles = div_ceil(slash_keys, BLOCK_N);
  if (tile < slash_tiles) {
    let n = band_keys + tile * BLOCK_N + slot;
    if (n >= band_keys + slash_keys) {
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
