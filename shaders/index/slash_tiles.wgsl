// Turns the index of vertical-slash heads (lib/vertical_slash_index.wgsl) into the one that the matrix tier's kernel reads
// (matrix/vertical_slash.wgsl): without searches and without loops over runs, since what a subgroup's loops depend on must be seen to be
// the same for all of its invocations.
//
// Per head, from tiles_offset on (u32), with B = blocks of 64 rows and P = q_offset + 64 B positions:
//   [0]                 1 if the head has a band, whose keys are left out of all that follows
//   [1 .. 2B]           for each block: tiles of keys of runs; all tiles, with those of columns up to the block's last row
//   [.. C]              columns, ascending, and NO_KEY; C = arg0, rounded up to whole tiles
//   [.. ceil(P / 32)]   bits: the distances from a block's last position back that some run covers
//   [.. R]              distances from a block's last position of the keys of runs, ascending, and FAR; R = P, rounded up to whole tiles
// Keys of runs before key 0 and columns behind the block have positions that no row sees, and need no bounds.
//
// Grid: x = 64 of the B + C + ceil(P / 32) + R things to write, y = head. Constants: TILE (keys of a tile).
// Bindings:
//   0  params
//   1  heads     arg0 = room for columns, arg1 = room for runs, arg2 = least diagonals of a band (0: no bands), arg3 = tiles_offset
//   2  index
//   3  tiles

struct Params {
  n_q: u32,
  q_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> heads: array<HeadEntry>;
@group(0) @binding(2) var<storage, read> index: array<u32>;
@group(0) @binding(3) var<storage, read_write> tiles: array<u32>;

const FAR: u32 = 0x7fffffffu;   // block_end - FAR is far behind all rows

// The run that holds key n of all runs together.
fn run_of_key(entry: HeadEntry, n: u32) -> u32 {
  var lo = 0u;
  var hi = run_count(entry);
  while (lo + 1u < hi) {
    let mid = (lo + hi) / 2u;
    if (run_at(entry, mid).prefix <= n) {
      lo = mid;
    } else {
      hi = mid;
    }
  }
  return lo;
}

// Bits of the 32 distances from `distance` on that a run covers.
fn covered_bits(entry: HeadEntry, distance: u32) -> u32 {
  var bits = 0u;
  for (var i = runs_reaching(entry, distance + 31u); i > 0u; i--) {
    let run = run_at(entry, i - 1u);
    if (run.hi + INDEX_BLOCK <= distance) {
      break;
    }
    let from_bit = max(run.lo, distance) - distance;
    let count = min(run.hi + INDEX_BLOCK - distance, 32u) - from_bit;
    bits |= (0xffffffffu >> (32u - count)) << from_bit;
  }
  return bits;
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let entry = heads[id.y];
  let blocks = div_ceil(params.n_q, INDEX_BLOCK);
  let positions = params.q_offset + blocks * INDEX_BLOCK;
  let width = band_width(entry);
  let band = select(0u, width - 1u + INDEX_BLOCK, width > 0u);

  var i = id.x;
  var at = entry.arg3 + 1u;
  if (i == 0u) {
    tiles[entry.arg3] = select(0u, 1u, width > 0u);
  }
  if (i < blocks) {
    let block_end = params.q_offset + i * INDEX_BLOCK + INDEX_BLOCK - 1u;
    let last = params.q_offset + min((i + 1u) * INDEX_BLOCK, params.n_q) - 1u;
    let run_tiles = div_ceil(slash_key_count(entry, block_end) - min(band, block_end + 1u), TILE);
    tiles[at + 2u * i] = run_tiles;
    tiles[at + 2u * i + 1u] = run_tiles + div_ceil(columns_up_to(entry, last), TILE);
    return;
  }
  i -= blocks;
  at += 2u * blocks;
  let column_room = div_ceil(entry.arg0, TILE) * TILE;
  if (i < column_room) {
    let count = column_count(entry);
    tiles[at + i] = select(NO_KEY, column_at(entry, min(i, max(count, 1u) - 1u)), i < count);
    return;
  }
  i -= column_room;
  at += column_room;
  let covered_room = div_ceil(positions, 32u);
  if (i < covered_room) {
    tiles[at + i] = covered_bits(entry, 32u * i);
    return;
  }
  i -= covered_room;
  at += covered_room;
  if (i < div_ceil(positions, TILE) * TILE) {
    var distance = FAR;
    if (run_count(entry) > 0u) {
      let n = band + i;
      let run = run_at(entry, run_of_key(entry, n));
      let within = n - run.prefix;
      distance = select(FAR, run.lo + within, within < run.hi - run.lo + INDEX_BLOCK);
    }
    tiles[at + i] = distance;
  }
}
