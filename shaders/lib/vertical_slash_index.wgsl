// The compact vertical-slash index, and how to walk over the keys it stands for.
//
// Per head, from index_offset (all u32):
//   [0] n_columns   [1] n_runs   [2], [3] unused
//   [4 ..]                          n_columns column indices, ascending           (room for arg0)
//   [4 + arg0 ..]                   n_runs triples (lo, hi, prefix), ascending    (room for arg1)
//
// A run stands for the diagonals lo..hi (a diagonal is the distance row - key) whose neighbours lie at
// most 64 apart. For a block of 64 rows whose first row has position p0, a diagonal s covers the 64 keys
// [p0 - s, p0 + 63 - s]; the run covers their union [p0 - hi, p0 + 63 - lo]. Runs of one head never
// overlap, for any row block, so nothing needs to be stored per row: rows only shift the windows.
// prefix = keys in the windows of all runs before this one.

struct Run {
  lo: u32,
  hi: u32,
  prefix: u32,
}

fn column_count(entry: HeadEntry) -> u32 {
  return index[entry.index_offset];
}

fn run_count(entry: HeadEntry) -> u32 {
  return index[entry.index_offset + 1u];
}

fn column_at(entry: HeadEntry, i: u32) -> u32 {
  return index[entry.index_offset + 4u + i];
}

fn run_at(entry: HeadEntry, i: u32) -> Run {
  let at = entry.index_offset + 4u + entry.arg0 + 3u * i;
  return Run(index[at], index[at + 1u], index[at + 2u]);
}

// How many runs have lo <= distance (binary search).
fn runs_reaching(entry: HeadEntry, distance: u32) -> u32 {
  var lo = 0u;
  var hi = run_count(entry);
  while (lo < hi) {
    let mid = (lo + hi) / 2u;
    if (run_at(entry, mid).lo <= distance) {
      lo = mid + 1u;
    } else {
      hi = mid;
    }
  }
  return lo;
}

// How many columns are <= key (binary search).
fn columns_up_to(entry: HeadEntry, key: u32) -> u32 {
  var lo = 0u;
  var hi = column_count(entry);
  while (lo < hi) {
    let mid = (lo + hi) / 2u;
    if (column_at(entry, mid) <= key) {
      lo = mid + 1u;
    } else {
      hi = mid;
    }
  }
  return lo;
}

// The band: the run at the diagonal, where it is at least arg2 diagonals wide and arg2 is not 0. 0 where there is none.
// It is computed by a kernel of its own, whose workgroups share keys among more rows (slash_band.wgsl).
fn band_width(entry: HeadEntry) -> u32 {
  if (entry.arg2 == 0u || run_count(entry) == 0u) {
    return 0u;
  }
  let run = run_at(entry, 0u);
  return select(0u, run.hi + 1u, run.lo == 0u && run.hi + 1u >= entry.arg2);
}

// Keys that the runs cover for the row block whose last row (of a full block) is at `block_end`.
// Only the last reaching run can stick out below key 0, so clipping it is enough.
fn slash_key_count(entry: HeadEntry, block_end: u32) -> u32 {
  let n = runs_reaching(entry, block_end);
  if (n == 0u) {
    return 0u;
  }
  let last = run_at(entry, n - 1u);
  return last.prefix + min(last.hi - last.lo + INDEX_BLOCK, block_end - last.lo + 1u);
}

// Does a run cover this key for the row block that ends at block_end? (key <= block_end)
fn covered_by_run(entry: HeadEntry, block_end: u32, key: u32) -> bool {
  let distance = block_end - key;
  let n = runs_reaching(entry, distance);
  if (n == 0u) {
    return false;
  }
  return distance < run_at(entry, n - 1u).hi + INDEX_BLOCK;
}
