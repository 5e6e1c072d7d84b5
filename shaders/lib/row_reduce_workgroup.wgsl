// Reduces one value per row over the TX threads that share the row, through workgroup memory.
// Every thread of the workgroup must call these together; all TX threads get the result.

var<workgroup> row_scratch: array<f32, BLOCK_M * TX>;

fn row_max(x: ptr<function, array<f32, ROWS>>, tx: u32, ty: u32) {
  for (var r = 0u; r < ROWS; r++) {
    row_scratch[(ty + r * TY) * TX + tx] = (*x)[r];
  }
  workgroupBarrier();
  for (var r = 0u; r < ROWS; r++) {
    var best = row_scratch[(ty + r * TY) * TX];
    for (var i = 1u; i < TX * params.unit; i++) {
      best = max(best, row_scratch[(ty + r * TY) * TX + i]);
    }
    (*x)[r] = best;
  }
}

fn row_sum(x: ptr<function, array<f32, ROWS>>, tx: u32, ty: u32) {
  workgroupBarrier();
  for (var r = 0u; r < ROWS; r++) {
    row_scratch[(ty + r * TY) * TX + tx] = (*x)[r];
  }
  workgroupBarrier();
  for (var r = 0u; r < ROWS; r++) {
    var sum = row_scratch[(ty + r * TY) * TX];
    for (var i = 1u; i < TX * params.unit; i++) {
      sum += row_scratch[(ty + r * TY) * TX + i];
    }
    (*x)[r] = sum;
  }
}
