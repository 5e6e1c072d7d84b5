// What every attention kernel binds, in every tier; heads are those of head_entry.wgsl.
//
// Tensors are read through strides, so [H, N, D] and [N, H, D] layouts both work without a copy. All
// bases and strides count vec4 elements (4 values of one row). `*_base` is where head 0, row 0 of the
// tensor lies in the bound range, modulo 2^32 (the bound range may start after it).

struct AttentionParams {
  n_q: u32,              // query rows in this call
  n_kv: u32,             // keys
  q_offset: u32,         // absolute position of query row 0; row i attends to keys j <= q_offset + i
  scale_log2: f32,       // softmax scale times log2(e): probabilities are exp2(scale_log2 * q.k - m)
  row_tile_end: u32,     // this dispatch does tiles of BLOCK_M rows row_tile_end - 1 downwards (heavy rows first)
  heads_first: u32,      // 1: workgroups along x are entries of `heads` and those along y tiles of rows; 0: the other way round
  write_lse: u32,        // 1: write the log-sum-exp of every row
  q_base: u32,
  q_head_stride: u32,
  q_row_stride: u32,
  k_base: u32,
  k_head_stride: u32,
  k_row_stride: u32,
  v_base: u32,
  v_head_stride: u32,
  v_row_stride: u32,
  o_base: u32,
  o_head_stride: u32,
  o_row_stride: u32,
  lse_base: u32,         // lse is [H, n_q] f32; counts elements
  lse_head_stride: u32,
  splits: u32,           // a row's tiles are dealt out among so many workgroups along z, whose results merge_splits.wgsl joins
  split_heads: u32,      // heads of o and lse from one split's results to the next one's
  unit: u32,             // 1. Loops bounded by a constant times `unit` stay loops: unrolled, they compile for minutes on some drivers
}

@group(0) @binding(0) var<uniform> params: AttentionParams;
@group(0) @binding(1) var<storage, read> q: array<StorageVec4>;
@group(0) @binding(2) var<storage, read> k: array<StorageVec4>;
@group(0) @binding(3) var<storage, read> v: array<StorageVec4>;
@group(0) @binding(4) var<storage, read_write> o: array<StorageVec4>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;
@group(0) @binding(6) var<storage, read> heads: array<HeadEntry>;
@group(0) @binding(7) var<storage, read> index: array<u32>;

// Which tile of rows a workgroup does, counted from this dispatch's last one, and which entry of `heads`.
fn tile_of(workgroup: vec3<u32>) -> u32 {
  return select(workgroup.x, workgroup.y, params.heads_first == 1u);
}

fn entry_of(workgroup: vec3<u32>) -> u32 {
  return select(workgroup.y, workgroup.x, params.heads_first == 1u);
}

// Head 0 of a workgroup's results: o and lse hold the heads of one split after those of another.
fn output_head(head: u32, split: u32) -> u32 {
  return head + split * params.split_heads;
}
