// Turns the selected columns and diagonals of a head into the index that the vertical-slash kernel reads
// (lib/vertical_slash_index.wgsl).
//
//   Neighbouring diagonals at most 64 apart form a run (lo, hi);
//   prefix of a run = sum of hi - lo + 64 over the runs before it.
//
// Grid: x = head, one workgroup each. Bindings:
//   0  heads     column and diagonal lists in `selected`, both ascending, and where the index goes
//   1  selected
//   2  index

struct Head {
  index_offset: u32,
  column_room: u32,    // room for columns in the index
  columns: u32,        // first column in `selected`
  n_columns: u32,
  slashes: u32,        // first diagonal in `selected`
  n_slashes: u32,      // at least 1
  unused0: u32,
  unused1: u32,
}

@group(0) @binding(0) var<storage, read> heads: array<Head>;
@group(0) @binding(1) var<storage, read> selected: array<u32>;
@group(0) @binding(2) var<storage, read_write> index: array<u32>;

const INDEX_BLOCK: u32 = 64u;

// Is there a gap between diagonals i - 1 and i (or no diagonal i - 1)?
fn starts_run(head: Head, i: u32) -> bool {
  return i == 0u || selected[head.slashes + i] - selected[head.slashes + i - 1u] > INDEX_BLOCK;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let head = heads[workgroup.x];
  for (var i = thread; i < head.n_columns; i += THREADS) {
    index[head.index_offset + 4u + i] = selected[head.columns + i];
  }

  // Each thread owns consecutive diagonals. Diagonal i adds to the keys of all runs together: a whole
  // block when it starts a run, else its distance from the one before.
  let share = (head.n_slashes + THREADS - 1u) / THREADS;
  let start = min(thread * share, head.n_slashes);
  let end = min(start + share, head.n_slashes);
  var runs = 0u;
  var covered = 0u;
  for (var i = start; i < end; i++) {
    if (starts_run(head, i)) {
      runs += 1u;
      covered += INDEX_BLOCK;
    } else {
      covered += selected[head.slashes + i] - selected[head.slashes + i - 1u];
    }
  }
  let runs_end = prefix_sum(thread, runs);
  let n_runs = total_of(thread, runs_end);
  let covered_end = prefix_sum(thread, covered);
  var next_run = runs_end - runs;
  var prefix = covered_end - covered;
  let first_run = head.index_offset + 4u + head.column_room;
  for (var i = start; i < end; i++) {
    let diagonal = selected[head.slashes + i];
    if (starts_run(head, i)) {
      index[first_run + 3u * next_run] = diagonal;
      index[first_run + 3u * next_run + 2u] = prefix;
      next_run += 1u;
      prefix += INDEX_BLOCK;
    } else {
      prefix += diagonal - selected[head.slashes + i - 1u];
    }
    if (i + 1u == head.n_slashes || starts_run(head, i + 1u)) {
      index[first_run + 3u * (next_run - 1u) + 1u] = diagonal;
    }
  }
  if (thread == 0u) {
    index[head.index_offset] = head.n_columns;
    index[head.index_offset + 1u] = n_runs;
    index[head.index_offset + 2u] = 0u;
    index[head.index_offset + 3u] = 0u;
  }
}
