// What all steps of the top-k selection over many lists bind, and how they follow the digits found so far.
//
// A list is searched for its k-th largest key digit by digit. topk_histogram.wgsl counts one digit of the
// keys that share the digits found before; the next step finds the digit from those counts, in every
// workgroup again, because that is cheaper than a dispatch of its own.

struct Segment {
  start: u32,        // first key of the list in `keys`
  count: u32,        // keys in the list
  k: u32,            // how many to select, 1 .. count
  output: u32,       // where the selected positions go in `output`
}

@group(0) @binding(0) var<storage, read> segments: array<Segment>;
@group(0) @binding(1) var<storage, read> keys: array<u32>;
@group(0) @binding(2) var<storage, read_write> histogram: array<atomic<u32>>;  // [segments, DIGITS, BINS], 0 at first
@group(0) @binding(3) var<storage, read_write> found: array<vec2<u32>>;        // [segments, DIGITS] (prefix, rank)

const KEYS_PER_THREAD: u32 = 16u;
const CHUNK: u32 = THREADS * KEYS_PER_THREAD;

// The first `digits` digits (1 to 3) of the k-th largest key, and its rank among the keys that start so.
// Every thread of the workgroup must call this together.
fn follow_digits(segment: u32, chunk: u32, thread: u32, digits: u32) -> vec2<u32> {
  let digit = digits - 1u;
  var before = vec2<u32>(0u, segments[segment].k);
  if (digit > 0u) {
    before = found[segment * DIGITS + digit - 1u];
  }
  var counts: array<u32, BINS_PER_THREAD>;
  let last_bin = (segment * DIGITS + digit) * BINS + BINS - 1u - BINS_PER_THREAD * thread;
  for (var i = 0u; i < BINS_PER_THREAD; i++) {
    counts[i] = atomicLoad(&histogram[last_bin - i]);
  }
  let digit_rank = find_digit(thread, before.y, &counts);
  let now = vec2<u32>((before.x << digit_bits(digit)) | digit_rank.x, digit_rank.y);
  if (chunk == 0u && thread == 0u) {
    found[segment * DIGITS + digit] = now;
  }
  return now;
}
