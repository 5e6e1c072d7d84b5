// Top-k selection, last step: writes the positions of the k largest keys, ascending. Among keys that equal
// the k-th largest, those at the lowest positions are taken.
//
// Grid: x = chunk of 4096 keys, y = list. Bindings:
//   0  segments      1  keys            as in lib/index_topk.wgsl
//   2  found         [lists, DIGITS]; the last entry of a list is (threshold, keys equal to it to take)
//   3  chunk_counts  [lists, chunks] (above, equal)
//   4  output        positions, from each list's `output` on

struct Segment {
  start: u32,
  count: u32,
  k: u32,
  output: u32,
}

@group(0) @binding(0) var<storage, read> segments: array<Segment>;
@group(0) @binding(1) var<storage, read> keys: array<u32>;
@group(0) @binding(2) var<storage, read> found: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read> chunk_counts: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read_write> output: array<u32>;

const KEYS_PER_THREAD: u32 = 16u;
const CHUNK: u32 = THREADS * KEYS_PER_THREAD;

@compute @workgroup_size(THREADS)
fn main(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) grid: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let segment = segments[workgroup.y];
  let chunk_start = workgroup.x * CHUNK;
  if (chunk_start >= segment.count) {
    return;
  }
  let limit = found[workgroup.y * DIGITS + DIGITS - 1u];
  let threshold = limit.x;
  let take = limit.y;

  // Keys above and equal in the chunks before this one.
  var before = vec2<u32>(0u, 0u);
  for (var c = thread; c < workgroup.x; c += THREADS) {
    before += chunk_counts[workgroup.y * grid.x + c];
  }
  let above_before = total_of(thread, prefix_sum(thread, before.x));
  let equal_before = total_of(thread, prefix_sum(thread, before.y));

  // Each thread owns consecutive keys. Both counts fit 16 bits: a chunk has 4096 keys.
  let start = chunk_start + thread * KEYS_PER_THREAD;
  let end = min(start + KEYS_PER_THREAD, segment.count);
  var own = 0u;
  for (var i = start; i < end; i++) {
    let key = keys[segment.start + i];
    own += select(0u, 1u, key > threshold) + select(0u, 0x10000u, key == threshold);
  }
  let chunk_before = prefix_sum(thread, own) - own;
  var above = above_before + (chunk_before & 0xffffu);
  var equal = equal_before + (chunk_before >> 16u);
  for (var i = start; i < end; i++) {
    let key = keys[segment.start + i];
    if (key > threshold) {
      output[segment.output + above + min(equal, take)] = i;
      above += 1u;
    } else if (key == threshold) {
      if (equal < take) {
        output[segment.output + above + equal] = i;
      }
      equal += 1u;
    }
  }
}
