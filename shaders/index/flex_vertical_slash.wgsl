// FlexPrefill's vertical-slash index (arXiv 2502.20766, algorithm 3), from the least selected scores of its columns and
// diagonals (lib/index_cumulative.wgsl); an empty one for query-aware heads.
//
//   columns   = the selected ones, ascending; by sum or by count, whichever is more; among equal scores the lowest
//   diagonals = the ceil(n / 64) blocks of 64 neighbouring diagonals with the largest sums, block 0 always, where n
//               diagonals are selected
//
// A diagonal costs its row block 64 keys, so the n best ones, scattered, would cost up to 64 n; whole blocks cost
// what n neighbours cost. FlexPrefill's own implementation counts and chooses diagonals in the same way.
//
// Grid: x = 0 columns, 1 diagonals; y = head. Bindings:
//   0  params      of the searches
//   1  keys        [heads, 2, list_stride] bits of f32 scores
//   2  searches    [heads, 4]: columns by sum, by count, diagonals by sum, by count
//   3  chosen      (unused, unused, unused, 0: vertical-slash)
//   4  offsets     [heads] first u32 of the head in `index`
//   5  blocks      [heads, ceil(count / 64)] scratch: sums of blocks of diagonals, then 1 for the kept ones
//   6  index       per head as in lib/vertical_slash_index.wgsl, with room for `count` columns

@group(0) @binding(0) var<uniform> params: CumulativeParams;
@group(0) @binding(1) var<storage, read> keys: array<u32>;
@group(0) @binding(2) var<storage, read> searches: array<Search>;
@group(0) @binding(3) var<storage, read> chosen: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> offsets: array<u32>;
@group(0) @binding(5) var<storage, read_write> blocks: array<u32>;
@group(0) @binding(6) var<storage, read_write> index: array<u32>;

const KEYS_PER_THREAD: u32 = 16u;
const CHUNK: u32 = THREADS * KEYS_PER_THREAD;
const INDEX_BLOCK: u32 = 64u;
const DIAGONALS: u32 = 1u;

var<workgroup> local_histogram: array<atomic<u32>, BINS>;

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

// Is a key selected whatever the others are, and does it equal the least selected one?
fn is_above(key: u32, limit: vec2<u32>) -> bool {
  return key > limit.x || key == FORCED_KEY;
}

fn is_equal(key: u32, limit: vec2<u32>) -> bool {
  return key == limit.x && key != FORCED_KEY;
}

// Every thread must call this together; so also below.
fn sum_over_threads(thread: u32, x: u32) -> u32 {
  return total_of(thread, prefix_sum(thread, x));
}

fn write_columns(thread: u32, slot: u32, at: u32) {
  let first = 2u * slot * params.list_stride;
  let limit = limit_of(2u * slot);
  // Each thread owns consecutive keys of a chunk. Both counts fit 16 bits: a chunk has 4096 keys.
  var above_before = 0u;
  var equal_before = 0u;
  for (var chunk = 0u; chunk < params.count; chunk += CHUNK) {
    let start = min(chunk + thread * KEYS_PER_THREAD, params.count);
    let end = min(start + KEYS_PER_THREAD, params.count);
    var own = 0u;
    for (var i = start; i < end; i++) {
      let key = key_of(i, keys[first + i]);
      own += select(0u, 1u, is_above(key, limit)) + select(0u, 0x10000u, is_equal(key, limit));
    }
    let own_end = prefix_sum(thread, own);
    let total = total_of(thread, own_end);
    var above = above_before + ((own_end - own) & 0xffffu);
    var equal = equal_before + ((own_end - own) >> 16u);
    for (var i = start; i < end; i++) {
      let key = key_of(i, keys[first + i]);
      if (is_above(key, limit)) {
        index[at + 4u + above + min(equal, limit.y)] = i;
        above += 1u;
      } else if (is_equal(key, limit)) {
        if (equal < limit.y) {
          index[at + 4u + above + equal] = i;
        }
        equal += 1u;
      }
    }
    above_before += total & 0xffffu;
    equal_before += total >> 16u;
  }
  if (thread == 0u) {
    index[at] = above_before + min(equal_before, limit.y);
  }
}

