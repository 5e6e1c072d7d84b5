// Vertical-slash estimate, pass 1 of 2: scores of the last query rows, and their softmax statistics over each tile of keys.
//
//   m[tile, r] = max_j s[r, j],   l[tile, r] = sum_j exp2(s[r, j] - m[tile, r]),   j in the tile
//
// Grid: x = tile of 128 keys (from params.first_tile on), y = head. Two threads share a row and take its fours of keys in turn.
// Bindings: lib/index_estimate_params.wgsl, lib/index_queries_keys.wgsl, and
//   tile_statistics  [heads, tiles, 64] (m, l)
//   kept             [heads, kept_tiles, 64, 128] scores, for pass 2

@group(0) @binding(5) var<storage, read_write> tile_statistics: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read_write> kept: array<vec4<f32>>;

// Of this thread's share of its row, so far.
var<private> m: f32;
var<private> l: f32;
// Where the tile's scores are kept.
var<private> is_kept: bool;
var<private> kept_at: u32;

fn take_part(part: u32, thread: u32) {
  let row = thread / 2u;
  var most = vec4<f32>(m);
  for (var i = thread % 2u; i < 2u * PART4; i += 2u) {
    let key = part_key(part, i);
    let s = estimate_four(row, key, part_four(row, i));
    most = max(most, s);
    if (is_kept) {
      kept[kept_at + row * (TILE_KEYS / 4u) + key / 4u] = s;
    }
  }
  let m_new = max4(most);
  var sum = vec4<f32>();
  for (var i = thread % 2u; i < 2u * PART4; i += 2u) {
    sum += exp2(estimate_four(row, part_key(part, i), part_four(row, i)) - m_new);
  }
  l = fma(l, exp2(m - m_new), sum4(sum));
  m = m_new;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let tile = params.first_tile + workgroup.x;
  is_kept = tile - params.kept_first < params.kept_tiles;   // wraps around below the first one
  kept_at = kept_start(workgroup.y, tile);
  m = M_START;
  l = 0.0;
  estimate_tile(thread, workgroup.y, tile);

  stage[thread] = vec4<f32>(m, l, 0.0, 0.0);
  workgroupBarrier();
  if (thread < TILE_ROWS) {
    let a = stage[2u * thread];
    let b = stage[2u * thread + 1u];
    let row_m = max(a.x, b.x);
    let row_l = a.y * exp2(a.x - row_m) + b.y * exp2(b.x - row_m);
    tile_statistics[(workgroup.y * params.tiles + tile) * TILE_ROWS + thread] = vec2<f32>(row_m, row_l);
  }
}
