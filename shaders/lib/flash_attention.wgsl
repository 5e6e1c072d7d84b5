// The tiled online-softmax loop that all attention kernels of the portable and f16 tiers share.
//
//   for each tile of BLOCK_N keys:   s = q k^T * scale,   m' = max(m, rowmax s),   p = exp2(s - m')
//                                    l = l * exp2(m - m') + rowsum p
//                                    o = o * exp2(m - m') + p v
//   o /= l,   lse = ln(sum_j exp(s_j));   o = 0, lse = -inf for a row that sees none of its tiles' keys
//
// A workgroup of TY x TX threads owns BLOCK_M rows of one head. Thread (ty, tx) holds, in registers:
//   s: rows ty + r * TY (r < ROWS), keys g * 4 * TX + 4 * tx .. + 3 (g < KEY_VECS)    -> ROWS * KEY_VECS vec4
//   o: the same rows, vec4 columns tx + c * TX (c < COLS)                             -> ROWS * COLS vec4
// Neighbouring threads alternate between LANE_ROWS rows: two that share a key or a column read one address, which
// takes NVIDIA's workgroup memory half the cycles.
//
// q, k and v are staged through workgroup memory: q Q_CHUNK dimensions at a time (HEAD_DIM: once, before the loop),
// k D_CHUNK dimensions and v V_CHUNK keys at a time, p the 4 * TX keys of one g at a time. So workgroup memory does
// not depend on the sequence length, and hardly on the head size. Keys and rows past the end are staged as copies
// of the last one: p is 0 for such keys, and such rows are not written.
//
// Constants from the pipeline's prelude: HEAD_DIM, BLOCK_M, BLOCK_N, TX, TY, LANE_ROWS, Q_CHUNK, D_CHUNK (a power
// of two that divides HEAD_DIM), V_CHUNK; the alias TileVec4 says how staged values are kept (vec4<f32> or
// vec4<f16>). All arithmetic is f32. UNIT is 1 where compilers should unroll, else params.unit (see there).
// The kernel's own file defines tile_count, key_at and is_visible; lib/row_reduce_*.wgsl defines row_max
// and row_sum over the TX threads of a row.

const D4: u32 = HEAD_DIM / 4u;
const ROWS: u32 = BLOCK_M / TY;
const COLS: u32 = (D4 + TX - 1u) / TX;
const KEY_VECS: u32 = BLOCK_N / (4u * TX);
const THREADS: u32 = TX * TY;
const DC4: u32 = D_CHUNK / 4u;
const D_CHUNKS: u32 = D4 / DC4;
const LINES: u32 = THREADS / DC4;             // rows of q or k that all threads stage at once
const Q_WHOLE: bool = Q_CHUNK == HEAD_DIM;
const Q_STEP: u32 = select(0u, 1u, Q_WHOLE);  // q_tile's column of dimension 0, over k's first staged dimension
const Q_STRIDE: u32 = Q_CHUNK / 4u + 1u;      // padded, as K_STRIDE: neighbouring rows fall into different banks
const K_STRIDE: u32 = DC4 + 1u;
const V_STRIDE: u32 = TX * COLS;
const P_KEYS: u32 = 4u * TX;
const P_STRIDE: u32 = TX + 1u;
const V_CHUNKS: u32 = P_KEYS / V_CHUNK;
const LN2: f32 = 0.6931471805599453;
const MASKED: f32 = -2e30;                    // score of a key that a row does not see
const M_START: f32 = -1e30;                   // above MASKED, so that masked keys get exp2(-1e30) = 0
const MINUS_INFINITY: u32 = 0xff800000u;      // its bits: WGSL has no literal for it

var<workgroup> q_tile: array<TileVec4, BLOCK_M * Q_STRIDE>;
var<workgroup> kv_tile: array<TileVec4, max(BLOCK_N * K_STRIDE, V_CHUNK * V_STRIDE)>;
var<workgroup> p_tile: array<TileVec4, BLOCK_M * P_STRIDE>;
var<workgroup> tile_keys: array<u32, BLOCK_N>;