fn write_diagonals(thread: u32, slot: u32, at: u32) {
  let first = (2u * slot + 1u) * params.list_stride;
  let limit = limit_of(2u * slot + 1u);
  let n_blocks = (params.count + INDEX_BLOCK - 1u) / INDEX_BLOCK;
  let first_block = slot * n_blocks;

  // Sums of the blocks, and how many diagonals are selected.
  var above = 0u;
  var equal = 0u;
  for (var b = thread; b < n_blocks; b += THREADS) {
    var sum = 0.0;
    for (var i = b * INDEX_BLOCK; i < min((b + 1u) * INDEX_BLOCK, params.count); i++) {
      let bits = keys[first + i];
      let key = key_of(i, bits);
      above += select(0u, 1u, is_above(key, limit));
      equal += select(0u, 1u, is_equal(key, limit));
      sum += bitcast<f32>(bits);
    }
    blocks[first_block + b] = select(bitcast<u32>(sum), FORCED_KEY, b == 0u);
  }
  let n = sum_over_threads(thread, above) + min(sum_over_threads(thread, equal), limit.y);
  storageBarrier();

  // The largest blocks, by an exact radix select: (digits found so far, rank among the sums that start with them).
  var least = vec2<u32>(0u, min((n + INDEX_BLOCK - 1u) / INDEX_BLOCK, n_blocks));
  for (var digit = 0u; digit < DIGITS; digit++) {
    for (var i = thread; i < BINS; i += THREADS) {
      atomicStore(&local_histogram[i], 0u);
    }
    workgroupBarrier();
    for (var b = thread; b < n_blocks; b += THREADS) {
      let key = blocks[first_block + b];
      if (prefix_of(key, digit) == least.x) {
        atomicAdd(&local_histogram[digit_of(key, digit)], 1u);
      }
    }
    workgroupBarrier();
    var counts: array<u32, BINS_PER_THREAD>;
    for (var i = 0u; i < BINS_PER_THREAD; i++) {
      counts[i] = atomicLoad(&local_histogram[BINS - 1u - BINS_PER_THREAD * thread - i]);
    }
    let digit_rank = find_digit(thread, least.y, &counts);
    least = vec2<u32>((least.x << digit_bits(digit)) | digit_rank.x, digit_rank.y);
  }

  // Each thread owns consecutive blocks; among equal sums the nearest diagonals win.
  let share = (n_blocks + THREADS - 1u) / THREADS;
  let start = min(thread * share, n_blocks);
  let end = min(start + share, n_blocks);
  var own_equal = 0u;
  for (var b = start; b < end; b++) {
    own_equal += select(0u, 1u, blocks[first_block + b] == least.x);
  }
  var rank = prefix_sum(thread, own_equal) - own_equal;
  for (var b = start; b < end; b++) {
    let key = blocks[first_block + b];
    blocks[first_block + b] = select(0u, 1u, key > least.x || (key == least.x && rank < least.y));
    rank += select(0u, 1u, key == least.x);
  }
  storageBarrier();

  // Neighbouring kept blocks form a run (lo, hi); prefix = sum of hi - lo + 64 over the runs before it.
  var runs = 0u;
  var covered = 0u;
  for (var b = start; b < end; b++) {
    if (blocks[first_block + b] == 1u) {
      let starts = b == 0u || blocks[first_block + max(b, 1u) - 1u] == 0u;
      runs += select(0u, 1u, starts);
      covered += select(INDEX_BLOCK, 2u * INDEX_BLOCK - 1u, starts);
    }
  }
  let runs_end = prefix_sum(thread, runs);
  let n_runs = total_of(thread, runs_end);
  var prefix = prefix_sum(thread, covered) - covered;
  var next_run = runs_end - runs;
  let first_run = at + 4u + params.count;
  for (var b = start; b < end; b++) {
    if (blocks[first_block + b] == 1u) {
      if (b == 0u || blocks[first_block + max(b, 1u) - 1u] == 0u) {
        index[first_run + 3u * next_run] = b * INDEX_BLOCK;
        index[first_run + 3u * next_run + 2u] = prefix;
        next_run += 1u;
        prefix += INDEX_BLOCK - 1u;
      }
      prefix += INDEX_BLOCK;
      if (b + 1u == n_blocks || blocks[first_block + min(b + 1u, n_blocks - 1u)] == 0u) {
        index[first_run + 3u * (next_run - 1u) + 1u] = min((b + 1u) * INDEX_BLOCK, params.count) - 1u;
      }
    }
  }
  if (thread == 0u) {
    index[at + 1u] = n_runs;
    index[at + 2u] = 0u;
    index[at + 3u] = 0u;
  }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let slot = workgroup.y;
  let at = offsets[slot];
  if (chosen[slot].w != 0u) {
    if (thread == 0u) {
      index[at + workgroup.x] = 0u;
    }
  } else if (workgroup.x == DIAGONALS) {
    write_diagonals(thread, slot, at);
  } else {
    write_columns(thread, slot, at);
  }
}
