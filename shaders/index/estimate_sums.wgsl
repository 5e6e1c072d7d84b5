// Vertical-slash estimate, pass 2 of 2: sums of the attention probabilities of the last query rows along
// columns and diagonals.
//
//   A[r, j] = exp2(s[r, j] - lse2[r])
//   vertical[j] = sum_r A[r, j]                                  (+inf for the first forced_columns)
//   diagonal_partial[tile, r - j + 127] = sum of A[r, j] in the tile, j counted from its first key
//
// Scores take 64 words per key: as many tiles as there is room for are kept from pass 1, which runs again for the others. Thread
// (ty, tx) has the 8 x 8 square of rows 8 ty + a and keys 8 tx + b. Sums run in a fixed order, so results do not change from
// run to run. slash_scores.wgsl adds the tiles' diagonals up.
//
// Grid: x = tile of 128 keys (from params.first_tile on), y = head.
// Bindings: lib/index_estimate_params.wgsl, and
//   merged            [heads, 64] (m, l) over all keys
//   scores            [heads, 2, 128 * tiles] bits of f32; the first of the two lists is `vertical`
//   diagonal_partial  [heads, tiles, 192]
//   kept              [heads, kept_tiles, 64, 128] scores, from pass 1

@group(0) @binding(1) var<storage, read> merged: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> scores: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> diagonal_partial: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> kept: array<vec4<f32>>;

const TILE_ROWS: u32 = 64u;
const TILE_KEYS: u32 = 128u;
const TX: u32 = 16u;
const TY: u32 = 8u;
const THREADS: u32 = TX * TY;
const INFINITY_BITS: u32 = 0x7f800000u;
const DIAGONAL_GROUPS: u32 = (TILE_ROWS + TILE_KEYS) / 4u;
// Parts of `stage`: four groups of four diagonals per thread, then two groups of four columns per thread.
const COLUMN_SUMS: u32 = 4u * THREADS;

var<workgroup> stage: array<vec4<f32>, 6u * THREADS>;
var<workgroup> lse2: array<f32, TILE_ROWS>;

// Sums along the diagonals row - key = -3, -2, -1, 0 of a 4 x 4 square.
fn diagonals_low(r0: vec4<f32>, r1: vec4<f32>, r2: vec4<f32>, r3: vec4<f32>) -> vec4<f32> {
  return vec4<f32>(r0.w, r0.z + r1.w, r0.y + r1.z + r2.w, (r0.x + r1.y) + (r2.z + r3.w));
}

// Sums along the diagonals row - key = 1, 2, 3, 4 of a 4 x 4 square; the last is empty.
fn diagonals_high(r1: vec4<f32>, r2: vec4<f32>, r3: vec4<f32>) -> vec4<f32> {
  return vec4<f32>(r1.x + r2.y + r3.z, r2.x + r3.y, r3.x, 0.0);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let tx = thread % TX;
  let ty = thread / TX;
  let tile = params.first_tile + workgroup.x;
  if (thread < TILE_ROWS) {
    var row_lse2 = 0.0;
    if (thread < params.rows) {
      let statistics = merged[workgroup.y * TILE_ROWS + thread];
      row_lse2 = statistics.x + log2(statistics.y);
    }
    lse2[thread] = row_lse2;
  }
  var p: array<vec4<f32>, 16>;
  let at = kept_start(workgroup.y, tile) + 8u * ty * (TILE_KEYS / 4u) + 2u * tx;
  for (var a = 0u; a < 8u; a++) {
    p[2u * a] = kept[at + a * (TILE_KEYS / 4u)];
    p[2u * a + 1u] = kept[at + a * (TILE_KEYS / 4u) + 1u];
  }
  workgroupBarrier();
  var columns_lo = vec4<f32>();
  var columns_hi = vec4<f32>();
  for (var a = 0u; a < 8u; a++) {
    let row_lse2 = vec4<f32>(lse2[8u * ty + a]);
    p[2u * a] = exp2(p[2u * a] - row_lse2);
    p[2u * a + 1u] = exp2(p[2u * a + 1u] - row_lse2);
    columns_lo += p[2u * a];
    columns_hi += p[2u * a + 1u];
  }

  // The square's diagonals row - key = 8 (ty - tx) + (-7 .. 8), from its four 4 x 4 squares.
  stage[4u * thread] = diagonals_low(p[1], p[3], p[5], p[7]);
  stage[4u * thread + 1u] =
    diagonals_high(p[3], p[5], p[7]) + diagonals_low(p[0], p[2], p[4], p[6]) + diagonals_low(p[9], p[11], p[13], p[15]);
  stage[4u * thread + 2u] =
    diagonals_high(p[2], p[4], p[6]) + diagonals_high(p[11], p[13], p[15]) + diagonals_low(p[8], p[10], p[12], p[14]);
  stage[4u * thread + 3u] = diagonals_high(p[10], p[12], p[14]);
  stage[COLUMN_SUMS + 2u * thread] = columns_lo;
  stage[COLUMN_SUMS + 2u * thread + 1u] = columns_hi;
  workgroupBarrier();

  if (thread < TILE_KEYS / 4u) {
    var sum = vec4<f32>();
    for (var y = 0u; y < TY; y++) {
      sum += stage[COLUMN_SUMS + 2u * TX * y + thread];
    }
    let key = vec4<u32>(tile * TILE_KEYS + 4u * thread) + vec4<u32>(0u, 1u, 2u, 3u);
    scores[(2u * workgroup.y * params.tiles + tile) * (TILE_KEYS / 4u) + thread] =
      select(bitcast<vec4<u32>>(sum), vec4<u32>(INFINITY_BITS), key < vec4<u32>(params.forced_columns));
  } else if (thread < TILE_KEYS / 4u + DIAGONAL_GROUPS) {
    // Diagonals 4 g - 127 .. 4 g - 124: the lower half of squares with ty - tx + 15 = g / 2 and the upper
    // half of squares with one less.
    let g = thread - TILE_KEYS / 4u;
    var sum = vec4<f32>();
    for (var y = 0u; y < TY; y++) {
      let x_lower = y + TX - 1u - g / 2u;      // wraps around when there is no such square
      if (x_lower < TX) {
        sum += stage[4u * (y * TX + x_lower) + g % 2u];
      }
      let x_upper = x_lower + 1u;
      if (x_upper < TX) {
        sum += stage[4u * (y * TX + x_upper) + 2u + g % 2u];
      }
    }
    diagonal_partial[(workgroup.y * params.tiles + tile) * DIAGONAL_GROUPS + g] = sum;
  }
}
