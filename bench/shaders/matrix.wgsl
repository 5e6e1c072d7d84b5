// Ceiling of subgroup matrices: each subgroup multiplies 2 left by 4 right operands, all in registers, into 8
// results, LOOPS times over. C_ij += A_i B_j. The prelude enables the feature and defines Left, Right and Result,
// and STEP, the vec4<u32> elements from one operand to the next.

override LOOPS: u32 = 1024u;
@group(0) @binding(0) var<storage, read_write> words: array<vec4<u32>>; // f16 operands; results end up here

@compute @workgroup_size(128)
fn main() {
  let a0 = subgroupMatrixLoad<Left, row_major>(&words, 0u, 2u);
  let a1 = subgroupMatrixLoad<Left, row_major>(&words, STEP, 2u);
  let b0 = subgroupMatrixLoad<Right, row_major>(&words, 2u * STEP, 2u);
  let b1 = subgroupMatrixLoad<Right, row_major>(&words, 3u * STEP, 2u);
  let b2 = subgroupMatrixLoad<Right, row_major>(&words, 4u * STEP, 2u);
  let b3 = subgroupMatrixLoad<Right, row_major>(&words, 5u * STEP, 2u);
  var c00 = Result();
  var c01 = Result();
  var c02 = Result();
  var c03 = Result();
  var c10 = Result();
  var c11 = Result();
  var c12 = Result();
  var c13 = Result();
  for (var n = 0u; n < LOOPS; n++) {
    c00 = subgroupMatrixMultiplyAccumulate(a0, b0, c00);
    c01 = subgroupMatrixMultiplyAccumulate(a0, b1, c01);
    c02 = subgroupMatrixMultiplyAccumulate(a0, b2, c02);
    c03 = subgroupMatrixMultiplyAccumulate(a0, b3, c03);
    c10 = subgroupMatrixMultiplyAccumulate(a1, b0, c10);
    c11 = subgroupMatrixMultiplyAccumulate(a1, b1, c11);
    c12 = subgroupMatrixMultiplyAccumulate(a1, b2, c12);
    c13 = subgroupMatrixMultiplyAccumulate(a1, b3, c13);
  }
  subgroupMatrixStore<row_major>(&words, 8u * STEP, c00, 4u);
  subgroupMatrixStore<row_major>(&words, 10u * STEP, c01, 4u);
  subgroupMatrixStore<row_major>(&words, 12u * STEP, c02, 4u);
  subgroupMatrixStore<row_major>(&words, 14u * STEP, c03, 4u);
  subgroupMatrixStore<row_major>(&words, 16u * STEP, c10, 4u);
  subgroupMatrixStore<row_major>(&words, 18u * STEP, c11, 4u);
  subgroupMatrixStore<row_major>(&words, 20u * STEP, c12, 4u);
  subgroupMatrixStore<row_major>(&words, 22u * STEP, c13, 4u);
}
