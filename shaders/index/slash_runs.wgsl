// Turns the selected columns and diagonals of a head into the index that the vertical-slash kernel reads
// (lib/vertical_slash_index.wgsl): the columns as they are, the diagonals as runs (lib/index_runs.wgsl).
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

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let head = heads[workgroup.x];
  for (var i = thread; i < head.n_columns; i += THREADS) {
    index[head.index_offset + 4u + i] = selected[head.columns + i];
  }
  let n_runs = write_runs(thread, head.slashes, head.n_slashes, head.index_offset + 4u + head.column_room);
  if (thread == 0u) {
    index[head.index_offset] = head.n_columns;
    index[head.index_offset + 1u] = n_runs;
    index[head.index_offset + 2u] = 0u;
    index[head.index_offset + 3u] = 0u;
  }
}
