// Top-k selection, step `DIGIT` of 3: histogram of one digit over the keys that may still be the k-th largest.
//
// Grid: x = chunk of 4096 keys, y = list. Bindings: lib/index_topk.wgsl

override DIGIT: u32 = 0u;

var<workgroup> local_histogram: array<atomic<u32>, BINS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let segment = segments[workgroup.y];
  let start = workgroup.x * CHUNK;
  if (start >= segment.count) {
    return;
  }
  for (var i = thread; i < BINS; i += THREADS) {
    atomicStore(&local_histogram[i], 0u);
  }
  var prefix = 0u;
  if (DIGIT > 0u) {
    prefix = follow_digits(workgroup.y, workgroup.x, thread, DIGIT).x;
  }
  workgroupBarrier();
  for (var j = 0u; j < KEYS_PER_THREAD; j++) {
    let i = start + j * THREADS + thread;
    if (i < segment.count) {
      let key = keys[segment.start + i];
      if (prefix_of(key, DIGIT) == prefix) {
        atomicAdd(&local_histogram[digit_of(key, DIGIT)], 1u);
      }
    }
  }
  workgroupBarrier();
  let first_bin = (workgroup.y * DIGITS + DIGIT) * BINS;
  for (var i = thread; i < BINS; i += THREADS) {
    let n = atomicLoad(&local_histogram[i]);
    if (n > 0u) {
      atomicAdd(&histogram[first_bin + i], n);
    }
  }
}
