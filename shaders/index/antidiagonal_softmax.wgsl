// XAttention estimate, pass 1 of 2: softmax statistics of the row groups over each tile of 128 key groups.
//
//   m[tile, r] = max_j s[r, j],   l[tile, r] = sum_j exp2(s[r, j] - m[tile, r])
//
// Grid: x = tile of 128 key groups, y = tile of 64 row groups, z = head. Bindings: lib/index_antidiagonal.wgsl, and
//   partial  [heads, row_tiles, tiles, 64] (m, l)

@group(0) @binding(4) var<storage, read_write> partial: array<vec2<f32>>;

fn max4(x: vec4<f32>) -> f32 {
  return max(max(x.x, x.y), max(x.z, x.w));
}

fn sum4(x: vec4<f32>) -> f32 {
  return (x.x + x.y) + (x.z + x.w);
}

// (m, l) over the thread's eight key groups of one row group.
fn row_statistics(lo: vec4<f32>, hi: vec4<f32>) -> vec2<f32> {
  let m = max(M_START, max4(max(lo, hi)));
  return vec2<f32>(m, sum4(exp2(lo - m) + exp2(hi - m)));
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let tx = thread % TX;
  let ty = thread / TX;
  let row = thread;
  let out = ((workgroup.z * params.row_tiles + workgroup.y) * params.tiles + workgroup.x) * TILE_ROWS + row;
  if (!tile_is_visible(workgroup.y, workgroup.x)) {
    if (row < TILE_ROWS) {
      partial[out] = vec2<f32>(M_START, 0.0);
    }
    return;
  }
  var s: array<vec4<f32>, 16>;
  antidiagonal_tile(&s, workgroup.z, workgroup.y, workgroup.x, tx, ty);
  // Two rows a vec4: (m, l) of an even row, (m, l) of the next.
  for (var a = 0u; a < 8u; a += 2u) {
    let even = row_statistics(s[2u * a], s[2u * a + 1u]);
    let odd = row_statistics(s[2u * a + 2u], s[2u * a + 3u]);
    stage[(4u * ty + a / 2u) * TX + tx] = vec4<f32>(even, odd);
  }
  workgroupBarrier();
  if (row < TILE_ROWS) {
    var m = M_START;
    for (var x = 0u; x < TX; x++) {
      let pair = stage[(row / 2u) * TX + x];
      m = max(m, select(pair.x, pair.z, row % 2u == 1u));
    }
    var l = 0.0;
    for (var x = 0u; x < TX; x++) {
      let pair = stage[(row / 2u) * TX + x];
      let part = select(pair.xy, pair.zw, row % 2u == 1u);
      l = fma(part.y, exp2(part.x - m), l);
    }
    partial[out] = vec2<f32>(m, l);
  }
}
