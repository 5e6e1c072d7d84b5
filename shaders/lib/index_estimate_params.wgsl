// Parameters of the vertical-slash estimate's passes, and where its scores lie in between.

struct EstimateParams {
  rows: u32,             // R = min(64, query rows of the call)
  first_row: u32,        // query row that is row 0 here
  first_position: u32,   // its absolute position
  tiles: u32,            // tiles of 128 keys per head
  first_tile: u32,       // tile of workgroup 0
  scale_log2: f32,       // softmax scale times log2(e)
  forced_columns: u32,   // first columns that get +inf
  kept_tiles: u32,       // tiles of each head whose scores are in memory between the passes
  kept_first: u32,       // the first one
}

@group(0) @binding(0) var<uniform> params: EstimateParams;

const KEPT_TILE: u32 = 2048u;         // vec4 of a tile of 64 x 128 scores

// First vec4 of a kept tile: [64, 32] vec4, a row of 128 keys after the other.
fn kept_start(head_slot: u32, tile: u32) -> u32 {
  return (head_slot * params.kept_tiles + tile - params.kept_first) * KEPT_TILE;
}
