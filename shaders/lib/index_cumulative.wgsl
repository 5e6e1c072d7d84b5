// What the steps of a cumulative selection share: of each list of scores, the fewest, largest first, that hold a share
// gamma of the list's sum (FlexPrefill, arXiv 2502.20766, algorithms 3 and 4).
//
// The least selected score is found digit by digit, as in a top-k selection (lib/index_radix.wgsl), with the scores' mass
// in the place of counts:
//
//   mass(x) = x * scale, rounded up or down by a hash of its place, so that sums of many small scores stay right
//   rank    = mass of the whole list - slack,   slack = (1 - gamma) * total * scale
//
// since what is left out may hold the slack at most. Forced scores (the first `forced` of a list and those that are
// +inf) come before all others and have no mass. A list can be there twice: in its second copy every score has mass 1,
// which selects by count.

struct CumulativeParams {
  list_stride: u32,      // elements from one list to the next in `keys`
  count: u32,            // elements of a list
  forced: u32,           // elements at the start of a list that are selected whatever they score
  copies: u32,           // 1, or 2: list 2 i is selected by its sum, list 2 i + 1, the same keys, by count
  scale: f32,
}

// State of the search of one list.
struct Search {
  found: u32,            // digits of the least selected key so far
  rank: u32,             // mass still needed of the keys that start with them
  slack: u32,
  running: u32,          // 0: nothing is looked for; `found` is then larger than every key when nothing more is needed
}

const INFINITY_BITS: u32 = 0x7f800000u;
const FORCED_KEY: u32 = 0xffffffffu;

fn is_by_count(list: u32) -> bool {
  return params.copies == 2u && list % 2u == 1u;
}

// Number in [0, 1) that depends on an element's place alone (PCG).
fn dither(place: u32) -> f32 {
  let state = place * 747796405u + 2891336453u;
  let word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
  return f32(((word >> 22u) ^ word) >> 8u) / 16777216.0;
}

// Scores are not negative, so their bits sort as they do.
fn key_of(i: u32, bits: u32) -> u32 {
  return select(bits, FORCED_KEY, i < params.forced || bits >= INFINITY_BITS);
}

fn mass_of(list: u32, i: u32, key: u32) -> u32 {
  if (is_by_count(list)) {
    return 1u;
  }
  return select(u32(bitcast<f32>(key) * params.scale + dither(list * params.count + i)), 0u, key == FORCED_KEY);
}
