// Vertical-slash estimate, pass 1 of 2: softmax statistics of the last query rows over each tile of keys.
//
//   m[tile, r] = max_j s[r, j],   l[tile, r] = sum_j exp2(s[r, j] - m[tile, r]),   j in the tile
//
// Grid: x = tile of 128 keys (from params.first_tile on), y = head.
// Bindings: lib/index_estimate.wgsl, and
//   tile_statistics  [heads, tiles, 64] (m, l)
//   kept             [heads, kept_tiles, 16, threads] scores, for pass 2

@group(0) @binding(4) var<storage, read_write> tile_statistics: array<vec2<f32>>;
@group(0) @binding(5) var<storage, read_write> kept: array<vec4<f32>>;

fn max4(x: vec4<f32>) -> f32 {
  return max(max(x.x, x.y), max(x.z, x.w));
}

fn sum4(x: vec4<f32>) -> f32 {
  return (x.x + x.y) + (x.z + x.w);
}

// (m, l) over the thread's eight keys of one row.
fn row_statistics(lo: vec4<f32>, hi: vec4<f32>) -> vec2<f32> {
  let m = max(M_START, max4(max(lo, hi)));
  return vec2<f32>(m, sum4(exp2(lo - m) + exp2(hi - m)));
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let tx = thread % TX;
  let ty = thread / TX;
  let tile = params.first_tile + workgroup.x;
  var s: array<vec4<f32>, 16>;
  estimate_tile(&s, workgroup.y, tile, tx, ty);
  if (tile < params.kept_tiles) {
    let at = kept_start(workgroup.y, tile, tx, ty);
    for (var i = 0u; i < 16u; i++) {
      kept[at + i * THREADS] = s[i];
    }
  }

  // Two rows a vec4: (m, l) of an even row, (m, l) of the next.
  for (var a = 0u; a < 8u; a += 2u) {
    let even = row_statistics(s[2u * a], s[2u * a + 1u]);
    let odd = row_statistics(s[2u * a + 2u], s[2u * a + 3u]);
    stage[(4u * ty + a / 2u) * TX + tx] = vec4<f32>(even, odd);
  }
  workgroupBarrier();
  let row = thread;
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
    tile_statistics[(workgroup.y * params.tiles + tile) * TILE_ROWS + row] = vec2<f32>(m, l);
  }
}
