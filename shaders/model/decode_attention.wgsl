// Attention of one query row over the cache, the keys cut into splits that run at the same time (flash-decoding).
//
//   over some of the keys:   m = max_j x_j,   l = sum_j exp2(x_j - m),   o = sum_j exp2(x_j - m) v_j
//   x_j = log2(e) * scale * q . k_j
//
// A workgroup does one split of one key/value head for HEADS of the query heads that share it. LANES threads share a row:
// each loads SLICE neighbouring words of 16 bytes of a key, and of a value, at most once for all heads. Such a team takes
// every TEAMS-th key, UNROLL of them at a time, and keeps m, l and o of its own in registers; only the sums of a dot
// product pass between its threads (lane_sums of lane_sums_*.wgsl). The teams meet at the end, and decode_combine.wgsl
// joins the splits.
//
// Constants from the pipeline's prelude: HEAD_DIM, GROUP (query heads per key/value head), HEADS (at most 4), LANES (a
// power of two), SLICE, UNROLL, THREADS; the alias Activation says how q is stored, words_*.wgsl how K and V are.
// Bindings: 0 params, 1 state (position of the row), 2 q [heads, HEAD_DIM], 3 K, 4 V [kv heads, capacity, HEAD_DIM],
// 5 partial o [heads, splits, HEAD_DIM] f32, 6 partial (m, l) [heads, splits]. Workgroups: (splits * CHUNKS, kv heads).

@group(0) @binding(0) var<uniform> params: DecodeParams;
@group(0) @binding(1) var<storage, read> state: array<u32>;
@group(0) @binding(2) var<storage, read> q: array<vec4<Activation>>;
@group(0) @binding(3) var<storage, read> k_cache: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> v_cache: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read_write> partial_o: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> partial_ml: array<vec2<f32>>;

const D4: u32 = HEAD_DIM / 4u;
const WORDS: u32 = D4 / PER_WORD;                   // of a row
const COLS: u32 = SLICE * PER_WORD;                 // vec4 columns of a thread
const TEAMS: u32 = THREADS / LANES;
const CHUNKS: u32 = (GROUP + HEADS - 1u) / HEADS;   // workgroups that share a split of a key/value head
const SUMS: u32 = UNROLL * HEADS;                   // of a dot product: key by key, head by head
const M_START: f32 = -1e30;
const MASKED: f32 = -2e30;

alias Rows = array<vec4<u32>, UNROLL * SLICE>;
alias Outputs = array<vec4<f32>, HEADS * COLS>;

var<workgroup> team_ml: array<vec2<f32>, TEAMS * HEADS>;
var<workgroup> team_o: array<vec4<f32>, TEAMS * D4>;

// The word that a thread loads as its i-th. Where LANES do not divide a row the last ones have none, and load another's.
fn word_of(lane: u32, i: u32) -> u32 {
  return min(lane * SLICE + i, WORDS - 1u);
}

fn has_word(lane: u32, i: u32) -> bool {
  return lane * SLICE + i < WORDS;
}

