// Cumulative selection, digit `DIGIT` of 3: finds the digit of the least selected key from the histogram.
//
//   digit = the largest one from which on the mass reaches the rank
//
// Grid: x = list. Bindings:
//   0  params      lib/index_cumulative.wgsl
//   1  histogram   [lists, DIGITS, BINS]
//   2  searches    [lists]

override DIGIT: u32 = 0u;

@group(0) @binding(0) var<uniform> params: CumulativeParams;
@group(0) @binding(1) var<storage, read> histogram: array<u32>;
@group(0) @binding(2) var<storage, read_write> searches: array<Search>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let list = workgroup.x;
  let search = searches[list];
  var masses: array<u32, BINS_PER_THREAD>;
  var own = 0u;
  let last_bin = (list * DIGITS + DIGIT) * BINS + BINS - 1u - BINS_PER_THREAD * thread;
  for (var i = 0u; i < BINS_PER_THREAD; i++) {
    masses[i] = histogram[last_bin - i];
    own += masses[i];
  }
  let total = total_of(thread, prefix_sum(thread, own));
  let rank = select(search.rank, total - min(total, search.slack), DIGIT == 0u);
  let digit_rank = find_digit(thread, rank, &masses);
  if (thread == 0u && search.running != 0u) {
    if (rank == 0u) {
      searches[list] = Search(FORCED_KEY, 0u, search.slack, 0u);
    } else {
      searches[list] = Search((search.found << digit_bits(DIGIT)) | digit_rank.x, digit_rank.y, search.slack, 1u);
    }
  }
}
