// Block-sparse index: the `keep` best key blocks of every row block, ascending; among equal scores the lowest
// block number wins. One workgroup does one row block, by an exact radix select.
//
// Long rows first try what reads less: the keep-th largest of the threads' maxima bounds the selected scores from below, and as each thread
// looks at blocks from all over the row, few more than `keep` reach it. Those are listed, and ranked by comparing each with each. Where
// the list is too short or some of several equal scores are kept, the radix select does it after all.
//
// Grid: x = row block of the strip, y = head. Bindings:
//   0  params    as in block_scores.wgsl
//   1  heads     (unused, unused, first u32 of the head in `index`, keep)
//   2  scores    [heads, strip_rows, row_stride] u32 keys, four at a time
//   3  maxima    [heads, strip_rows, row_stride / 8] u32, greatest of eight neighbouring keys
//   4  index     [q_blocks, keep] u32 per head (see ../block_sparse.wgsl)

struct BlockParams {
  first_block: u32,
  q_blocks: u32,
  k_blocks: u32,
  strip_rows: u32,
  row_stride: u32,
  q_offset: u32,
  n_q: u32,
}

@group(0) @binding(0) var<uniform> params: BlockParams;
@group(0) @binding(1) var<storage, read> heads: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scores: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> maxima: array<u32>;
@group(0) @binding(4) var<storage, read_write> index: array<u32>;

const INDEX_BLOCK: u32 = 64u;
const KEYS_PER_THREAD: u32 = 8u;
const CHUNK: u32 = THREADS * KEYS_PER_THREAD;

// Blocks of a row that is long, and how many a list may hold.
const LONG: u32 = 4096u;
const LISTED: u32 = 256u;

// The histogram of the radix select, or words that threads write one by one: vectors are written as a whole.
var<workgroup> local_histogram: array<atomic<u32>, BINS>;
var<workgroup> bound: atomic<u32>;
var<workgroup> listed: atomic<u32>;
var<workgroup> listed_groups: atomic<u32>;
var<workgroup> selected: atomic<u32>;
// What all are compared with, four at a time.
var<workgroup> listed_keys: array<vec4<u32>, LISTED / 4u>;
var<workgroup> listed_blocks: array<vec4<u32>, LISTED / 4u>;

// Which of four neighbouring keys from `i` on lie before `end`. Keys are named one by one below: a vector that a loop indexes would
// lie in memory.
fn before(i: u32, end: u32) -> vec4<bool> {
  return vec4<u32>(i, i + 1u, i + 2u, i + 3u) < vec4<u32>(end);
}

fn ones(which: vec4<bool>) -> vec4<u32> {
  return select(vec4<u32>(), vec4<u32>(1u), which);
}

fn sum_of(x: vec4<u32>) -> u32 {
  return (x.x + x.y) + (x.z + x.w);
}

// Four words from `first` on, of which only those before `end` exist.
fn four_words(first: u32, i: u32, end: u32, otherwise: u32) -> vec4<u32> {
  let at = first + i;
  let words = vec4<u32>(
    atomicLoad(&local_histogram[at]),
    atomicLoad(&local_histogram[at + 1u]),
    atomicLoad(&local_histogram[at + 2u]),
    atomicLoad(&local_histogram[at + 3u]),
  );
  return select(vec4<u32>(otherwise), words, before(i, end));
}

// Lists a block whose key reaches the bound.
fn list_block(key: u32, exists: bool, least: u32, block: u32) {
  if (exists && key >= least) {
    let at = atomicAdd(&listed, 1u);
    if (at < LISTED) {
      atomicStore(&local_histogram[at], key);
      atomicStore(&local_histogram[LISTED + at], block);
    }
  }
}

// Lists those of four blocks whose keys reach the bound.
fn list_four(at: u32, i: u32, count: u32, least: u32) {
  let key = scores[at];
  let exists = before(i, count);
  list_block(key.x, exists.x, least, i);
  list_block(key.y, exists.y, least, i + 1u);
  list_block(key.z, exists.z, least, i + 2u);
  list_block(key.w, exists.w, least, i + 3u);
}

