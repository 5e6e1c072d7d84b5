// Tiles of keys one after the other, for kernels that take the scores of each in parts (index_score_parts.wgsl): between
// begin_tile(tile) and end_tile(thread) the kernel's take_part(part, thread) is called for each part. src/index/score_tile.ts writes
// another score_tiles, for matrices, which keeps the rows in registers and has the next tile's keys on their way.

// Every thread of the workgroup must call this together.
fn score_tiles(thread: u32, first: u32, end: u32) {
  for (var tile = first; tile < end; tile++) {
    begin_tile(tile);
    score_parts(thread);
    end_tile(thread);
    workgroupBarrier();
  }
}
