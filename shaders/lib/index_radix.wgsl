// Parts of an exact radix select over u32 keys: the digits (11, 11 and 10 bits, most significant first),
// a prefix sum over the 256 threads of a workgroup, and the search for the digit that holds a rank.

const THREADS: u32 = 256u;
const BINS: u32 = 2048u;
const BINS_PER_THREAD: u32 = BINS / THREADS;
const DIGITS: u32 = 3u;

var<workgroup> scan_scratch: array<u32, 2u * THREADS>;
var<workgroup> found_digit: vec2<u32>;

fn digit_bits(digit: u32) -> u32 {
  return select(11u, 10u, digit == 2u);
}

// The given digit of a key.
fn digit_of(key: u32, digit: u32) -> u32 {
  return select((key >> (21u - 11u * min(digit, 1u))) & 2047u, key & 1023u, digit == 2u);
}

// All digits of a key before the given one, right-aligned.
fn prefix_of(key: u32, digit: u32) -> u32 {
  return select(key >> select(10u, 21u, digit == 1u), 0u, digit == 0u);
}

// Sum of x over threads 0 .. thread. Every thread of the workgroup must call this together.
fn prefix_sum(thread: u32, x: u32) -> u32 {
  var sum = x;
  var half = 0u;
  workgroupBarrier();
  for (var distance = 1u; distance < THREADS; distance *= 2u) {
    scan_scratch[half + thread] = sum;
    workgroupBarrier();
    if (thread >= distance) {
      sum += scan_scratch[half + thread - distance];
    }
    half = THREADS - half;
  }
  return sum;
}

// Sum of x over all threads; x is also given as its prefix sum. Every thread must call this together.
fn total_of(thread: u32, sum: u32) -> u32 {
  workgroupBarrier();
  if (thread == THREADS - 1u) {
    scan_scratch[0] = sum;
  }
  workgroupBarrier();
  return scan_scratch[0];
}

// Thread t gives the counts of digits BINS - 1 - 8 t, BINS - 2 - 8 t, ... (descending). Returns the digit of the
// rank-th largest key (rank from 1) and its rank among the keys with that digit. All threads together.
fn find_digit(thread: u32, rank: u32, counts: ptr<function, array<u32, BINS_PER_THREAD>>) -> vec2<u32> {
  var sum = 0u;
  for (var i = 0u; i < BINS_PER_THREAD; i++) {
    sum += (*counts)[i];
  }
  let end = prefix_sum(thread, sum);
  var before = end - sum;
  if (before < rank && rank <= end) {
    var i = 0u;
    while (before + (*counts)[i] < rank) {
      before += (*counts)[i];
      i += 1u;
    }
    found_digit = vec2<u32>(BINS - 1u - BINS_PER_THREAD * thread - i, rank - before);
  }
  workgroupBarrier();
  return found_digit;
}
