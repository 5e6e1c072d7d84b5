// Where scores of a tile lie while they are handed over in parts, of 4 * PART4 keys of each half of the keys: rows of fours, those of the
// first half of the keys before those of the other one.

// Key of the tile that four i of a row begins with.
fn part_key(part: u32, i: u32) -> u32 {
  return i / PART4 * (TILE_KEYS / 2u) + 4u * (part * PART4 + i % PART4);
}

// The part that holds keys 8 * tx .. 8 * tx + 7, and the first of their two fours in it.
fn part_of(tx: u32) -> u32 {
  return 2u * tx % (TILE_KEYS / 8u) / PART4;
}

fn four_of(tx: u32) -> u32 {
  return tx / (TX / 2u) * PART4 + 2u * tx % (TILE_KEYS / 8u) % PART4;
}
