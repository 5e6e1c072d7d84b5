// Parameters of the vertical-slash estimate's passes, and where its probabilities lie in between. Constant: KEPT_PARTS (PARTS of
// index_score_part_places.wgsl).

struct EstimateParams {
  rows: u32,             // R = min(64, query rows of the call)
  first_row: u32,        // query row that is row 0 here
  first_position: u32,   // its absolute position
  tiles: u32,            // tiles of 128 keys per head
  first_tile: u32,       // the first one of workgroup 0
  scale_log2: f32,       // softmax scale times log2(e)
  forced_columns: u32,   // first columns that get +inf
  kept_tiles: u32,       // tiles of each head whose probabilities are in memory between the passes
  kept_first: u32,       // the first one
  end_tile: u32,         // tiles of this dispatch end before it
  tiles_each: u32,       // tiles of a workgroup of pass 1
  unit: u32,             // 1, see lib/attention_bindings.wgsl
}

@group(0) @binding(0) var<uniform> params: EstimateParams;

// Eights of keys of a tile's 64 rows.
const KEPT_TILE: u32 = 1024u;

// Which of the kept tiles this one is.
fn kept_tile(head_slot: u32, tile: u32) -> u32 {
  return head_slot * params.kept_tiles + tile - params.kept_first;
}

// Eights of keys are taken in 2 * KEPT_PARTS shares of a row, each of which has a maximum: the share of eight g of 16.
fn share_of(g: u32) -> u32 {
  return g % 8u / (8u / KEPT_PARTS) * 2u + g % 2u;
}
