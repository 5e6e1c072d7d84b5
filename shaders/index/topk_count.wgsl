// Top-k selection: how many keys of each chunk are above the k-th largest key, and how many equal it.
//
// Grid: x = chunk of 4096 keys, y = list. Bindings: lib/index_topk.wgsl, and
//   chunk_counts  [lists, chunks] (above, equal)

@group(0) @binding(4) var<storage, read_write> chunk_counts: array<vec2<u32>>;

var<workgroup> above_total: atomic<u32>;
var<workgroup> equal_total: atomic<u32>;

@compute @workgroup_size(THREADS)
fn main(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) grid: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let segment = segments[workgroup.y];
  let start = workgroup.x * CHUNK;
  if (start >= segment.count) {
    return;
  }
  if (thread == 0u) {
    atomicStore(&above_total, 0u);
    atomicStore(&equal_total, 0u);
  }
  let threshold = follow_digits(workgroup.y, workgroup.x, thread, DIGITS).x;
  var above = 0u;
  var equal = 0u;
  for (var j = 0u; j < KEYS_PER_THREAD; j++) {
    let i = start + j * THREADS + thread;
    if (i < segment.count) {
      let key = keys[segment.start + i];
      above += select(0u, 1u, key > threshold);
      equal += select(0u, 1u, key == threshold);
    }
  }
  workgroupBarrier();
  if (above > 0u) {
    atomicAdd(&above_total, above);
  }
  if (equal > 0u) {
    atomicAdd(&equal_total, equal);
  }
  workgroupBarrier();
  if (thread == 0u) {
    chunk_counts[workgroup.y * grid.x + workgroup.x] = vec2<u32>(atomicLoad(&above_total), atomicLoad(&equal_total));
  }
}
