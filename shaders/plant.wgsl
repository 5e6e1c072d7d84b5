// Generated attention input: noise in which the patterns of MInference really are, at any length.
//
// Every element depends only on its own place and the seed (a counter-based generator), so a million
// tokens need no CPU work and any part can be made alone. With D dimensions, M = (D - 4) / 4 and
// A = the planted logit, q, k and v of position i are standard noise (v) or weak noise (q, k) plus:
//
//   dim 0           columns: all rows attend to the keys that column_at() names
//   dim 1           runs:    the last 64 rows attend to 15 consecutive keys per run of diagonals
//   dim 2           sink:    all rows attend to the first sink_size keys
//   dim 3           noise only
//   4 .. 4 + 2M     local:   M pairs rotated by frequency_m * i, as rotary embeddings are; q.k depends on the
//                            distance only, sum_m cos(frequency_m * distance), a bell of width local_size
//   4 + 2M .. D     blocks:  a code of +-1 per cluster; key blocks have the code of their own cluster, row
//                            blocks the code of the cluster that they attend to
//
// A key of dim 0, 1 or 2 has nothing in the local dims. A query head has only the parts of its kind:
// 0 = columns, runs and local (vertical-slash), 1 = sink and local (A-shape), 2 = blocks (block-sparse).
//
// The estimate of the last 64 rows then finds 50 whole diagonals for each run: all 64 rows look at the
// same 15 keys, and 64 - 15 + 1 = 50 diagonals pass all 15.
//
// Tensors: [heads, n, D] packed. One thread makes 4 elements. From the prelude: HEAD_DIM, TENSOR (0 q, 1 k, 2 v).

struct PlantParams {
  n: u32,                // positions
  seed: u32,
  head: u32,             // head that this dispatch makes
  workgroups_x: u32,     // workgroups along x
  heads_per_kv: u32,     // query heads that share a key/value head
  local_size: u32,       // diagonals 0 .. local_size - 1 are local
  column_stride: u32,    // one column in each stretch of this many keys
  run_stride: u32,       // one run of diagonals in each stretch of this many distances
  run_count: u32,        // 0: none
  sink_size: u32,
  clusters: u32,         // clusters of key blocks
  base: u32,             // where the head's first element lies in the bound range, in vec4 elements
  noise: f32,            // standard deviation of the noise in q and k
  column: f32,           // length of the part in dim 0, in q and in k; likewise below
  run: f32,
  sink: f32,
  local: f32,            // amplitude of one rotated pair
  block: f32,            // amplitude of one element of a cluster code
}

@group(0) @binding(0) var<uniform> params: PlantParams;
@group(0) @binding(1) var<storage, read> frequency: array<f32>;   // [M] turns per position
@group(0) @binding(2) var<storage, read> kind: array<u32>;        // [query heads]
@group(0) @binding(3) var<storage, read_write> x: array<StorageVec4>;

const D4: u32 = HEAD_DIM / 4u;
const PAIRS: u32 = (HEAD_DIM - 4u) / 4u;
const FIRST_BLOCK_DIM: u32 = 4u + 2u * PAIRS;
const TAU: f32 = 6.283185307179586;
const RUN_KEYS: u32 = 15u;
const ESTIMATE_ROWS: u32 = 64u;
const VERTICAL_SLASH: u32 = 0u;
const A_SHAPE: u32 = 1u;
const BLOCK_SPARSE: u32 = 2u;
// What a random number is for.
const FOR_NOISE: u32 = 0u;
const FOR_COLUMN: u32 = 3u;
const FOR_RUN: u32 = 4u;
const FOR_KEY_BLOCK: u32 = 5u;
const FOR_ROW_BLOCK: u32 = 6u;
const FOR_CODE: u32 = 7u;

// PCG4D (Jarzynski and Olano 2020, "Hash functions for GPU rendering").
fn hash(counter: vec4<u32>) -> vec4<u32> {
  var h = counter * 1664525u + 1013904223u;
  h += h.yzxy * h.wxyz;
  h = h ^ (h >> vec4<u32>(16u));
  h += h.yzxy * h.wxyz;
  return h;
}

// A random number for a thing of a key/value head.
fn draw(purpose: u32, kv_head: u32, n: u32) -> u32 {
  return hash(vec4<u32>(n, kv_head, purpose, params.seed)).x;
}

// Four standard normal numbers (Box-Muller).
fn normal4(counter: vec4<u32>) -> vec4<f32> {
  let h = vec4<f32>(hash(counter) >> vec4<u32>(8u)) / 16777216.0;
  let radius = sqrt(-2.0 * log(vec2<f32>(1.0) - h.xy));
  let angle = TAU * h.zw;
  return vec4<f32>(radius * cos(angle), radius * sin(angle));
}

