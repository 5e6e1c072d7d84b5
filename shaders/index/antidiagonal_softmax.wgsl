// XAttention estimate, pass 1 of 2: softmax statistics of the row groups over each tile of 128 key groups, and the
// shares of the tile's key blocks.
//
//   m[tile, r] = max_j s[r, j],   l[tile, r] = sum_j exp2(s[r, j] - m[tile, r])
//   block_sums[c, r] = sum over key groups j of c of exp2(s[r, j] - m[tile, r])
//
// A block of 64 keys is 64 / STRIDE groups: STRIDE is 8 or 16.
// Grid: x = tile of 128 key groups, y = tile of TILE_ROWS row groups, z = head. Bindings: lib/index_antidiagonal_params.wgsl,
// lib/index_tensors.wgsl, and
//   partial     [heads, strips of 64 row groups, tiles, 64] (m, l)
//   block_sums  [heads, row_tiles, tiles, blocks of a tile, TILE_ROWS]; nothing for tiles that no row group sees

@group(0) @binding(5) var<storage, read_write> partial: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read_write> block_sums: array<vec4<f32>>;

const STRIP: u32 = 64u;
const ROWS4: u32 = TILE_ROWS / 4u;
const SPLIT: u32 = STRIDE / 8u;              // key blocks along a side of a thread's 8 x 8 square
const TILE_BLOCKS: u32 = TX * SPLIT;

// m of four row groups each.
var<workgroup> row_max: array<vec4<f32>, ROWS4>;

// Where (m, l) of the tile's row group 4 * row4 lies.
fn partial_start(workgroup: vec3<u32>, row4: u32) -> u32 {
  let strip = (workgroup.z * params.row_tiles + workgroup.y) * (TILE_ROWS / STRIP) + 4u * row4 / STRIP;
  return (strip * params.tiles + workgroup.x) * STRIP + 4u * row4 % STRIP;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let tx = thread % TX;
  let ty = thread / TX;
  let out = partial_start(workgroup, thread);
  if (!tile_is_visible(workgroup.y, workgroup.x)) {
    if (thread < ROWS4) {
      for (var i = 0u; i < 4u; i++) {
        partial[out + i] = vec2<f32>(M_START, 0.0);
      }
    }
    return;
  }
  var s: array<vec4<f32>, 16>;
  antidiagonal_tile(&s, workgroup.z, workgroup.y, workgroup.x, tx, ty);

  // Maxima, then sums, of four rows at a time: over the thread's eight key groups, then over the threads of the rows.
  for (var h = 0u; h < 2u; h++) {
    let a = 8u * h;
    stage[(2u * ty + h) * TX + tx] = vec4<f32>(
      max4(max(s[a], s[a + 1u])), max4(max(s[a + 2u], s[a + 3u])),
      max4(max(s[a + 4u], s[a + 5u])), max4(max(s[a + 6u], s[a + 7u])));
  }
  workgroupBarrier();
  if (thread < ROWS4) {
    var m = vec4<f32>(M_START);
    for (var x = 0u; x < TX; x++) {
      m = max(m, stage[thread * TX + x]);
    }
    row_max[thread] = m;
  }
  workgroupBarrier();
  let first_block = ((workgroup.z * params.row_tiles + workgroup.y) * params.tiles + workgroup.x) * TILE_BLOCKS + SPLIT * tx;
  for (var h = 0u; h < 2u; h++) {
    let a = 8u * h;
    let m = row_max[2u * ty + h];
    let left = vec4<f32>(
      sum4(exp2(s[a] - m.x)), sum4(exp2(s[a + 2u] - m.y)), sum4(exp2(s[a + 4u] - m.z)), sum4(exp2(s[a + 6u] - m.w)));
    let right = vec4<f32>(
      sum4(exp2(s[a + 1u] - m.x)), sum4(exp2(s[a + 3u] - m.y)), sum4(exp2(s[a + 5u] - m.z)), sum4(exp2(s[a + 7u] - m.w)));
    let at = first_block * ROWS4 + 2u * ty + h;
    if (SPLIT == 1u) {
      block_sums[at] = left + right;
    } else {
      block_sums[at] = left;
      block_sums[at + ROWS4] = right;
    }
    stage[(2u * ty + h) * TX + tx] = left + right;
  }
  workgroupBarrier();
  if (thread < ROWS4) {
    let m = row_max[thread];
    var l = vec4<f32>();
    for (var x = 0u; x < TX; x++) {
      l += stage[thread * TX + x];
    }
    for (var i = 0u; i < 4u; i++) {
      partial[out + i] = vec2<f32>(m[i], l[i]);
    }
  }
}
