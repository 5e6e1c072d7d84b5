// A 64 x 128 tile of dot products between rows and keys: the inner loop of both index estimators.
//
//   s[r, j] = sum_d row[r, d] * key[j, d]
//
// A workgroup of TY x TX threads. Thread (ty, tx) keeps the 8 x 8 square of rows 8 * ty + a and keys
// 8 * tx + b in registers: s[2 * a] holds keys b = 0..3, s[2 * a + 1] keys b = 4..7. Contiguous squares
// let the kernels sum along columns and diagonals mostly in registers.
// Rows and keys are staged through workgroup memory D_CHUNK dimensions at a time, as f32.
//
// Constants from the pipeline's prelude: HEAD_DIM, D_CHUNK. The kernel's own files define row_vec4(row, d)
// and key_vec4(key, d): dimensions 4 * d .. 4 * d + 3 of a row or key of the tile, 0 where there is none.

const TILE_ROWS: u32 = 64u;
const TILE_KEYS: u32 = 128u;
const TX: u32 = 16u;
const TY: u32 = 8u;
const THREADS: u32 = TX * TY;
const D4: u32 = HEAD_DIM / 4u;
const DC4: u32 = D_CHUNK / 4u;
const LINE: u32 = DC4 + 1u;           // padded: neighbouring lines fall into different banks
const KEY_LINES: u32 = TILE_ROWS * LINE;
const STAGE_SIZE: u32 = (TILE_ROWS + TILE_KEYS) * LINE;

// Free for the kernel to use after score_tile (at least 960 elements).
var<workgroup> stage: array<vec4<f32>, STAGE_SIZE>;

fn dot_add(a: vec4<f32>, b: vec4<f32>, sum: f32) -> f32 {
  return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

// Every thread of the workgroup must call this together.
fn score_tile(s: ptr<function, array<vec4<f32>, 16>>, tx: u32, ty: u32) {
  let thread = ty * TX + tx;
  for (var i = 0u; i < 16u; i++) {
    (*s)[i] = vec4<f32>();
  }
  for (var d0 = 0u; d0 < D4; d0 += DC4) {
    let depth = min(DC4, D4 - d0);
    // Line n of a thread's square goes to (n % 8) * (threads in that direction) + n / 8, so that
    // neighbouring threads read neighbouring lines.
    for (var i = thread; i < TILE_ROWS * DC4; i += THREADS) {
      let row = i / DC4;
      let d = i % DC4;
      if (d < depth) {
        stage[((row % 8u) * TY + row / 8u) * LINE + d] = row_vec4(row, d0 + d);
      }
    }
    for (var i = thread; i < TILE_KEYS * DC4; i += THREADS) {
      let key = i / DC4;
      let d = i % DC4;
      if (d < depth) {
        stage[KEY_LINES + ((key % 8u) * TX + key / 8u) * LINE + d] = key_vec4(key, d0 + d);
      }
    }
    workgroupBarrier();
    for (var d = 0u; d < depth; d++) {
      let k0 = stage[KEY_LINES + tx * LINE + d];
      let k1 = stage[KEY_LINES + (TX + tx) * LINE + d];
      let k2 = stage[KEY_LINES + (2u * TX + tx) * LINE + d];
      let k3 = stage[KEY_LINES + (3u * TX + tx) * LINE + d];
      let k4 = stage[KEY_LINES + (4u * TX + tx) * LINE + d];
      let k5 = stage[KEY_LINES + (5u * TX + tx) * LINE + d];
      let k6 = stage[KEY_LINES + (6u * TX + tx) * LINE + d];
      let k7 = stage[KEY_LINES + (7u * TX + tx) * LINE + d];
      for (var a = 0u; a < 8u; a++) {
        let row = stage[(a * TY + ty) * LINE + d];
        let lo = (*s)[2u * a];
        let hi = (*s)[2u * a + 1u];
        (*s)[2u * a] =
          vec4<f32>(dot_add(row, k0, lo.x), dot_add(row, k1, lo.y), dot_add(row, k2, lo.z), dot_add(row, k3, lo.w));
        (*s)[2u * a + 1u] =
          vec4<f32>(dot_add(row, k4, hi.x), dot_add(row, k5, hi.y), dot_add(row, k6, hi.z), dot_add(row, k7, hi.w));
      }
    }
    workgroupBarrier();
  }
}
