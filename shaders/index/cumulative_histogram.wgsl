// Cumulative selection, digit `DIGIT` of 3: mass of the keys that may still be the least selected one, by that digit.
//
//   histogram[list, DIGIT, digit] = sum of mass(key) over the keys that start with the digits found so far
//
// Grid: x = chunk of 4096 keys, y = list. Bindings:
//   0  params      lib/index_cumulative.wgsl
//   1  keys        bits of f32 scores
//   2  searches    [lists]
//   3  histogram   [lists, DIGITS, BINS], 0 at first

override DIGIT: u32 = 0u;

@group(0) @binding(0) var<uniform> params: CumulativeParams;
@group(0) @binding(1) var<storage, read> keys: array<u32>;
@group(0) @binding(2) var<storage, read> searches: array<Search>;
@group(0) @binding(3) var<storage, read_write> histogram: array<atomic<u32>>;

const KEYS_PER_THREAD: u32 = 16u;
const CHUNK: u32 = THREADS * KEYS_PER_THREAD;

var<workgroup> local_histogram: array<atomic<u32>, BINS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let list = workgroup.y;
  let search = searches[list];
  let start = workgroup.x * CHUNK;
  if (search.running == 0u || start >= params.count) {
    return;
  }
  for (var i = thread; i < BINS; i += THREADS) {
    atomicStore(&local_histogram[i], 0u);
  }
  workgroupBarrier();
  for (var j = 0u; j < KEYS_PER_THREAD; j++) {
    let i = start + j * THREADS + thread;
    if (i < params.count) {
      let key = key_of(i, keys[(list / params.copies) * params.list_stride + i]);
      if (prefix_of(key, DIGIT) == search.found) {
        let mass = mass_of(list, i, key);
        if (mass > 0u) {
          atomicAdd(&local_histogram[digit_of(key, DIGIT)], mass);
        }
      }
    }
  }
  workgroupBarrier();
  let first_bin = (list * DIGITS + DIGIT) * BINS;
  for (var i = thread; i < BINS; i += THREADS) {
    let mass = atomicLoad(&local_histogram[i]);
    if (mass > 0u) {
      atomicAdd(&histogram[first_bin + i], mass);
    }
  }
}
