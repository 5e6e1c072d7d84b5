// Attention of one query row over the cache, the keys cut into splits that run at the same time (flash-decoding).
//
//   over the keys of split s:   m = max_j x_j,   l = sum_j exp2(x_j - m),   o = sum_j exp2(x_j - m) v_j
//   x_j = log2(e) * scale * q . k_j
//
// A workgroup does one split of one key/value head for all GROUP query heads that share it, so that keys and values are
// read once. Keys are staged KEYS at a time; each thread scores some (head, key) pairs, and then adds up COLS vec4
// columns of the output. decode_combine.wgsl joins the splits.
//
// Constants from the pipeline's prelude: HEAD_DIM, GROUP, THREADS, KEYS; the aliases
// Activation and TileVec4 say how q, K and V are stored, and K staged.
// Bindings: 0 params, 1 state (position of the row), 2 q [heads, HEAD_DIM], 3 K, 4 V [kv heads, capacity, HEAD_DIM],
// 5 partial o [heads, splits, HEAD_DIM] f32, 6 partial (m, l) [heads, splits]. Workgroups: (splits, kv heads).

struct DecodeParams {
  kv_start: u32,         // key/value head that is head 0 of the bound cache
  capacity: u32,
  splits: u32,
  window: u32,           // keys that the row sees at most, its own included
  scale_log2: f32,
  unit: u32,             // 1, see lib/attention_bindings.wgsl
}

@group(0) @binding(0) var<uniform> params: DecodeParams;
@group(0) @binding(1) var<storage, read> state: array<u32>;
@group(0) @binding(2) var<storage, read> q: array<vec4<Activation>>;
@group(0) @binding(3) var<storage, read> k_cache: array<vec4<Activation>>;
@group(0) @binding(4) var<storage, read> v_cache: array<vec4<Activation>>;
@group(0) @binding(5) var<storage, read_write> partial_o: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> partial_ml: array<vec2<f32>>;

const D4: u32 = HEAD_DIM / 4u;
const STRIDE: u32 = D4 + 1u;          // padded: neighbouring keys fall into different banks
const COLS: u32 = (GROUP * D4 + THREADS - 1u) / THREADS;
const M_START: f32 = -1e30;
const MASKED: f32 = -2e30;

var<workgroup> q_tile: array<TileVec4, GROUP * D4>;
var<workgroup> k_tile: array<TileVec4, KEYS * STRIDE>;
var<workgroup> scores: array<f32, GROUP * KEYS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let split = workgroup.x;
  let cache = workgroup.y * params.capacity * D4;
  let head0 = (params.kv_start + workgroup.y) * GROUP;
  let visible = state[0] + 1u;
  let start = visible - min(visible, params.window);
  // Whole tiles for each split.
  let tiles = (visible - start + KEYS - 1u) / KEYS;
  let first = start + (tiles * split / params.splits) * KEYS;
  let end = min(visible, start + (tiles * (split + 1u) / params.splits) * KEYS);

  for (var i = thread; i < GROUP * D4; i += THREADS) {
    q_tile[i] = TileVec4(vec4<f32>(q[head0 * D4 + i]));
  }
  var o: array<vec4<f32>, COLS>;
  var m: array<f32, COLS>;
  var l: array<f32, COLS>;
  for (var c = 0u; c < COLS; c++) {
    m[c] = M_START;
  }
  for (var key0 = first; key0 < end; key0 += KEYS) {
    workgroupBarrier();
    for (var i = thread; i < KEYS * D4; i += THREADS) {
      let key = min(key0 + i / D4, end - 1u);
      k_tile[(i / D4) * STRIDE + i % D4] = TileVec4(vec4<f32>(k_cache[cache + key * D4 + i % D4]));
    }
    workgroupBarrier();
    for (var i = thread; i < GROUP * KEYS; i += THREADS) {
      var x = 0.0;
      for (var d = 0u; d < D4 * params.unit; d++) {
        x += dot(vec4<f32>(q_tile[(i / KEYS) * D4 + d]), vec4<f32>(k_tile[(i % KEYS) * STRIDE + d]));
      }
      scores[i] = select(MASKED, x * params.scale_log2, key0 + i % KEYS < end);
    }
    workgroupBarrier();
    let keys = min(KEYS, end - key0);
    for (var c = 0u; c < COLS; c++) {
      let column = thread + c * THREADS;
      if (column < GROUP * D4) {
        let at = (column / D4) * KEYS;
        var m_new = m[c];
        for (var j = 0u; j < keys; j++) {
          m_new = max(m_new, scores[at + j]);
        }
        let alpha = exp2(m[c] - m_new);
        m[c] = m_new;
        l[c] *= alpha;
        o[c] *= alpha;
        for (var j = 0u; j < keys; j++) {
          let p = exp2(scores[at + j] - m_new);
          l[c] += p;
          o[c] += p * vec4<f32>(v_cache[cache + (key0 + j) * D4 + column % D4]);
        }
      }
    }
  }
  for (var c = 0u; c < COLS; c++) {
    let column = thread + c * THREADS;
    if (column < GROUP * D4) {
      let slot = (head0 + column / D4) * params.splits + split;
      partial_o[slot * D4 + column % D4] = o[c];
      if (column % D4 == 0u) {
        partial_ml[slot] = vec2<f32>(m[c], l[c]);
      }
    }
  }
}
