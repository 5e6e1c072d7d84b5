// Workgroup memory of kernels that multiply outer products: one column (or dimension, or key) of four rows is a vec4. The kernel's own
// file says how many there are, STAGE_SIZE.

var<workgroup> stage: array<vec4<f32>, STAGE_SIZE>;

// Stages a patch of four columns of the four rows x0 to x3, from `at` on; `stride` is from one column to the next.
fn stage_patch(at: u32, stride: u32, x0: vec4<f32>, x1: vec4<f32>, x2: vec4<f32>, x3: vec4<f32>) {
  stage[at] = vec4<f32>(x0.x, x1.x, x2.x, x3.x);
  stage[at + stride] = vec4<f32>(x0.y, x1.y, x2.y, x3.y);
  stage[at + 2u * stride] = vec4<f32>(x0.z, x1.z, x2.z, x3.z);
  stage[at + 3u * stride] = vec4<f32>(x0.w, x1.w, x2.w, x3.w);
}