// Joins the teams' m, l and o of head h of this workgroup.
fn join_teams(h: u32, slot: u32, o: ptr<function, Outputs>, thread: u32) {
  let lane = thread % LANES;
  let team = thread / LANES;
  var m = M_START;
  for (var t = 0u; t < TEAMS; t++) {
    m = max(m, team_ml[t * HEADS + h].x);
  }
  let weight = exp2(team_ml[team * HEADS + h].x - m);
  for (var i = 0u; i < SLICE; i++) {
    if (has_word(lane, i)) {
      for (var c = 0u; c < PER_WORD; c++) {
        team_o[team * D4 + word_of(lane, i) * PER_WORD + c] = weight * (*o)[h * COLS + i * PER_WORD + c];
      }
    }
  }
  workgroupBarrier();
  for (var column = thread; column < D4; column += THREADS) {
    var sum = vec4<f32>();
    for (var t = 0u; t < TEAMS; t++) {
      sum += team_o[t * D4 + column];
    }
    partial_o[slot * D4 + column] = sum;
  }
  if (thread == 0u) {
    var l = 0.0;
    for (var t = 0u; t < TEAMS; t++) {
      l += exp2(team_ml[t * HEADS + h].x - m) * team_ml[t * HEADS + h].y;
    }
    partial_ml[slot] = vec2<f32>(m, l);
  }
  workgroupBarrier();
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let split = workgroup.x / CHUNKS;
  let head0 = (workgroup.x % CHUNKS) * HEADS;       // of the group; the last chunk's may be too many
  let q_head0 = (params.kv_start + workgroup.y) * GROUP;
  let lane = thread % LANES;
  let team = thread / LANES;
  let visible = state[0] + 1u;
  let keys = min(visible, params.window);
  let splits = splits_of(keys, params.splits);
  if (split >= splits) {
    return;
  }
  let tiles = (keys + params.tile - 1u) / params.tile;
  let first = visible - keys + (tiles * split / splits) * params.tile;
  let end = min(visible, visible - keys + (tiles * (split + 1u) / splits) * params.tile);
  let cache = workgroup.y * params.capacity * WORDS;

  var q_slice: Outputs;
  for (var h = 0u; h < HEADS; h++) {
    for (var i = 0u; i < SLICE; i++) {
      for (var c = 0u; c < PER_WORD; c++) {
        let at = (q_head0 + min(head0 + h, GROUP - 1u)) * D4 + word_of(lane, i) * PER_WORD + c;
        q_slice[h * COLS + i * PER_WORD + c] = select(vec4<f32>(), params.scale_log2 * vec4<f32>(q[at]), has_word(lane, i));
      }
    }
  }
  var o: Outputs;
  var m: array<f32, HEADS>;
  var l: array<f32, HEADS>;
  for (var h = 0u; h < HEADS; h++) {
    m[h] = M_START;
  }
  for (var key0 = first; key0 < end; key0 += TEAMS * UNROLL) {
    var k_rows: Rows;
    var v_rows: Rows;
    for (var u = 0u; u < UNROLL; u++) {
      let row = cache + min(key0 + u * TEAMS + team, end - 1u) * WORDS;
      for (var i = 0u; i < SLICE; i++) {
        k_rows[u * SLICE + i] = k_cache[row + word_of(lane, i)];
        v_rows[u * SLICE + i] = v_cache[row + word_of(lane, i)];
      }
    }
    var x = array<f32, SUMS>(); // By value: without one, some compilers go on from the last turn's.
    for (var u = 0u; u < UNROLL; u++) {
      for (var i = 0u; i < SLICE; i++) {
        let k = unpack_word(k_rows[u * SLICE + i]);
        for (var h = 0u; h < HEADS; h++) {
          for (var c = 0u; c < PER_WORD; c++) {
            x[u * HEADS + h] += dot(q_slice[h * COLS + i * PER_WORD + c], k[c]);
          }
        }
      }
    }
    lane_sums(&x, thread);
    for (var h = 0u; h < HEADS; h++) {
      var m_new = m[h];
      for (var u = 0u; u < UNROLL; u++) {
        x[u * HEADS + h] = select(MASKED, x[u * HEADS + h], key0 + u * TEAMS + team < end);
        m_new = max(m_new, x[u * HEADS + h]);
      }
      let alpha = exp2(m[h] - m_new);
      m[h] = m_new;
      l[h] *= alpha;
      for (var c = 0u; c < COLS; c++) {
        o[h * COLS + c] *= alpha;
      }
      for (var u = 0u; u < UNROLL; u++) {
        x[u * HEADS + h] = exp2(x[u * HEADS + h] - m_new);
        l[h] += x[u * HEADS + h];
      }
    }
    for (var u = 0u; u < UNROLL; u++) {
      for (var i = 0u; i < SLICE; i++) {
        let v = unpack_word(v_rows[u * SLICE + i]);
        for (var h = 0u; h < HEADS; h++) {
          for (var c = 0u; c < PER_WORD; c++) {
            o[h * COLS + i * PER_WORD + c] += x[u * HEADS + h] * v[c];
          }
        }
      }
    }
  }

  if (lane == 0u) {
    for (var h = 0u; h < HEADS; h++) {
      team_ml[team * HEADS + h] = vec2<f32>(m[h], l[h]);
    }
  }
  workgroupBarrier();
  // Call by call: o must not be indexed by what a loop counts, or it would not stay in registers.
  let slot = (q_head0 + head0) * params.splits + split;
  join_teams(0u, slot, &o, thread);
  if (HEADS > 1u && head0 + 1u < GROUP) {
    join_teams(min(1u, HEADS - 1u), slot + params.splits, &o, thread);
  }
  if (HEADS > 2u && head0 + 2u < GROUP) {
    join_teams(min(2u, HEADS - 1u), slot + 2u * params.splits, &o, thread);
  }
  if (HEADS > 3u && head0 + 3u < GROUP) {
    join_teams(min(3u, HEADS - 1u), slot + 3u * params.splits, &o, thread);
  }
}
