// Adds up the key tiles' shares of every diagonal. Diagonal d holds the keys at distance d before the row.
//
//   slash[d] = sum_r A[r, p_r - d]                               (+inf for the nearest `forced` diagonals)
//
// The last 64 rows see a diagonal through at most two tiles of 128 keys.
// Grid: x = 256 diagonals, y = head. Bindings:
//   0  params: (first_position, tiles, n_kv, forced)
//   1  diagonal_partial  [heads, tiles, 192], see estimate_sums.wgsl
//   2  scores            [heads, 2, 128 * tiles] bits of f32; the second of the two lists is `slash`

const TILE_KEYS: u32 = 128u;
const TILE_DIAGONALS: u32 = 192u;
const INFINITY_BITS: u32 = 0x7f800000u;

@group(0) @binding(0) var<uniform> params: vec4<u32>;
@group(0) @binding(1) var<storage, read> diagonal_partial: array<f32>;
@group(0) @binding(2) var<storage, read_write> scores: array<u32>;

// Share of a tile whose first key lies `e` keys after key `first_position - d` (e from -127 to 63).
fn tile_share(head: u32, tile: i32, e: i32) -> f32 {
  if (tile < 0 || u32(tile) >= params.y) {
    return 0.0;
  }
  return diagonal_partial[(head * params.y + u32(tile)) * TILE_DIAGONALS + u32(e + 127)];
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let d = workgroup.x * 256u + thread;
  if (d >= params.z) {
    return;
  }
  // Row 0 meets the diagonal at this key, row r at r keys later.
  let key = i32(params.x) - i32(d);
  let first = key >> 7u;
  let last = (key + 63) >> 7u;
  var sum = tile_share(workgroup.y, first, first * 128 - key);
  if (last != first) {
    sum += tile_share(workgroup.y, last, last * 128 - key);
  }
  scores[(2u * workgroup.y + 1u) * params.y * TILE_KEYS + d] =
    select(bitcast<u32>(sum), INFINITY_BITS, d < params.w);
}
