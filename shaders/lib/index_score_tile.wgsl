// A 64 x 128 tile of dot products between rows and keys: the inner loop of both index estimators.
//
//   s[r, j] = sum_d row[r, d] * key[j, d]
//
// A workgroup of TY x TX threads. Thread (ty, tx) keeps the 8 x 8 square of rows 8 * ty + a and keys
// 8 * tx + b in registers: s[2 * a] holds keys b = 0..3, s[2 * a + 1] keys b = 4..7. Contiguous squares
// let the kernels sum along columns and diagonals mostly in registers.
// Rows and keys are staged through workgroup memory 16 dimensions at a time, as f32 and transposed, as in
// lib/flash_attention.wgsl: a vec4 holds one dimension of four rows or keys.
//
// Constants from the pipeline's prelude: HEAD_DIM, a multiple of 16. The kernel's own files define row_vec4(row, d)
// and key_vec4(key, d): dimensions 4 * d .. 4 * d + 3 of a row or key of the tile, 0 where there is none.
// UNIT: see withUnit in src/kernels/shader_text.ts.

const TILE_ROWS: u32 = 64u;
const TILE_KEYS: u32 = 128u;
const TX: u32 = 16u;
const TY: u32 = 8u;
const THREADS: u32 = TX * TY;
const D4: u32 = HEAD_DIM / 4u;
const DC4: u32 = 4u;                        // vec4 of dimensions staged at a time
// From one dimension to the next, and from four to the next four: padded, neighbours that stage other dimensions of the same rows
// store into other banks.
const ROW_STRIDE: u32 = TILE_ROWS / 4u;
const KEY_STRIDE: u32 = TILE_KEYS / 4u;
const ROW_GROUP: u32 = 4u * ROW_STRIDE + 2u;
const KEY_GROUP: u32 = 4u * KEY_STRIDE + 2u;
const KEYS_AT: u32 = DC4 * ROW_GROUP;
const ROW_PATCHES: u32 = ROW_STRIDE * DC4;
const PATCHES: u32 = ROW_PATCHES + KEY_STRIDE * DC4;

// `stage` of lib/stage_patch.wgsl, free for the kernel to use after score_tile.
const STAGE_SIZE: u32 = 960u;

// Every thread of the workgroup must call this together.
fn score_tile(s: ptr<function, array<vec4<f32>, 16>>, tx: u32, ty: u32) {
  let thread = ty * TX + tx;
  for (var i = 0u; i < 16u; i++) {
    (*s)[i] = vec4<f32>();
  }
  for (var d0 = 0u; d0 < D4; d0 += DC4) {
    // The two vec4 of a thread's square lie TX or TY apart, so that neighbouring threads read neighbours.
    for (var i = thread; i < PATCHES; i += THREADS) {
      let d = i % DC4;
      if (i < ROW_PATCHES) {
        let four = i / DC4;
        let row = 4u * four;
        stage_patch(
          d * ROW_GROUP + four % 2u * TY + four / 2u, ROW_STRIDE,
          row_vec4(row, d0 + d), row_vec4(row + 1u, d0 + d), row_vec4(row + 2u, d0 + d), row_vec4(row + 3u, d0 + d));
      } else {
        let four = (i - ROW_PATCHES) / DC4;
        let key = 4u * four;
        stage_patch(
          KEYS_AT + d * KEY_GROUP + four % 2u * TX + four / 2u, KEY_STRIDE,
          key_vec4(key, d0 + d), key_vec4(key + 1u, d0 + d), key_vec4(key + 2u, d0 + d), key_vec4(key + 3u, d0 + d));
      }
    }
    workgroupBarrier();
    for (var group = 0u; group < DC4 * UNIT; group++) {
      for (var e = 0u; e < 4u; e++) {
        let k_at = KEYS_AT + group * KEY_GROUP + e * KEY_STRIDE + tx;
        let k_lo = stage[k_at];
        let k_hi = stage[k_at + TX];
        for (var half = 0u; half < 2u; half++) {
          let rows = stage[group * ROW_GROUP + e * ROW_STRIDE + half * TY + ty];
          for (var a = 0u; a < 4u; a++) {
            let at = 8u * half + 2u * a;
            (*s)[at] = fma(vec4<f32>(rows[a]), k_lo, (*s)[at]);
            (*s)[at + 1u] = fma(vec4<f32>(rows[a]), k_hi, (*s)[at + 1u]);
          }
        }
      }
    }
    workgroupBarrier();
  }
}
