// Sums of each of SUMS values over the TX lanes that share the rows, by butterfly exchange inside a subgroup. TX is a power
// of two and divides the subgroup size.

fn row_sum(x: ptr<function, array<f32, SUMS>>, tx: u32, ty: u32) {
  for (var lanes = 1u; lanes < TX; lanes *= 2u) {
    for (var r = 0u; r < SUMS; r++) {
      (*x)[r] += subgroupShuffleXor((*x)[r], lanes);
    }
  }
}
