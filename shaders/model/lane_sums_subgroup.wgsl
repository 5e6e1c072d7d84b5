// Sums of each of a thread's SUMS values over the LANES neighbouring threads of its team, by butterfly exchange inside a
// subgroup: every thread gets all of them. LANES is a power of two and divides the subgroup size.

fn lane_sums(x: ptr<function, array<f32, SUMS>>, thread: u32) {
  for (var lanes = 1u; lanes < LANES; lanes *= 2u) {
    for (var i = 0u; i < SUMS; i++) {
      (*x)[i] += subgroupShuffleXor((*x)[i], lanes);
    }
  }
}