// First diagonal of the run in a stretch of distances. The last 128 stay free, so that runs keep apart.
fn run_start(kv_head: u32, run: u32) -> u32 {
  return params.local_size + run * params.run_stride + draw(FOR_RUN, kv_head, run) % (params.run_stride - 128u);
}

// Whether one of the last 64 rows meets the key on a diagonal that must be told from its neighbours: in or next to a run, or near the
// last local one. A column there would add more to its diagonals than what tells them apart.
fn decides_diagonals(kv_head: u32, key: u32) -> bool {
  let distance = params.n - 1u - key;
  if (params.run_count == 0u || distance + ESTIMATE_ROWS < params.local_size) {
    return false;
  }
  if (distance < params.local_size + params.local_size / 8u) {
    return true;
  }
  // A run's first diagonal and those before it that see some of its keys; its last key that one of those after it meets.
  let before = RUN_KEYS - 1u;
  let reach = 2u * (ESTIMATE_ROWS - 1u);
  let first = (max(distance - params.local_size, reach) - reach) / params.run_stride;
  for (var run = first; run < min(first + 2u, params.run_count); run++) {
    let start = run_start(kv_head, run);
    if (start <= distance + before && distance <= start + reach) {
      return true;
    }
  }
  return false;
}

fn is_column(kv_head: u32, key: u32) -> bool {
  let stretch = key / params.column_stride;
  let drawn = key % params.column_stride == draw(FOR_COLUMN, kv_head, stretch) % params.column_stride;
  return drawn && !decides_diagonals(kv_head, key);
}

// Run r's first diagonal is offset = local_size + r * run_stride + a random part; its keys are the 15 from
// n - 64 - offset on.
fn is_run_key(kv_head: u32, key: u32) -> bool {
  if (params.run_count == 0u || key + ESTIMATE_ROWS >= params.n) {
    return false;
  }
  let first = params.n - ESTIMATE_ROWS - key;
  // The run whose keys include this one starts at a diagonal from `first` to `first + 14`.
  for (var back = 0u; back < RUN_KEYS; back++) {
    let offset = first + back;
    if (offset < params.local_size) {
      continue;
    }
    let run = (offset - params.local_size) / params.run_stride;
    if (run < params.run_count && offset == run_start(kv_head, run)) {
      return true;
    }
  }
  return false;
}

// One element of the structured part: a position's part in dims 0 to 2 and its amplitudes of the others.
fn structure(dim: u32, position: u32, special: vec3<f32>, local: f32, block: f32, cluster: u32) -> f32 {
  if (dim < 3u) {
    return special[dim];
  }
  if (dim == 3u) {
    return 0.0;
  }
  if (dim < FIRST_BLOCK_DIM) {
    if (local == 0.0) {
      return 0.0;
    }
    let angle = TAU * fract(frequency[(dim - 4u) / 2u] * f32(position));
    return local * select(cos(angle), sin(angle), (dim & 1u) == 1u);
  }
  if (block == 0.0) {
    return 0.0;
  }
  return select(-block, block, (hash(vec4<u32>(cluster, dim, FOR_CODE, params.seed)).x & 0x10000u) != 0u);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let i = (workgroup.y * params.workgroups_x + workgroup.x) * 256u + thread;
  let position = i / D4;
  if (position >= params.n) {
    return;
  }
  let column4 = i % D4;
  let head = params.head;
  let noise = normal4(vec4<u32>(i, head, FOR_NOISE + TENSOR, params.seed));
  var value = noise;
  if (TENSOR != 2u) {
    var special = vec3<f32>(0.0);
    var local = params.local;
    var block = params.block;
    var cluster = 0u;
    if (TENSOR == 0u) {
      let kv_head = head / params.heads_per_kv;
      let own = kind[head];
      cluster = draw(FOR_ROW_BLOCK, head, position / 64u) % params.clusters;
      if (own == VERTICAL_SLASH) {
        special.x = params.column;
        special.y = select(0.0, params.run, position + ESTIMATE_ROWS >= params.n);
        block = 0.0;
      } else if (own == A_SHAPE) {
        special.z = params.sink;
        block = 0.0;
      } else {
        local = 0.0;
      }
    } else {
      cluster = draw(FOR_KEY_BLOCK, head, position / 64u) % params.clusters;
      if (is_column(head, position)) {
        special.x = params.column;
      } else if (is_run_key(head, position)) {
        special.y = params.run;
      }
      if (position < params.sink_size) {
        special.z = params.sink;
      }
      if (any(special != vec3<f32>(0.0))) {
        local = 0.0;
      }
    }
    let dim = 4u * column4;
    value = params.noise * noise + vec4<f32>(
      structure(dim, position, special, local, block, cluster),
      structure(dim + 1u, position, special, local, block, cluster),
      structure(dim + 2u, position, special, local, block, cluster),
      structure(dim + 3u, position, special, local, block, cluster),
    );
  }
  x[params.base + i] = pack_vec4(value);
}
