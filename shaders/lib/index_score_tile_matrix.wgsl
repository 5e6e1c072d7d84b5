// A 64 x 128 tile of dot products between rows and keys on subgroup matrices: what lib/index_score_tile.wgsl does, for
// tensors stored as f16 on devices of the matrix tier.
//
//   s[r, j] = sum_d row[r, d] * key[j, d]          f16 products, f32 sums
//
// A workgroup of TY x TX threads, four subgroups; each multiplies 16 rows with all keys. Rows and keys are staged through
// workgroup memory D_CHUNK dimensions at a time; the scores come back the same way, 64 keys at a time, so that thread
// (ty, tx) ends up with the 8 x 8 square of rows 8 * ty + a and keys 8 * tx + b: s[2 * a] holds keys b = 0..3,
// s[2 * a + 1] keys b = 4..7.
//
// Constants from the pipeline's prelude: HEAD_DIM, D_CHUNK (multiples of 16). The kernel's own files define
// row_vec4(row, d) and key_vec4(key, d): dimensions 4 * d .. 4 * d + 3 of a row or key of the tile, 0 where there is
// none. lib/pack_halves.wgsl has pack_halves. src/index/score_tile.ts writes the aliases Left, Right and Result and, since every matrix must be a variable of
// its own, the function score_tile.

const TILE_ROWS: u32 = 64u;
const TILE_KEYS: u32 = 128u;
const TX: u32 = 16u;
const TY: u32 = 8u;
const THREADS: u32 = TX * TY;
const D4: u32 = HEAD_DIM / 4u;
const DC8: u32 = D_CHUNK / 8u;
const LINE: u32 = DC8 + 1u;           // padded: neighbouring lines fall into different banks
const KEY_LINES: u32 = TILE_ROWS * LINE;
const SCORE_LINE: u32 = 17u;          // 64 scores, padded

// Free for the kernel to use after score_tile.
var<workgroup> stage: array<vec4<f32>, 960>;
var<workgroup> matrix_stage: array<vec4<u32>, max((TILE_ROWS + TILE_KEYS) * LINE, TILE_ROWS * SCORE_LINE)>;

// Stages dimensions d0 .. d0 + 8 * depth8 - 1 of all rows and keys.
fn stage_chunk(d0: u32, depth8: u32, thread: u32) {
  for (var i = thread; i < (TILE_ROWS + TILE_KEYS) * DC8; i += THREADS) {
    let line = i / DC8;
    let d = i % DC8;
    if (d < depth8) {
      let d4 = d0 / 4u + 2u * d;
      if (line < TILE_ROWS) {
        matrix_stage[line * LINE + d] = pack_halves(row_vec4(line, d4), row_vec4(line, d4 + 1u));
      } else {
        matrix_stage[line * LINE + d] = pack_halves(key_vec4(line - TILE_ROWS, d4), key_vec4(line - TILE_ROWS, d4 + 1u));
      }
    }
  }
}

// Reads this thread's square when it lies in the 64 keys that matrix_stage holds.
fn read_half(s: ptr<function, array<vec4<f32>, 16>>, half: u32, tx: u32, ty: u32) {
  if (tx / 8u == half) {
    for (var a = 0u; a < 8u; a++) {
      let at = (8u * ty + a) * SCORE_LINE + 2u * (tx % 8u);
      (*s)[2u * a] = bitcast<vec4<f32>>(matrix_stage[at]);
      (*s)[2u * a + 1u] = bitcast<vec4<f32>>(matrix_stage[at + 1u]);
    }
  }
}
