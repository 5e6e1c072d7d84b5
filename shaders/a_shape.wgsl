// A-shape attention (MInference section 3.1; StreamingLLM's mask): every row sees the first n_init keys
// and its own last n_local keys.
//
//   keys(i) = { j <= p : j < n_init or p - j < n_local },   p = q_offset + i
//
// Tri-shape (SCBench, arXiv 2412.10319) is the same, but the last n_last query rows see every key j <= p.
//
// Head entry: arg0 = n_init, arg1 = n_local (at least 1, so that every row sees itself), arg2 = n_last.
// Tiles: first the initial keys, then the contiguous range that the rows' local windows span and the
// initial keys do not. Bindings: lib/attention_bindings.wgsl. Loop: lib/flash_attention.wgsl.

// Set by tile_count, once: what the row tile sees.
var<private> n_init: u32;        // initial keys that any row of the tile sees
var<private> init_tiles: u32;    // tiles that hold them
var<private> local_start: u32;   // first key of the local range

// The first query row that sees every key.
fn first_dense_row(entry: HeadEntry) -> u32 {
  return params.n_q - min(entry.arg2, params.n_q);
}

fn tile_count(entry: HeadEntry, row0: u32) -> u32 {
  let end = last_position(row0, BLOCK_M) + 1u;
  let first_row = params.q_offset + row0;
  let window_start = first_row + 1u - min(first_row + 1u, entry.arg1);
  let has_dense_rows = min(row0 + BLOCK_M, params.n_q) > first_dense_row(entry);
  let init = select(min(entry.arg0, end), end, has_dense_rows);
  let start = min(max(window_start, init), end);
  n_init = init;
  init_tiles = div_ceil(init, BLOCK_N);
  local_start = start;
  return div_ceil(init, BLOCK_N) + div_ceil(end - start, BLOCK_N);
}

fn key_at(entry: HeadEntry, row0: u32, tile: u32, slot: u32) -> u32 {
  let is_initial = tile < init_tiles;
  let key = select(local_start - init_tiles * BLOCK_N, 0u, is_initial) + tile * BLOCK_N + slot;
  return select(key, NO_KEY, is_initial & (key >= n_init));
}

// Without branches, as && and || would be: it is called for every score of a tile.
fn is_visible(entry: HeadEntry, position: u32, key: u32) -> bool {
  let is_dense = position - params.q_offset >= first_dense_row(entry);
  return (key <= position) & ((key < entry.arg0) | (position - key < entry.arg1) | is_dense);
}
