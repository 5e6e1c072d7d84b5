// What says which head a kernel works on, and what it shares with those that make its index.

// One head, with the parameters of its pattern (see the kernel that reads them).
struct HeadEntry {
  head: u32,             // query head
  kv_head: u32,          // key/value head it reads (grouped-query attention)
  index_offset: u32,     // first u32 of this head in `index`
  arg0: u32,
  arg1: u32,
  arg2: u32,
  arg3: u32,
  arg4: u32,
}

const NO_KEY: u32 = 0xffffffffu;
// Rows of a block that shares one sparse index (MInference's block size).
const INDEX_BLOCK: u32 = 64u;

fn div_ceil(a: u32, b: u32) -> u32 {
  return (a + b - 1u) / b;
}
