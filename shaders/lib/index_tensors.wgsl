// Queries and keys of an estimate, and which heads it is of. StorageVec4 is what is read of them at a time.

struct QueriesKeys {
  q_base: u32,           // bases and strides count vec4 elements, bases modulo 2^32
  q_head_stride: u32,
  q_row_stride: u32,
  k_base: u32,
  k_head_stride: u32,
  k_row_stride: u32,
}

@group(0) @binding(1) var<uniform> tensors: QueriesKeys;
@group(0) @binding(2) var<storage, read> q: array<StorageVec4>;
@group(0) @binding(3) var<storage, read> k: array<StorageVec4>;
@group(0) @binding(4) var<storage, read> heads: array<vec2<u32>>;   // query head, key head

const MASKED: f32 = -2e30;
const M_START: f32 = -1e30;           // above MASKED, so that masked keys get exp2(-1e30) = 0
