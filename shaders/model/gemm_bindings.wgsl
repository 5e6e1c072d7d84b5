// What every matrix product binds:   C[m, n] (+)= A[m, k] W[n, k]^T + bias[n]
// The weights are binding 1, in one of the weights_*.wgsl files. A dispatch may compute some columns of a wider C, so
// that matrices of several types, or in several buffers, make one result.

struct GemmParams {
  m: u32,
  n: u32,                // rows of W in this dispatch
  k: u32,                // a multiple of 32
  a_base: u32,           // first row of A; base and stride count vec4 elements
  a_stride: u32,
  c_base: u32,           // column of C that row 0 of W gives; counts elements, as the stride does
  c_stride: u32,
  unit: u32,             // 1, see lib/attention_bindings.wgsl
  up_start: u32,         // SwiGLU: rows of W from one of gate to the same of up; then n counts both
  eps: f32,              // of the norm, where there is one
  k_share: u32,          // columns of A and W of a workgroup: k, or fewer, and C then holds the sums of one share after those of another
}

@group(0) @binding(0) var<uniform> params: GemmParams;
