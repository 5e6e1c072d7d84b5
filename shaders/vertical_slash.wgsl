// Vertical-slash attention (MInference section 3.1): every block of 64 rows sees the key windows of its
// slashes (diagonals) and the vertical columns.
//
//   keys(i) = { j <= p : j in columns, or p0 - s <= j <= p0 + 63 - s for some slash s },
//   p = q_offset + i,  p0 = q_offset + 64 * floor(i / 64)
//
// The index is one list of columns and one list of runs of diagonals per head (see
// lib/vertical_slash_index.wgsl); each workgroup derives its own keys from it. The keys of all runs are
// numbered consecutively, so every tile but the last is full however short the runs are. A column that a
// run covers as well is skipped: no key counts twice.
//
// A workgroup of 128 rows (matrix tier) holds two blocks of 64. Its tiles list what either sees, so a run
// covers hi - lo + 128 keys there, and each listed key says from which of the two it is hidden.
//
// Head entry: arg0 = room for columns, arg1 = room for runs.
// Bindings: lib/attention_bindings.wgsl. Loop: lib/flash_attention.wgsl.

// Row blocks of a workgroup, and their rows.
const INDEX_BLOCKS: u32 = (BLOCK_M + INDEX_BLOCK - 1u) / INDEX_BLOCK;
const SPAN: u32 = INDEX_BLOCKS * INDEX_BLOCK;
// A listed key: its number, and in the highest bits that it is hidden from the first or second block.
const KEY_BITS: u32 = 0x3fffffffu;
const HIDDEN: u32 = 0x80000000u;

// Per-thread memory of the walk. Tiles are visited in order, so the run that holds a slot's next key is
// the one of its last key or a later one.
var<private> slash_keys: u32 = 0u;
var<private> visible_columns: u32 = 0u;
var<private> run_cursor: u32 = 0u;

// Position of the last row of the index blocks that a workgroup holds, were they full.
fn span_end(row0: u32) -> u32 {
  return params.q_offset + (row0 / SPAN) * SPAN + SPAN - 1u;
}

// The number of a run's first key among the keys of all runs.
fn first_slash_key(i: u32, run: Run) -> u32 {
  return run.prefix + i * (SPAN - INDEX_BLOCK);
}

// Keys that the runs cover. The last reaching run is clipped where it sticks out below key 0.
fn slash_key_count(entry: HeadEntry, end: u32) -> u32 {
  let n = runs_reaching(entry, end);
  if (n == 0u) {
    return 0u;
  }
  let last = run_at(entry, n - 1u);
  return first_slash_key(n - 1u, last) + min(last.hi - last.lo + SPAN, end - last.lo + 1u);
}

fn tile_count(entry: HeadEntry, row0: u32) -> u32 {
  let keys = slash_key_count(entry, span_end(row0));
  let columns = columns_up_to(entry, last_position(row0, BLOCK_M));
  slash_keys = keys;
  visible_columns = columns;
  run_cursor = 0u;
  return div_ceil(keys, BLOCK_N) + div_ceil(columns, BLOCK_N);
}

// A key that these row blocks attend to in this place. (With one block, that is the last one.)
fn listed_key(key: u32, is_in_first: bool, is_in_last: bool) -> u32 {
  let hidden_from_first = select(0u, HIDDEN, !is_in_first);
  let hidden_from_last = select(0u, HIDDEN / INDEX_BLOCKS, !is_in_last);
  return key | select(0u, hidden_from_first, INDEX_BLOCKS == 2u) | hidden_from_last;
}

fn slash_key(entry: HeadEntry, end: u32, n: u32) -> u32 {
  var run = run_at(entry, run_cursor);
  while (n >= first_slash_key(run_cursor, run) + run.hi - run.lo + SPAN) {
    run_cursor += 1u;
    run = run_at(entry, run_cursor);
  }
  // Of 128 rows, the last run but one may stick out below key 0, too.
  let distance = run.lo + n - first_slash_key(run_cursor, run);
  if (distance > end) {
    return NO_KEY;
  }
  return listed_key(end - distance, distance >= run.lo + INDEX_BLOCK, distance < run.hi + INDEX_BLOCK);
}

fn column_key(entry: HeadEntry, end: u32, key: u32) -> u32 {
  // Runs lie more than 64 apart, so the first block of rows meets the run that the last block meets, or the one before.
  let distance = end - key;
  let n = runs_reaching(entry, distance);
  var is_in_first = true;
  var is_in_last = true;
  if (n > 0u) {
    let run = run_at(entry, n - 1u);
    is_in_last = distance >= run.hi + INDEX_BLOCK;
    if (INDEX_BLOCKS == 2u && distance >= INDEX_BLOCK) {
      if (distance >= run.lo + INDEX_BLOCK) {
        is_in_first = distance >= run.hi + 2u * INDEX_BLOCK;
      } else if (n > 1u) {
        is_in_first = distance >= run_at(entry, n - 2u).hi + 2u * INDEX_BLOCK;
      }
    }
  }
  return listed_key(key, is_in_first, is_in_last);
}

fn key_at(entry: HeadEntry, row0: u32, tile: u32, slot: u32) -> u32 {
  let slash_tiles = div_ceil(slash_keys, BLOCK_N);
  if (tile < slash_tiles) {
    let n = tile * BLOCK_N + slot;
    if (n >= slash_keys) {
      return NO_KEY;
    }
    return slash_key(entry, span_end(row0), n);
  }
  let column = (tile - slash_tiles) * BLOCK_N + slot;
  if (column >= visible_columns) {
    return NO_KEY;
  }
  return column_key(entry, span_end(row0), column_at(entry, column));
}

fn is_visible(entry: HeadEntry, position: u32, key: u32) -> bool {
  if (INDEX_BLOCKS == 1u) {
    return key <= position;
  }
  let block = (position - params.q_offset) / INDEX_BLOCK % 2u;
  return (key & KEY_BITS) <= position && (key & (HIDDEN >> block)) == 0u;
}
