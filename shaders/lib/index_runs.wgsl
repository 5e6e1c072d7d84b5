// Turns selected diagonals into the runs of the vertical-slash index (lib/vertical_slash_index.wgsl).
//
//   Neighbouring diagonals at most 64 apart form a run (lo, hi);
//   prefix of a run = sum of hi - lo + 64 over the runs before it.
//
// The kernel's own file binds `selected`, ascending diagonals, and `index`. See also lib/index_radix.wgsl.

const INDEX_BLOCK: u32 = 64u;

// Is there a gap between diagonals i - 1 and i of the list (or no diagonal i - 1)?
fn starts_run(list: u32, i: u32) -> bool {
  return i == 0u || selected[list + i] - selected[list + i - 1u] > INDEX_BLOCK;
}

// Writes the runs of `count` diagonals from `list` on and returns how many there are. Every thread must call this together.
fn write_runs(thread: u32, list: u32, count: u32, first_run: u32) -> u32 {
  // Each thread owns consecutive diagonals. Diagonal i adds to the keys of all runs together: a whole
  // block when it starts a run, else its distance from the one before.
  let share = (count + THREADS - 1u) / THREADS;
  let start = min(thread * share, count);
  let end = min(start + share, count);
  var runs = 0u;
  var covered = 0u;
  for (var i = start; i < end; i++) {
    if (starts_run(list, i)) {
      runs += 1u;
      covered += INDEX_BLOCK;
    } else {
      covered += selected[list + i] - selected[list + i - 1u];
    }
  }
  let runs_end = prefix_sum(thread, runs);
  let n_runs = total_of(thread, runs_end);
  let covered_end = prefix_sum(thread, covered);
  var next_run = runs_end - runs;
  var prefix = covered_end - covered;
  for (var i = start; i < end; i++) {
    let diagonal = selected[list + i];
    if (starts_run(list, i)) {
      index[first_run + 3u * next_run] = diagonal;
      index[first_run + 3u * next_run + 2u] = prefix;
      next_run += 1u;
      prefix += INDEX_BLOCK;
    } else {
      prefix += diagonal - selected[list + i - 1u];
    }
    if (i + 1u == count || starts_run(list, i + 1u)) {
      index[first_run + 3u * (next_run - 1u) + 1u] = diagonal;
    }
  }
  return n_runs;
}
