// Vertical-slash attention of the matrix tier: the keys of ../vertical_slash.wgsl, from the index that ../index/slash_tiles.wgsl makes.
//
//   keys(i) = { j <= p : j in columns, or p0 - s <= j <= p0 + 63 - s for some slash s },
//   p = q_offset + i,  p0 = q_offset + 64 * floor(i / 64)
//
// Tiles hold the keys of the block's runs, descending, and then its columns, ascending. A batch of tiles with a key for each invocation
// is worked out while the one before is computed, from words that were loaded a batch earlier, and handed on in workgroup memory; columns
// that a run covers are NO_KEY there.
// Where the head has a band, slash_band.wgsl has done it, and left its part of the output and the log-sum-exp in o and lse: this kernel
// adds the rest.
//
// Control flow depends on words at addresses that are the same for all invocations, and on nothing that a loop has found. Otherwise
// NVIDIA's compiler takes the loop over tiles for one that some invocations leave early, and copies the matrices of O in every tile.
//
// Constants: BLOCK_N (the TILE of slash_tiles.wgsl), THREADS (2 BLOCK_N or more; 4 where K is fetched two tiles ahead). Head entry: arg0 = room for columns.

// What a block of rows walks over. The word of slot s of tile t lies at from + t * BLOCK_N + s.
struct Walk {
  run_tiles: u32,
  block_end: u32,        // position of the last row of the block, were it full
  runs_from: u32,        // distances from block_end
  columns_from: u32,     // positions, of the tiles behind those of runs
  covered_at: u32,
}

const BATCH: u32 = THREADS / BLOCK_N;

// Keys of two batches of tiles, and of each tile what is no less than any of them; NO_KEY where some may be hidden.
var<workgroup> tile_keys: array<u32, 2u * BATCH * BLOCK_N>;
var<workgroup> tile_tops: array<u32, 2u * BATCH>;

// Where the two words of the block of rows lie.
fn block_words(entry: HeadEntry, row0: u32) -> u32 {
  return entry.index_offset + 1u + 2u * (row0 / INDEX_BLOCK);
}

fn tile_count(entry: HeadEntry, row0: u32) -> u32 {
  return index[block_words(entry, row0) + 1u];
}

fn walk_of(entry: HeadEntry, row0: u32) -> Walk {
  let blocks = div_ceil(params.n_q, INDEX_BLOCK);
  let positions = params.q_offset + blocks * INDEX_BLOCK;
  let run_tiles = index[block_words(entry, row0)];
  let columns_at = entry.index_offset + 1u + 2u * blocks;
  let covered_at = columns_at + div_ceil(entry.arg0, BLOCK_N) * BLOCK_N;
  return Walk(
    run_tiles,
    params.q_offset + (row0 / INDEX_BLOCK + 1u) * INDEX_BLOCK - 1u,
    covered_at + div_ceil(positions, 32u),
    columns_at - run_tiles * BLOCK_N,
    covered_at,
  );
}

fn has_band(entry: HeadEntry) -> bool {
  return index[entry.index_offset] != 0u;
}

// An invocation's word of a batch.
fn walk_word(walk: Walk, batch: u32, thread: u32) -> u32 {
  let tile = batch * BATCH + thread / BLOCK_N;
  return index[select(walk.columns_from, walk.runs_from, tile < walk.run_tiles) + tile * BLOCK_N + thread % BLOCK_N];
}

// The word whose bit says whether a run covers a column.
fn covered_word(walk: Walk, column: u32) -> u32 {
  return index[walk.covered_at + (walk.block_end - min(column, walk.block_end)) / 32u];
}

// Hands on the key that a word stands for, unless it is a column that a run covers.
fn hand_on(walk: Walk, batch: u32, thread: u32, word: u32, covered: u32) {
  let tile = batch * BATCH + thread / BLOCK_N;
  let is_column = tile >= walk.run_tiles;
  let distance = walk.block_end - word;
  let is_covered = ((covered >> (distance % 32u)) & 1u) != 0u;
  let key = select(distance, select(word, NO_KEY, is_covered), is_column);
  tile_keys[batch % 2u * (BATCH * BLOCK_N) + thread] = key;
  if (thread % BLOCK_N == 0u) {
    tile_tops[batch % 2u * BATCH + thread / BLOCK_N] = select(key, NO_KEY, is_column);
  }
}

fn is_visible(entry: HeadEntry, position: u32, key: u32) -> bool {
  return key <= position;
}

// Does every row of the workgroup see every key of the tile? Keys of runs descend, and those before key 0, which wrap around, come last.
fn tile_is_full(row0: u32, tile: u32, last_key: u32) -> bool {
  return max(tile_tops[tile % (2u * BATCH)], last_key) <= params.q_offset + row0;
}

// Tiles are visited as they come.
fn first_tile() -> u32 {
  return 0u;
}
