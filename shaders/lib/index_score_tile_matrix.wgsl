// A tile of TILE_ROWS x 128 dot products between rows and keys on subgroup matrices: what lib/index_score_tile.wgsl does,
// for tensors stored as f16 on devices of the matrix tier.
//
//   s[r, j] = sum_d row[r, d] * key[j, d]          f16 products, f32 sums
//
// A workgroup of TY x TX threads; each of its subgroups multiplies 32 rows with 64 keys. Rows and keys are staged through
// workgroup memory D_CHUNK dimensions at a time, as stored. Every thread fetches its words of the next chunk, all at
// once and without a branch between them, before it multiplies the current one. The scores come back through the same
// memory, 4 * PART4 keys of each half of the keys at a time: see index_score_squares_matrix.wgsl and index_score_parts_matrix.wgsl.
//
// Constants from the pipeline's prelude: HEAD_DIM, D_CHUNK, which divides it (multiples of 16). The kernel's own files
// define q, k, row_place and key_place (below). src/index/score_tile.ts writes TILE_ROWS, PART4, `stage`, which is free
// for the kernel to use, `s_tile`, and, since every matrix must be a variable of its own, the function that multiplies.

const TILE_KEYS: u32 = 128u;
const TX: u32 = 16u;
const TY: u32 = TILE_ROWS / 8u;
const THREADS: u32 = TX * TY;
const D4: u32 = HEAD_DIM / 4u;
const D8: u32 = HEAD_DIM / 8u;
const DC8: u32 = D_CHUNK / 8u;
const LINE: u32 = DC8 + 1u;           // padded: neighbouring lines fall into different banks
const SCORE_LINE: u32 = 2u * PART4 + 2u;   // padded, as suits stores of matrices

// Dimensions 8 * d .. 8 * d + 7 of a row of the tile, 0 where there is none.
fn row_word(row: u32, d: u32) -> vec4<u32> {
  let place = row_place(row, 2u * d);
  return select(vec4<u32>(), vec4<u32>(q[place.at], q[place.at + 1u]), place.exists);
}

// The same of a key.
fn key_word(key: u32, d: u32) -> vec4<u32> {
  let place = key_place(key, 2u * d);
  return select(vec4<u32>(), vec4<u32>(k[place.at], k[place.at + 1u]), place.exists);
}
