// Where the block of a group begins, for rows of blocks of BLOCK weights: each takes BLOCK_STEP bytes, where weights_unaligned.wgsl reads
// them, or elements of `weights`.
fn block_of(row: u32, group: u32) -> u32 {
  return (row * (params.k / BLOCK) + group / (BLOCK / 8u)) * BLOCK_STEP;
}
