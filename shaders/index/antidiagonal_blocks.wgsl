// XAttention estimate, pass 2 of 2: the probabilities of the row groups, added up over blocks of 64 rows and 64 keys.
//
//   score[b, c] = sum over row groups r of b and key groups j of c of exp2(s[r, j] - lse2[r])
//   +inf for key block 0 and for the diagonal: key blocks that hold a row of b
//
// Scores of blocks that no row of b sees stay as they are. Blocks are 64 / STRIDE groups: STRIDE is 8 or 16.
// Grid: x = tile of 128 key groups, y = tile of 64 row groups, z = head. Bindings: lib/index_antidiagonal.wgsl, and
//   merged  [heads, row_tiles, 64] (m, l) over all keys
//   scores  [heads, row_tiles * STRIDE, row_stride] bits of f32

@group(0) @binding(4) var<storage, read> merged: array<vec2<f32>>;
@group(0) @binding(5) var<storage, read_write> scores: array<u32>;

const INDEX_BLOCK: u32 = 64u;
const GROUPS: u32 = INDEX_BLOCK / STRIDE;    // per block: 8 or 4
const SPLIT: u32 = 8u / GROUPS;              // blocks along a side of a thread's 8 x 8 square
const INFINITY_BITS: u32 = 0x7f800000u;

fn sum4(x: vec4<f32>) -> f32 {
  return (x.x + x.y) + (x.z + x.w);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let tx = thread % TX;
  let ty = thread / TX;
  if (!tile_is_visible(workgroup.y, workgroup.x)) {
    return;
  }
  var s: array<vec4<f32>, 16>;
  antidiagonal_tile(&s, workgroup.z, workgroup.y, workgroup.x, tx, ty);
  let slot = workgroup.z * params.row_tiles + workgroup.y;
  for (var y = 0u; y < SPLIT; y++) {
    // Sums of the square's left and right half.
    var left = 0.0;
    var right = 0.0;
    for (var a = y * GROUPS; a < (y + 1u) * GROUPS; a++) {
      let row = 8u * ty + a;
      if ((first_group + row) * STRIDE < params.n_q) {
        let statistics = merged[slot * TILE_ROWS + row];
        let lse2 = vec4<f32>(statistics.x + log2(statistics.y));
        left += sum4(exp2(s[2u * a] - lse2));
        right += sum4(exp2(s[2u * a + 1u] - lse2));
      }
    }
    let first_row = (first_group + 8u * ty + y * GROUPS) * STRIDE;
    if (first_row < params.n_q) {
      let diagonal = (params.q_offset + first_row) / INDEX_BLOCK;
      let row = slot * STRIDE + ty * SPLIT + y;
      let key_block = tile_first_block(workgroup.x) + tx * SPLIT;
      if (SPLIT == 1u) {
        scores[row * params.row_stride + key_block] = score_bits(left + right, key_block, diagonal);
      } else {
        scores[row * params.row_stride + key_block] = score_bits(left, key_block, diagonal);
        scores[row * params.row_stride + key_block + 1u] = score_bits(right, key_block + 1u, diagonal);
      }
    }
  }
}

fn tile_first_block(tile: u32) -> u32 {
  return tile * (TILE_KEYS / GROUPS);
}

fn score_bits(sum: f32, key_block: u32, diagonal: u32) -> u32 {
  return select(bitcast<u32>(sum), INFINITY_BITS, key_block == 0u || key_block >= diagonal);
}