fn dot_add(a: vec4<f32>, b: vec4<f32>, sum: f32) -> f32 {
  return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

// Stages dimensions d0 .. d0 + DC4 - 1 (in vec4) of the rows from row0 on, at columns q_d and following of q_tile.
fn stage_q(thread: u32, q_head: u32, row0: u32, d0: u32, q_d: u32) {
  let d = thread % DC4;
  let first = thread / DC4;
  for (var i = 0u; i < BLOCK_M / LINES * UNIT; i++) {
    let line = first + i * LINES;
    let row = min(row0 + line, params.n_q - 1u);
    q_tile[line * Q_STRIDE + q_d + d] = TileVec4(elements(q[q_head + row * params.q_row_stride + d0 + d]));
  }
}

// Stages the same dimensions of the tile's keys. Key g * 4 * TX + 4 * tx + j goes to line (4 * g + j) * TX + tx:
// what neighbouring threads read are then neighbours.
fn stage_k(thread: u32, k_head: u32, last_key: u32, d0: u32) {
  let d = thread % DC4;
  let first = thread / DC4;
  for (var i = 0u; i < BLOCK_N / LINES * UNIT; i++) {
    let n = first + i * LINES;
    let key = min(tile_keys[n], last_key);
    let line = (n / P_KEYS * 4u + n % 4u) * TX + n % P_KEYS / 4u;
    kv_tile[line * K_STRIDE + d] = TileVec4(elements(k[k_head + key * params.k_row_stride + d0 + d]));
  }
}

// Stages V_CHUNK keys of v, from the tile's key n0 on.
fn stage_v(thread: u32, v_head: u32, last_key: u32, n0: u32) {
  let first = thread / TX;
  for (var i = 0u; i < (V_CHUNK + TY - 1u) / TY * UNIT; i++) {
    let line = first + i * TY;
    if (V_CHUNK % TY == 0u || line < V_CHUNK) {
      let row = v_head + min(tile_keys[n0 + line], last_key) * params.v_row_stride;
      for (var c = 0u; c < COLS; c++) {
        let d = c * TX + thread % TX;
        kv_tile[line * V_STRIDE + d] = TileVec4(elements(v[row + min(d, D4 - 1u)]));
      }
    }
  }
}

@compute @workgroup_size(LANE_ROWS, TX, TY / LANE_ROWS)
fn main(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(local_invocation_id) local: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let tx = local.y;
  let ty = local.z * LANE_ROWS + local.x;
  let entry = heads[params.head_start + workgroup.y];
  let row0 = (params.row_tile_end - 1u - workgroup.x) * BLOCK_M;
  let last_key = last_position(row0, BLOCK_M);
  let q_head = params.q_base + entry.head * params.q_head_stride;
  let k_head = params.k_base + entry.kv_head * params.k_head_stride;
  let v_head = params.v_base + entry.kv_head * params.v_head_stride;

  var o_acc: array<vec4<f32>, ROWS * COLS>;
  var m: array<f32, ROWS>;
  var l: array<f32, ROWS>;
  for (var r = 0u; r < ROWS; r++) {
    m[r] = M_START;
  }
  if (Q_WHOLE) {
    for (var chunk = 0u; chunk < D_CHUNKS * params.unit; chunk++) {
      stage_q(thread, q_head, row0, chunk * DC4, chunk * DC4);
    }
  }

  let tiles = tile_count(entry, row0);
  if (tiles == 0u) {
    return;  // This head has another pattern (FlexPrefill), whose kernel writes its rows.
  }
  for (var tile = 0u; tile < tiles; tile++) {
    if (thread < BLOCK_N) {
      tile_keys[thread] = key_at(entry, row0, tile, thread);
    }

    // s = q k^T
    var s: array<vec4<f32>, ROWS * KEY_VECS>;
    for (var i = 0u; i < ROWS * KEY_VECS; i++) {
      s[i] = vec4<f32>();
    }
    for (var chunk = 0u; chunk < D_CHUNKS * params.unit; chunk++) {
      let d0 = min(chunk, D_CHUNKS - 1u) * DC4;
      let q_d = d0 * Q_STEP;
      workgroupBarrier();
      if (!Q_WHOLE) {
        stage_q(thread, q_head, row0, d0, 0u);
      }
      stage_k(thread, k_head, last_key, d0);
      workgroupBarrier();
      for (var d = 0u; d < DC4 * UNIT; d++) {
        var keys: array<vec4<f32>, 4u * KEY_VECS>;
        for (var j = 0u; j < 4u * KEY_VECS; j++) {
          keys[j] = vec4<f32>(kv_tile[(j * TX + tx) * K_STRIDE + d]);
        }
        for (var r = 0u; r < ROWS; r++) {
          let q_row = vec4<f32>(q_tile[(ty + r * TY) * Q_STRIDE + q_d + d]);
          for (var g = 0u; g < KEY_VECS; g++) {
            let sum = s[r * KEY_VECS + g];
            s[r * KEY_VECS + g] = vec4<f32>(
              dot_add(q_row, keys[4u * g], sum.x),
              dot_add(q_row, keys[4u * g + 1u], sum.y),
              dot_add(q_row, keys[4u * g + 2u], sum.z),
              dot_add(q_row, keys[4u * g + 3u], sum.w));
          }
        }
      }
    }

    // Online softmax. Each thread keeps its own share of l; the shares are added once, after the loop.
    var m_new: array<f32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
      m_new[r] = m[r];
    }
    for (var g = 0u; g < KEY_VECS; g++) {
      let n = g * P_KEYS + 4u * tx;
      let keys = vec4<u32>(tile_keys[n], tile_keys[n + 1u], tile_keys[n + 2u], tile_keys[n + 3u]);
      for (var r = 0u; r < ROWS; r++) {
        let position = params.q_offset + row0 + ty + r * TY;
        let visible = vec4<bool>(
          is_visible(entry, position, keys.x),
          is_visible(entry, position, keys.y),
          is_visible(entry, position, keys.z),
          is_visible(entry, position, keys.w));
        let scores = select(vec4<f32>(MASKED), s[r * KEY_VECS + g] * params.scale_log2, visible);
        s[r * KEY_VECS + g] = scores;
        m_new[r] = max(m_new[r], max(max(scores.x, scores.y), max(scores.z, scores.w)));
      }
    }
    row_max(&m_new, tx, ty);
    for (var r = 0u; r < ROWS; r++) {
      let alpha = exp2(m[r] - m_new[r]);
      m[r] = m_new[r];
      l[r] *= alpha;
      for (var g = 0u; g < KEY_VECS; g++) {
        let p = exp2(s[r * KEY_VECS + g] - m[r]);
        s[r * KEY_VECS + g] = p;
        l[r] += (p.x + p.y) + (p.z + p.w);
      }
      for (var c = 0u; c < COLS; c++) {
        o_acc[r * COLS + c] *= alpha;
      }
    }

    // o += p v
    for (var g = 0u; g < KEY_VECS * params.unit; g++) {
      for (var chunk = 0u; chunk < V_CHUNKS * params.unit; chunk++) {
        let n0 = min(chunk, V_CHUNKS - 1u) * V_CHUNK;
        workgroupBarrier();
        if (chunk == 0u) {
          for (var r = 0u; r < ROWS; r++) {
            // Registers have no run-time index; KEY_VECS is 1 or 2.
            let p = select(s[r * KEY_VECS], s[(r + 1u) * KEY_VECS - 1u], g > 0u);
            p_tile[(ty + r * TY) * P_STRIDE + tx] = TileVec4(p);
          }
        }
        stage_v(thread, v_head, last_key, min(g, KEY_VECS - 1u) * P_KEYS + n0);
        workgroupBarrier();
        for (var n = 0u; n < V_CHUNK / 4u * UNIT; n++) {
          var p: array<vec4<f32>, ROWS>;
          for (var r = 0u; r < ROWS; r++) {
            p[r] = vec4<f32>(p_tile[(ty + r * TY) * P_STRIDE + n0 / 4u + n]);
          }
          for (var c = 0u; c < COLS; c++) {
            let at = 4u * n * V_STRIDE + c * TX + tx;
            let v0 = vec4<f32>(kv_tile[at]);
            let v1 = vec4<f32>(kv_tile[at + V_STRIDE]);
            let v2 = vec4<f32>(kv_tile[at + 2u * V_STRIDE]);
            let v3 = vec4<f32>(kv_tile[at + 3u * V_STRIDE]);
            for (var r = 0u; r < ROWS; r++) {
              let sum = o_acc[r * COLS + c];
              o_acc[r * COLS + c] = fma(
                vec4<f32>(p[r].w), v3, fma(vec4<f32>(p[r].z), v2, fma(vec4<f32>(p[r].y), v1, fma(vec4<f32>(p[r].x), v0, sum))));
            }
          }
        }
      }
    }
    workgroupBarrier();
  }

  row_sum(&l, tx, ty);
  for (var r = 0u; r < ROWS; r++) {
    let row = row0 + ty + r * TY;
    if (row < params.n_q) {
      let seen = l[r] > 0.0;
      let inv_l = select(0.0, 1.0 / l[r], seen);
      for (var c = 0u; c < COLS; c++) {
        let d = c * TX + tx;
        if (d < D4) {
          o[params.o_base + entry.head * params.o_head_stride + row * params.o_row_stride + d] =
            pack_vec4(o_acc[r * COLS + c] * inv_l);
        }
      }
      if (tx == 0u && params.write_lse != 0u) {
        lse[params.lse_base + entry.head * params.n_q + row] =
          select(bitcast<f32>(MINUS_INFINITY * params.unit), LN2 * (m[r] + log2(l[r])), seen);
      }
    }
  }
}
