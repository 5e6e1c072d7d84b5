// Reduces one value per row over the TX threads that share the row, by butterfly exchange inside a subgroup.
// TX is a power of two; threads of a row are every LANE_ROWS-th of TX * LANE_ROWS consecutive lanes, which divide
// the subgroup size.

fn row_max(x: ptr<function, array<f32, ROWS>>, tx: u32, ty: u32) {
  for (var lanes = LANE_ROWS; lanes < LANE_ROWS * TX; lanes *= 2u) {
    for (var r = 0u; r < ROWS; r++) {
      (*x)[r] = max((*x)[r], subgroupShuffleXor((*x)[r], lanes));
    }
  }
}

fn row_sum(x: ptr<function, array<f32, ROWS>>, tx: u32, ty: u32) {
  for (var lanes = LANE_ROWS; lanes < LANE_ROWS * TX; lanes *= 2u) {
    for (var r = 0u; r < ROWS; r++) {
      (*x)[r] += subgroupShuffleXor((*x)[r], lanes);
    }
  }
}