// Lists every block that may be selected and maybe a few more; returns how many there are, which may be more than LISTED, or fewer
// than `keep` if there are more of these than threads. `row` counts vectors of four keys. Every thread of the workgroup must call this
// together.
fn list_candidates(thread: u32, row: u32, count: u32, keep: u32) -> u32 {
  let groups = (count + 7u) / 8u;
  if (thread == 0u) {
    atomicStore(&bound, 0xffffffffu);
    atomicStore(&listed, 0u);
    atomicStore(&listed_groups, 0u);
    atomicStore(&selected, 0u);
  }
  // The last group is greatest even if keys in it lie past the end: the diagonal is among them, and above all.
  var own = 0u;
  for (var i = thread; i < groups; i += THREADS) {
    own = max(own, maxima[row / 2u + i]);
  }
  // Without their lowest bits maxima are compared by subtracting: the bound may come out lower for it, never higher.
  atomicStore(&local_histogram[thread], own >> 1u);
  workgroupBarrier();
  if (thread < THREADS / 4u) {
    listed_keys[thread] = four_words(0u, 4u * thread, THREADS, 0u);
  }
  workgroupBarrier();
  var above = vec4<u32>();
  for (var i = 0u; i < THREADS / 4u; i++) {
    above += (vec4<u32>(own >> 1u) - listed_keys[i]) >> vec4<u32>(31u);
  }
  if (sum_of(above) < keep) {
    atomicMin(&bound, own);
  }
  workgroupBarrier();
  let least = atomicLoad(&bound);
  // Groups first, so that all their keys are on the way at once.
  if (own >= least) {
    for (var i = thread; i < groups; i += THREADS) {
      if (maxima[row / 2u + i] >= least) {
        let at = atomicAdd(&listed_groups, 1u);
        if (at < LISTED) {
          atomicStore(&local_histogram[2u * LISTED + at], i);
        }
      }
    }
  }
  let total = workgroupUniformLoad(&listed_groups);
  if (total > LISTED) {
    return total;
  }
  for (var i = thread; i < 2u * total; i += THREADS) {
    let four = 2u * atomicLoad(&local_histogram[2u * LISTED + i / 2u]) + i % 2u;
    list_four(row + four, 4u * four, count, least);
  }
  return workgroupUniformLoad(&listed);
}

// Writes the `keep` best of the listed blocks, ascending; does nothing and returns false where equal scores compete for the last
// places. Every thread of the workgroup must call this together.
fn select_listed(thread: u32, total: u32, keep: u32, out: u32) -> bool {
  let words = (total + 3u) / 4u;
  for (var i = 4u * thread; i < total; i += 4u * THREADS) {
    listed_keys[i / 4u] = four_words(0u, i, total, 0u);
  }
  workgroupBarrier();
  for (var i = thread; i < total; i += THREADS) {
    let key = atomicLoad(&local_histogram[i]);
    var above = vec4<u32>();
    for (var w = 0u; w < words; w++) {
      above += ones(listed_keys[w] > vec4<u32>(key));
    }
    if (sum_of(above) < keep) {
      atomicAdd(&selected, 1u);
    } else {
      atomicStore(&local_histogram[LISTED + i], 0xffffffffu);
    }
  }
  if (workgroupUniformLoad(&selected) != keep) {
    return false;
  }
  for (var i = 4u * thread; i < total; i += 4u * THREADS) {
    listed_blocks[i / 4u] = four_words(LISTED, i, total, 0xffffffffu);
  }
  workgroupBarrier();
  for (var i = thread; i < total; i += THREADS) {
    let block = atomicLoad(&local_histogram[LISTED + i]);
    if (block != 0xffffffffu) {
      var before = vec4<u32>();
      for (var w = 0u; w < words; w++) {
        before += ones(listed_blocks[w] < vec4<u32>(block));
      }
      index[out + sum_of(before)] = block;
    }
  }
  return true;
}

// Counts a key's digit if it starts with the digits found before.
fn count_digit(key: u32, exists: bool, digit: u32, found: u32) {
  if (exists && prefix_of(key, digit) == found) {
    atomicAdd(&local_histogram[digit_of(key, digit)], 1u);
  }
}

