// Sums of each of SUMS values over the TX threads that share the rows, through workgroup memory. TX is a power of two; every
// thread of the workgroup must call this together; the thread with tx = 0 gets the result.

var<workgroup> row_scratch: array<f32, TY * SUMS * TX>;

fn row_sum(x: ptr<function, array<f32, SUMS>>, tx: u32, ty: u32) {
  for (var r = 0u; r < SUMS; r++) {
    row_scratch[(ty * SUMS + r) * TX + tx] = (*x)[r];
  }
  for (var half = TX / 2u * params.unit; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (tx < half) {
      for (var r = 0u; r < SUMS; r++) {
        row_scratch[(ty * SUMS + r) * TX + tx] += row_scratch[(ty * SUMS + r) * TX + tx + half];
      }
    }
  }
  for (var r = 0u; r < SUMS; r++) {
    (*x)[r] = row_scratch[(ty * SUMS + r) * TX];
  }
}
