// Vertical-slash estimate, pass 1 of 2: scores of the last query rows, and their softmax statistics over each tile of keys.
//
//   m[tile, r] = max_j s[r, j],   l[tile, r] = sum_j exp2(s[r, j] - m[tile, r]),   j in the tile
//   kept[tile, r, j] = exp2(s[r, j] - share_m[tile, r, share of j]),   share_m = max s over the share
//
// Grid: x = params.tiles_each tiles of 128 keys (from params.first_tile on), y = head. Two threads share a row and take its eights of
// keys in turn, in each part of a tile: what a thread takes of a part is a share.
// Bindings: lib/index_estimate_params.wgsl, lib/index_tensors.wgsl, and
//   tile_statistics  [heads, tiles, 64] (m, l)
//   kept             [heads, kept_tiles, 64, 128] probabilities, for pass 2
//   share_maxima     [heads, kept_tiles, 64, 2 KEPT_PARTS]

@group(0) @binding(5) var<storage, read_write> tile_statistics: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read_write> kept: array<Kept>;
@group(0) @binding(7) var<storage, read_write> share_maxima: array<f32>;

var<private> head_slot: u32;
// The tile at hand, and of this thread's shares of its row in it so far:
var<private> tile_at_hand: u32;
var<private> m: f32;
var<private> l: f32;
// Whether the tile's probabilities are kept, and which of the kept tiles it is.
var<private> is_kept: bool;
var<private> kept_slot: u32;

fn begin_tile(tile: u32) {
  tile_at_hand = tile;
  first_key = tile * TILE_KEYS;
  is_kept = tile - params.kept_first < params.kept_tiles;   // wraps around below the first one
  kept_slot = kept_tile(head_slot, tile);
  m = M_START;
  l = 0.0;
}

fn take_part(part: u32, thread: u32) {
  let row = thread / 2u;
  var most = vec4<f32>(M_START);
  for (var e = thread % 2u; e < PART4; e += 2u) {
    let key = part_key(part, 2u * e);
    most = max(most, estimate_four(row, key, part_four(row, 2u * e)));
    most = max(most, estimate_four(row, key + 4u, part_four(row, 2u * e + 1u)));
  }
  let share_m = max4(most);
  var sum = vec4<f32>();
  for (var e = thread % 2u; e < PART4; e += 2u) {
    let key = part_key(part, 2u * e);
    let lo = exp2(estimate_four(row, key, part_four(row, 2u * e)) - share_m);
    let hi = exp2(estimate_four(row, key + 4u, part_four(row, 2u * e + 1u)) - share_m);
    sum += lo + hi;
    if (is_kept) {
      kept[kept_slot * KEPT_TILE + row * (TILE_KEYS / 8u) + key / 8u] = to_kept(lo, hi);
    }
  }
  if (is_kept) {
    share_maxima[(kept_slot * TILE_ROWS + row) * (2u * KEPT_PARTS) + share_of(part_key(part, 2u * (thread % 2u)) / 8u)] = share_m;
  }
  let m_new = max(m, share_m);
  l = l * exp2(m - m_new) + sum4(sum) * exp2(share_m - m_new);
  m = m_new;
}

fn end_tile(thread: u32) {
  stage[thread] = vec4<f32>(m, l, 0.0, 0.0);
  workgroupBarrier();
  if (thread < TILE_ROWS) {
    let a = stage[2u * thread];
    let b = stage[2u * thread + 1u];
    let row_m = max(a.x, b.x);
    let row_l = a.y * exp2(a.x - row_m) + b.y * exp2(b.x - row_m);
    tile_statistics[(head_slot * params.tiles + tile_at_hand) * TILE_ROWS + thread] = vec2<f32>(row_m, row_l);
  }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  head_slot = workgroup.y;
  begin_heads(head_slot);
  let first = params.first_tile + workgroup.x * params.tiles_each;
  score_tiles(thread, first, min(first + params.tiles_each, params.end_tile));
}
