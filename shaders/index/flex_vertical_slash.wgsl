// FlexPrefill's vertical-slash index (arXiv 2502.20766, algorithm 3): writes the columns and the diagonals whose scores
// reach the least selected one (lib/index_cumulative.wgsl), ascending, and nothing for query-aware heads.
//
//   selected = by sum or by count, whichever is more; among equal scores the lowest positions
//
// Grid: x = 0 columns, 1 diagonals; y = head. Bindings:
//   0  params      of the searches; forced, count and scale are those of both lists
//   1  keys        [heads, 2, list_stride] bits of f32 scores
//   2  searches    [heads, 4]: columns by sum, by count, diagonals by sum, by count
//   3  chosen      (unused, unused, unused, 0: vertical-slash)
//   4  offsets     [heads] first u32 of the head in `index`
//   5  selected    [heads, count] diagonals
//   6  index       per head as in lib/vertical_slash_index.wgsl, with room for `count` columns

@group(0) @binding(0) var<uniform> params: CumulativeParams;
@group(0) @binding(1) var<storage, read> keys: array<u32>;
@group(0) @binding(2) var<storage, read> searches: array<Search>;
@group(0) @binding(3) var<storage, read> chosen: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> offsets: array<u32>;
@group(0) @binding(5) var<storage, read_write> selected: array<u32>;
@group(0) @binding(6) var<storage, read_write> index: array<u32>;

const KEYS_PER_THREAD: u32 = 16u;
const CHUNK: u32 = THREADS * KEYS_PER_THREAD;
const DIAGONALS: u32 = 1u;

// (least selected key, how many of those that equal it), of the copy that selects more.
fn limit_of(list: u32) -> vec2<u32> {
  let by_sum = searches[2u * list];
  let by_count = searches[2u * list + 1u];
  var take = 0u;
  if (by_sum.running != 0u) {
    let each = max(bitcast<f32>(by_sum.found) * params.scale, 1e-6);
    take = u32(clamp(ceil(f32(by_sum.rank) / each), 1.0, f32(params.count)));
  }
  if (by_sum.found == by_count.found) {
    return vec2<u32>(by_sum.found, max(take, by_count.rank));
  }
  return select(vec2<u32>(by_count.found, by_count.rank), vec2<u32>(by_sum.found, take), by_sum.found < by_count.found);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let slot = workgroup.y;
  let at = offsets[slot];
  if (chosen[slot].w != 0u) {
    if (thread == 0u) {
      index[at + workgroup.x] = 0u;
    }
    return;
  }
  let list = 2u * slot + workgroup.x;
  let first = list * params.list_stride;
  let limit = limit_of(list);

  // Each thread owns consecutive keys of a chunk. Both counts fit 16 bits: a chunk has 4096 keys.
  var above_before = 0u;
  var equal_before = 0u;
  for (var chunk = 0u; chunk < params.count; chunk += CHUNK) {
    let start = min(chunk + thread * KEYS_PER_THREAD, params.count);
    let end = min(start + KEYS_PER_THREAD, params.count);
    var own = 0u;
    for (var i = start; i < end; i++) {
      let key = key_of(i, keys[first + i]);
      own += select(0u, 1u, key > limit.x || key == FORCED_KEY) + select(0u, 0x10000u, key == limit.x && key != FORCED_KEY);
    }
    let own_end = prefix_sum(thread, own);
    let total = total_of(thread, own_end);
    var above = above_before + ((own_end - own) & 0xffffu);
    var equal = equal_before + ((own_end - own) >> 16u);
    for (var i = start; i < end; i++) {
      let key = key_of(i, keys[first + i]);
      let is_equal = key == limit.x && key != FORCED_KEY;
      if (key > limit.x || key == FORCED_KEY || (is_equal && equal < limit.y)) {
        let to = above + min(equal, limit.y);
        if (workgroup.x == DIAGONALS) {
          selected[slot * params.count + to] = i;
        } else {
          index[at + 4u + to] = i;
        }
      }
      above += select(1u, 0u, is_equal || key < limit.x);
      equal += select(0u, 1u, is_equal);
    }
    above_before += total & 0xffffu;
    equal_before += total >> 16u;
  }
  let n = above_before + min(equal_before, limit.y);
  if (workgroup.x == DIAGONALS) {
    storageBarrier();
    let n_runs = write_runs(thread, slot * params.count, n, at + 4u + params.count);
    if (thread == 0u) {
      index[at + 1u] = n_runs;
      index[at + 2u] = 0u;
      index[at + 3u] = 0u;
    }
  } else if (thread == 0u) {
    index[at] = n;
  }
}