// What a row's selection has come to: keys above the threshold and equal to it, so far.
struct Place {
  above: u32,
  equal: u32,
}

// Writes a block if its key is above the threshold, or equal to it and early enough. `limit` is (threshold, how many keys to take
// that are equal to it).
fn select_block(place: ptr<function, Place>, key: u32, exists: bool, block: u32, limit: vec2<u32>, out: u32) {
  if (exists && key > limit.x) {
    index[out + (*place).above + min((*place).equal, limit.y)] = block;
    (*place).above += 1u;
  } else if (exists && key == limit.x) {
    if ((*place).equal < limit.y) {
      index[out + (*place).above + (*place).equal] = block;
    }
    (*place).equal += 1u;
  }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let block = params.first_block + workgroup.x;
  let head = heads[workgroup.y];
  let keep = head.w;
  let out = head.z + block * keep;
  let last_position = params.q_offset + min((block + 1u) * INDEX_BLOCK, params.n_q) - 1u;
  let count = last_position / INDEX_BLOCK + 1u;
  if (count <= keep) {
    for (var i = thread; i < count; i += THREADS) {
      index[out + i] = i;
    }
    return;
  }

  let row = (workgroup.y * params.strip_rows + workgroup.x) * params.row_stride / 4u;
  if (count > LONG) {
    let total = list_candidates(thread, row, count, keep);
    if (keep <= total && total <= LISTED && select_listed(thread, total, keep, out)) {
      return;
    }
  }

  // (digits found so far, rank among the keys that start with them)
  var limit = vec2<u32>(0u, keep);
  for (var digit = 0u; digit < DIGITS; digit++) {
    for (var i = thread; i < BINS; i += THREADS) {
      atomicStore(&local_histogram[i], 0u);
    }
    workgroupBarrier();
    for (var i = 4u * thread; i < count; i += 4u * THREADS) {
      let key = scores[row + i / 4u];
      let exists = before(i, count);
      count_digit(key.x, exists.x, digit, limit.x);
      count_digit(key.y, exists.y, digit, limit.x);
      count_digit(key.z, exists.z, digit, limit.x);
      count_digit(key.w, exists.w, digit, limit.x);
    }
    workgroupBarrier();
    var counts: array<u32, BINS_PER_THREAD>;
    for (var i = 0u; i < BINS_PER_THREAD; i++) {
      counts[i] = atomicLoad(&local_histogram[BINS - 1u - BINS_PER_THREAD * thread - i]);
    }
    let digit_rank = find_digit(thread, limit.y, &counts);
    limit = vec2<u32>((limit.x << digit_bits(digit)) | digit_rank.x, digit_rank.y);
  }

  // Each thread owns consecutive keys of a chunk. Both counts fit 16 bits: a chunk has 2048 keys.
  var above_before = 0u;
  var equal_before = 0u;
  for (var chunk = 0u; chunk < count; chunk += CHUNK) {
    let start = min(chunk + thread * KEYS_PER_THREAD, count);
    let end = min(start + KEYS_PER_THREAD, count);
    var own = vec4<u32>();
    for (var i = start; i < end; i += 4u) {
      let key = scores[row + i / 4u];
      let above = ones(key > vec4<u32>(limit.x));
      let equal = select(vec4<u32>(), vec4<u32>(0x10000u), key == vec4<u32>(limit.x));
      own += select(vec4<u32>(), above + equal, before(i, end));
    }
    let own_count = sum_of(own);
    let own_end = prefix_sum(thread, own_count);
    let total = total_of(thread, own_end);
    var place = Place(above_before + ((own_end - own_count) & 0xffffu), equal_before + ((own_end - own_count) >> 16u));
    if (own_count > 0u) {
      for (var i = start; i < end; i += 4u) {
        let key = scores[row + i / 4u];
        let exists = before(i, end);
        select_block(&place, key.x, exists.x, i, limit, out);
        select_block(&place, key.y, exists.y, i + 1u, limit, out);
        select_block(&place, key.z, exists.z, i + 2u, limit, out);
        select_block(&place, key.w, exists.w, i + 3u, limit, out);
      }
    }
    above_before += total & 0xffffu;
    equal_before += total >> 16u;
  }
}
