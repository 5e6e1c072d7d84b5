// The band of vertical-slash attention: the run of diagonals at the diagonal itself, which in most heads is by far the widest.
// Neighbouring blocks of 64 rows see nearly the same keys of it, so that workgroups of more rows share what they load.
//
//   keys(i) = { j <= p : j >= p0 - hi },   p = q_offset + i,  p0 = q_offset + 64 * floor(i / 64),  hi = width - 1
//
// Writes o and the log-sum-exp of these keys alone; matrix/vertical_slash.wgsl adds the other keys. Heads
// without a band (see lib/vertical_slash_index.wgsl) are left alone.
//
// Head entry: arg0 = room for columns, arg1 = room for runs, arg2 = least diagonals of a band (0: no bands).
// Bindings: lib/attention_bindings.wgsl.

// Set by tile_count, once: the farthest diagonal, the first key that any row of the workgroup sees, and the last tile that all do.
var<private> band_hi: u32;
var<private> band_first: u32;
var<private> band_seen: u32;

// Position of the first row of the 64-row index block that holds `row`.
fn block_position(row: u32) -> u32 {
  return params.q_offset + (row / INDEX_BLOCK) * INDEX_BLOCK;
}

fn tile_count(entry: HeadEntry, row0: u32) -> u32 {
  let width = band_width(entry);
  if (width == 0u) {
    return 0u;
  }
  let first = block_position(row0) - min(block_position(row0), width - 1u);
  band_hi = width - 1u;
  band_first = first;
  band_seen = max((params.q_offset + row0 + 1u - first) / BLOCK_N, 1u) - 1u;
  return div_ceil(last_position(row0, BLOCK_M) + 1u - first, BLOCK_N);
}

fn key_at(entry: HeadEntry, row0: u32, tile: u32, slot: u32) -> u32 {
  return band_first + tile * BLOCK_N + slot;
}

fn is_visible(entry: HeadEntry, position: u32, key: u32) -> bool {
  return (key <= position) & (key + band_hi >= block_position(position - params.q_offset));
}
