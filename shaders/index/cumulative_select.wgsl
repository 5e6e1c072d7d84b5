// Block-sparse index with as many key blocks as it takes: for each row block the fewest blocks whose scores
// add up to a share of the total (XAttention, arXiv 2503.16428).
//
//   forced = block 0 and the diagonal blocks, whose scores are +inf here
//   kept   = forced, and the largest others until the sum of all kept scores reaches fraction * total
//
// The scores of a row block are probabilities: with the forced ones they add up to a known total, so
//   needed of the others = (sum of the others) - (1 - fraction) * total
// The least kept score is found bit by bit, two bits a pass, among scores that are not negative: their bits
// sort like the numbers. Among equal scores the lowest block number wins. Sums run in a fixed order.
//
// Grid: x = row block of the strip, y = head. Bindings:
//   0  params
//   1  heads    (first u32 of the head in `index`, bits of fraction, room per row block, start of the counts)
//   2  scores   [heads, strip_rows, row_stride] bits of f32, four at a time
//   3  index    per head [q_blocks, room] block numbers, then [q_blocks] counts (see ../block_sparse.wgsl)

struct SelectParams {
  first_block: u32,      // first row block of the strip
  strip_rows: u32,
  row_stride: u32,       // a multiple of 4
  q_offset: u32,
  n_q: u32,
  row_step: u32,         // query rows that a probability row stands for
}

@group(0) @binding(0) var<uniform> params: SelectParams;
@group(0) @binding(1) var<storage, read> heads: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scores: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> index: array<u32>;

const INDEX_BLOCK: u32 = 64u;
const INFINITY_BITS: u32 = 0x7f800000u;

var<workgroup> sums: array<vec4<f32>, THREADS>;

// Sum over all threads. Every thread must call this together.
fn add_up(thread: u32, x: vec4<f32>) -> vec4<f32> {
  workgroupBarrier();
  sums[thread] = x;
  workgroupBarrier();
  for (var half = THREADS / 2u; half > 0u; half /= 2u) {
    if (thread < half) {
      sums[thread] += sums[thread + half];
    }
    workgroupBarrier();
  }
  return workgroupUniformLoad(&sums[0]);
}

// Four scores of a row block; zeros behind its last key block.
fn four_scores(row: u32, i: u32, count: u32) -> vec4<u32> {
  let numbers = vec4<u32>(4u * i) + vec4<u32>(0u, 1u, 2u, 3u);
  return select(vec4<u32>(), scores[row + i], numbers < vec4<u32>(count));
}

// Scores as numbers, those that are forced as zero.
fn number_of(bits: vec4<u32>) -> vec4<f32> {
  return select(vec4<f32>(), bitcast<vec4<f32>>(bits), bits < vec4<u32>(INFINITY_BITS));
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let block = params.first_block + workgroup.x;
  let head = heads[workgroup.y];
  let first_row = block * INDEX_BLOCK;
  let end_row = min(first_row + INDEX_BLOCK, params.n_q);
  let count = (params.q_offset + end_row - 1u) / INDEX_BLOCK + 1u;
  let total = f32((end_row - first_row + params.row_step - 1u) / params.row_step);
  let row = (workgroup.y * params.strip_rows + workgroup.x) * (params.row_stride / 4u);
  let fours = (count + 3u) / 4u;

  var own = 0.0;
  for (var i = thread; i < fours; i += THREADS) {
    own += sum4(number_of(four_scores(row, i, count)));
  }
  let others = add_up(thread, vec4<f32>(own)).x;
  let needed = others - (1.0 - bitcast<f32>(head.y)) * total;

  // Largest threshold such that the scores from it on add up to what is needed.
  var threshold = INFINITY_BITS;
  if (needed > 0.0) {
    threshold = 0u;
    for (var shift = 30u; shift < 32u; shift -= 2u) {
      let step = 1u << shift;
      let candidates = vec3<u32>(threshold + step, threshold + 2u * step, threshold + 3u * step);
      var part = vec4<f32>();
      for (var i = thread; i < fours; i += THREADS) {
        let bits = four_scores(row, i, count);
        let x = number_of(bits);
        part.x += sum4(select(vec4<f32>(), x, bits >= vec4<u32>(candidates.x)));
        part.y += sum4(select(vec4<f32>(), x, bits >= vec4<u32>(candidates.y)));
        part.z += sum4(select(vec4<f32>(), x, bits >= vec4<u32>(candidates.z)));
      }
      let reached = add_up(thread, part);
      if (reached.z >= needed && candidates.z < INFINITY_BITS) {
        threshold = candidates.z;
      } else if (reached.y >= needed && candidates.y < INFINITY_BITS) {
        threshold = candidates.y;
      } else if (reached.x >= needed && candidates.x < INFINITY_BITS) {
        threshold = candidates.x;
      }
    }
  }

  // How many of the scores that equal the threshold are needed.
  var above = 0.0;
  for (var i = thread; i < fours; i += THREADS) {
    let bits = four_scores(row, i, count);
    above += sum4(select(vec4<f32>(), number_of(bits), bits > vec4<u32>(threshold)));
  }
  let above_sum = add_up(thread, vec4<f32>(above)).x;
  var take = 0u;
  if (threshold > 0u && threshold < INFINITY_BITS) {
    take = u32(clamp(ceil((needed - above_sum) / bitcast<f32>(threshold)), 1.0, f32(count)));
  }

  let out = head.x + block * head.z;
  var kept_before = 0u;
  var equal_before = 0u;
  for (var start = 0u; start < fours; start += THREADS) {
    let i = start + thread;
    var bits = vec4<u32>();
    if (i < fours) {
      bits = four_scores(row, i, count);
    }
    // Of what lies behind the last key block all bits are 0, which a threshold is only where none of its like are taken.
    let equal = select(vec4<u32>(), vec4<u32>(1u), bits == vec4<u32>(threshold));
    let equal_end = prefix_sum(thread, equal.x + equal.y + equal.z + equal.w);
    let equal_total = total_of(thread, equal_end);
    // Scores equal to the threshold up to each of the four.
    let w = equal_before + equal_end;
    let rank = vec4<u32>(w - equal.y - equal.z - equal.w, w - equal.z - equal.w, w - equal.w, w);
    let taken = (equal == vec4<u32>(1u)) & (rank <= vec4<u32>(take));
    let keep = select(vec4<u32>(), vec4<u32>(1u), (bits > vec4<u32>(threshold)) | (bits >= vec4<u32>(INFINITY_BITS)) | taken);
    let kept = keep.x + keep.y + keep.z + keep.w;
    let kept_end = prefix_sum(thread, kept);
    let kept_total = total_of(thread, kept_end);
    var at = kept_before + kept_end - kept;
    for (var e = 0u; e < 4u; e++) {
      if (keep[e] == 1u && at < head.z) {
        index[out + at] = 4u * i + e;
      }
      at += keep[e];
    }
    kept_before += kept_total;
    equal_before += equal_total;
  }
  if (thread == 0u) {
    index[head.x + head.w + block] = min(kept_before, head.z);
  }
}
