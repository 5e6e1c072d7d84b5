// Vertical-slash estimate, pass 2 of 2: sums of the attention probabilities of the last query rows along
// columns and diagonals.
//
//   A[r, j] = exp2(s[r, j] - lse2[r]),   lse2[r] = m[r] + log2(l[r])
//   vertical[j] = sum_r A[r, j]                                  (+inf for the first forced_columns)
//   diagonal_partial[tile, r - j + 127] = sum of A[r, j] in the tile, j counted from its first key
//
// Probabilities take 64 numbers per key: as many tiles as there is room for are kept from pass 1, which runs again for the others; so
// A[r, j] = kept[tile, r, j] exp2(share_m[tile, r, share of j] - lse2[r]). Thread (ty, tx) has the 8 x 8 square of rows 8 ty + a and
// keys 8 tx + b. Sums run in a fixed order, so results do not change from run to run. slash_scores.wgsl adds the tiles' diagonals up.
//
// Grid: x = tile of 128 keys (from params.first_tile on), y = head.
// Bindings: lib/index_estimate_params.wgsl, and
//   merged            [heads, 64] (m, l) over all keys
//   scores            [heads, 2, 128 * tiles] bits of f32; the first of the two lists is `vertical`
//   diagonal_partial  [heads, tiles, 192]
//   kept              [heads, kept_tiles, 64, 128] probabilities, from pass 1
//   share_maxima      [heads, kept_tiles, 64, 2 KEPT_PARTS]

@group(0) @binding(1) var<storage, read> merged: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> scores: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> diagonal_partial: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> kept: array<Kept>;
@group(0) @binding(5) var<storage, read> share_maxima: array<f32>;

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
  let kept_slot = kept_tile(workgroup.y, tile);
  var p: array<vec4<f32>, 16>;
  var share_m: array<f32, 8>;
  for (var a = 0u; a < 8u; a++) {
    let row = 8u * ty + a;
    let eight = of_kept(kept[kept_slot * KEPT_TILE + row * (TILE_KEYS / 8u) + tx]);
    p[2u * a] = eight[0];
    p[2u * a + 1u] = eight[1];
    share_m[a] = share_maxima[(kept_slot * TILE_ROWS + row) * (2u * KEPT_PARTS) + share_of(tx)];
  }
  workgroupBarrier();
  var columns_lo = vec4<f32>();
  var columns_hi = vec4<f32>();
  for (var a = 0u; a < 8u; a++) {
    let factor = exp2(share_m[a] - lse2[8u * ty + a]);
    p[2u * a] *= factor;
    p[2u * a + 1u] *= factor;
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
