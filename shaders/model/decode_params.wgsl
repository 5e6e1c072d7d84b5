// What the kernels of decoding share: parameters, and how many splits there are.

struct DecodeParams {
  kv_start: u32,         // key/value head that is head 0 of the bound cache
  capacity: u32,
  splits: u32,           // at most, and from one head's partial results to the next one's
  window: u32,           // keys that the row sees at most, its own included
  scale_log2: f32,
  tile: u32,             // splits begin at multiples of so many keys
}

// Splits that have keys.
fn splits_of(keys: u32, most: u32) -> u32 {
  return min(most, (keys + params.tile - 1u) / params.tile);
}
