// The tiled online-softmax loop that all attention kernels of the portable and f16 tiers share.
//
//   for each tile of BLOCK_N keys:   s = q k^T * scale,   m' = max(m, rowmax s),   p = exp2(s - m')
//                                    l = l * exp2(m - m') + rowsum p
//                                    o = o * exp2(m - m') + p v
//   o /= l,   lse = ln(sum_j exp(s_j));   o = 0, lse = -inf for a row that sees none of its tiles' keys
//
// Few rows that see many keys have their tiles dealt out among `splits` workgroups (Flash-Decoding), each with an o and lse of its own.
//
// A workgroup of TY x TX threads owns BLOCK_M rows of one head. Thread (ty, tx) holds, in registers:
//   s: rows 4 * (ty + g * TY) .. + 3 (g < ROW_VECS), the tile's keys tx + i * TX (i < 4 * KEY_VECS)   -> ROWS * KEY_VECS vec4
//   o: the same rows, vec4 columns tx + c * TX (c < COLS)                                             -> ROWS * COLS vec4
// Neighbouring threads alternate between LANE_ROWS rows of threads: two that share a key or a column read one address,
// which takes NVIDIA's workgroup memory half the cycles.
//
// q, k, p and v are staged through workgroup memory in f32: q Q_CHUNK dimensions at a time (HEAD_DIM: once, before the
// loop), k D_CHUNK dimensions, then p P_CHUNK and v V_CHUNK keys at a time, where q and k were. So workgroup memory does not
// depend on the sequence length, and hardly on the head size. q, k and p lie transposed: a vec4 holds one dimension of four
// rows or keys, or one key of four rows, and what a thread multiplies at a time is the outer product of a few vec4. Keys and
// rows past the end are staged as copies of the last one: p is 0 for such keys, and such rows are not written.
//
// Constants from the pipeline's prelude: HEAD_DIM, BLOCK_M, BLOCK_N, TX, TY, LANE_ROWS, Q_CHUNK, D_CHUNK (a power of two
// that divides HEAD_DIM), P_CHUNK (a multiple of TX that divides BLOCK_N), V_CHUNK (divides P_CHUNK). UNIT: see
// withUnit in src/kernels/shader_text.ts. Workgroup memory: lib/stage_patch.wgsl.
// The kernel's own file defines tile_count, key_at and is_visible; lib/row_reduce_*.wgsl defines row_max
// and row_sum over the TX threads of a row.

const D4: u32 = HEAD_DIM / 4u;
const ROWS: u32 = BLOCK_M / TY;
const ROW_VECS: u32 = ROWS / 4u;
const KEY_VECS: u32 = BLOCK_N / (4u * TX);
const COLS: u32 = (D4 + TX - 1u) / TX;
const THREADS: u32 = TX * TY;
const DC4: u32 = D_CHUNK / 4u;
const D_CHUNKS: u32 = D4 / DC4;
const Q_WHOLE: bool = Q_CHUNK == HEAD_DIM;
const Q_STEP: u32 = select(0u, 1u, Q_WHOLE);  // staged vec4 of dimensions of q in front of k's, over k's first one
const Q_STRIDE: u32 = BLOCK_M / 4u;
const K_STRIDE: u32 = BLOCK_N / 4u;
const P_STRIDE: u32 = BLOCK_M / 4u + 2u;       // padded: neighbours store different keys
const V_STRIDE: u32 = TX * COLS;
const V_CHUNKS: u32 = BLOCK_N / V_CHUNK;
// A thread stages four dimensions of four rows or keys at a time, a patch: those of q first, unless it is staged whole.
const Q_PATCHES: u32 = Q_STRIDE * DC4;
const Q_AHEAD: u32 = select(Q_PATCHES, 0u, Q_WHOLE);
const PATCHES: u32 = Q_AHEAD + K_STRIDE * DC4;
const TURNS: u32 = (PATCHES + THREADS - 1u) / THREADS;
const V_TURNS: u32 = (V_CHUNK * V_STRIDE + THREADS - 1u) / THREADS;
const FETCHED: u32 = max(4u * TURNS, V_TURNS);
// From four dimensions to the next four. Neighbours stage different dimensions of the same rows: padded, they fall into different banks.
const PAD: u32 = 8u / min(DC4, 8u);
const Q_GROUP: u32 = 4u * Q_STRIDE + PAD;
const K_GROUP: u32 = 4u * K_STRIDE + PAD;
const LN2: f32 = 0.6931471805599453;
const MASKED: f32 = -2e30;                    // score of a key that a row does not see
const M_START: f32 = -1e30;                   // above MASKED, so that masked keys get exp2(-1e30) = 0
const MINUS_INFINITY: u32 = 0xff800000u;      // its bits: WGSL has no literal for it

// Where k, p and v begin in workgroup memory; q is in front.
const K_AT: u32 = Q_CHUNK / 4u * Q_GROUP;
const P_AT: u32 = select(0u, K_AT, Q_WHOLE);
const V_AT: u32 = P_AT + P_CHUNK * P_STRIDE;

const STAGE_SIZE: u32 = max(K_AT + DC4 * K_GROUP, V_AT + V_CHUNK * V_STRIDE);

var<workgroup> tile_keys: array<u32, BLOCK_N>;

// What this thread stages next, on its way while it multiplies.
alias Fetched = array<StorageVec4, FETCHED>;

fn q_at(q_head: u32, row: u32, d: u32) -> u32 {
  return q_row(q_head, row) + d;
}

// Stages q whole.
fn stage_q(thread: u32, q_head: u32, row0: u32) {
  for (var i = thread; i < Q_STRIDE * D4; i += THREADS) {
    let d = i % D4;
    let row = row0 + i / D4 * 4u;
    stage_patch(
      d * Q_GROUP + i / D4, Q_STRIDE,
      unpack_vec4(q[q_at(q_head, row, d)]), unpack_vec4(q[q_at(q_head, row + 1u, d)]),
      unpack_vec4(q[q_at(q_head, row + 2u, d)]), unpack_vec4(q[q_at(q_head, row + 3u, d)]));
  }
}

// Loads dimensions d0 .. d0 + DC4 - 1 (in vec4) of the rows from row0 on and of the tile's keys. Loads stand alone in branches without an
// else: from anywhere else, NVIDIA's compiler moves them to where they are used (bench/NOTES.md).
fn fetch_qk(x: ptr<function, Fetched>, thread: u32, q_head: u32, row0: u32, k_head: u32, last_key: u32, d0: u32) {
  for (var turn = 0u; turn < TURNS; turn++) {
    let i = thread + turn * THREADS;
    if (i < Q_AHEAD) {
      for (var e = 0u; e < 4u; e++) {
        (*x)[4u * turn + e] = q[q_at(q_head, row0 + i / DC4 * 4u + e, d0 + i % DC4)];
      }
    }
    if (i >= Q_AHEAD && i < PATCHES) {
      let place = (i - Q_AHEAD) / DC4;
      let slot = place / TX * (4u * TX) + place % TX;
      for (var e = 0u; e < 4u; e++) {
        (*x)[4u * turn + e] = k[k_head + min(tile_keys[slot + e * TX], last_key) * params.k_row_stride + d0 + i % DC4];
      }
    }
  }
}

fn stage_qk(x: ptr<function, Fetched>, thread: u32) {
  for (var turn = 0u; turn < TURNS; turn++) {
    let i = thread + turn * THREADS;
    if (i < PATCHES) {
      let x0 = unpack_vec4((*x)[4u * turn]);
      let x1 = unpack_vec4((*x)[4u * turn + 1u]);
      let x2 = unpack_vec4((*x)[4u * turn + 2u]);
      let x3 = unpack_vec4((*x)[4u * turn + 3u]);
      if (i < Q_AHEAD) {
        stage_patch(i % DC4 * Q_GROUP + i / DC4, Q_STRIDE, x0, x1, x2, x3);
      } else {
        stage_patch(K_AT + i % DC4 * K_GROUP + (i - Q_AHEAD) / DC4, K_STRIDE, x0, x1, x2, x3);
      }
    }
  }
}

// Loads V_CHUNK keys of v, from the tile's key n0 on.
fn fetch_v(x: ptr<function, Fetched>, thread: u32, v_head: u32, last_key: u32, n0: u32) {
  for (var turn = 0u; turn < V_TURNS; turn++) {
    let i = thread + turn * THREADS;
    if (V_CHUNK * V_STRIDE % THREADS == 0u || i < V_CHUNK * V_STRIDE) {
      let key = min(tile_keys[n0 + i / V_STRIDE], last_key);
      (*x)[turn] = v[v_head + key * params.v_row_stride + min(i % V_STRIDE, D4 - 1u)];
    }
  }
}

fn stage_v(x: ptr<function, Fetched>, thread: u32) {
  for (var turn = 0u; turn < V_TURNS; turn++) {
    let i = thread + turn * THREADS;
    if (V_CHUNK * V_STRIDE % THREADS == 0u || i < V_CHUNK * V_STRIDE) {
      stage[V_AT + i] = unpack_vec4((*x)[turn]);
    }
  }
}

// Row r of a thread's ROWS.
fn row_of(ty: u32, r: u32) -> u32 {
  return 4u * (ty + r / 4u * TY) + r % 4u;
}

// Element i of x. Registers have no run-time index.
fn pick(x: vec4<f32>, i: u32) -> f32 {
  return select(select(x.x, x.y, i == 1u), select(x.z, x.w, i == 3u), i >= 2u);
}

@compute @workgroup_size(LANE_ROWS, TX, TY / LANE_ROWS)
fn main(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(local_invocation_id) local: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let tx = local.y;
  let ty = local.z * LANE_ROWS + local.x;
  let entry = heads[entry_of(workgroup)];
  let row0 = (params.row_tile_end - 1u - tile_of(workgroup)) * BLOCK_M;
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
    stage_q(thread, q_head, row0);
  }

  let tiles = tile_count(entry, row0);
  if (tiles == 0u) {
    return;  // This head has another pattern (FlexPrefill), whose kernel writes its rows.
  }
  let share = div_ceil(tiles, params.splits);
  let first = workgroup.z * share;
  let end = min(first + share, tiles);
  let head_out = output_head(entry.head, workgroup.z);
  var fetched: Fetched;
  for (var tile = first; tile < end; tile++) {
    if (thread < BLOCK_N) {
      tile_keys[thread] = key_at(entry, row0, tile, thread);
    }

    workgroupBarrier();
    fetch_qk(&fetched, thread, q_head, row0, k_head, last_key, 0u);

    // s = q k^T
    var s: array<vec4<f32>, ROWS * KEY_VECS>;
    for (var i = 0u; i < ROWS * KEY_VECS; i++) {
      s[i] = vec4<f32>();
    }
    for (var chunk = 0u; chunk < D_CHUNKS * params.unit; chunk++) {
      let d0 = min(chunk, D_CHUNKS - 1u) * DC4;
      let q_d = d0 * Q_STEP;
      workgroupBarrier();
      stage_qk(&fetched, thread);
      workgroupBarrier();
      if (chunk + 1u < D_CHUNKS) {
        fetch_qk(&fetched, thread, q_head, row0, k_head, last_key, d0 + DC4);
      }
      if (chunk + 1u == D_CHUNKS) {
        fetch_v(&fetched, thread, v_head, last_key, 0u);
      }
      for (var group = 0u; group < DC4 * UNIT; group++) {
        for (var e = 0u; e < 4u; e++) {
          var keys: array<vec4<f32>, KEY_VECS>;
          for (var g = 0u; g < KEY_VECS; g++) {
            keys[g] = stage[K_AT + group * K_GROUP + e * K_STRIDE + tx + g * TX];
          }
          for (var rows = 0u; rows < ROW_VECS; rows++) {
            let x = stage[(q_d + group) * Q_GROUP + e * Q_STRIDE + ty + rows * TY];
            let at = 4u * rows * KEY_VECS;
            for (var g = 0u; g < KEY_VECS; g++) {
              s[at + g] = fma(vec4<f32>(x.x), keys[g], s[at + g]);
              s[at + KEY_VECS + g] = fma(vec4<f32>(x.y), keys[g], s[at + KEY_VECS + g]);
              s[at + 2u * KEY_VECS + g] = fma(vec4<f32>(x.z), keys[g], s[at + 2u * KEY_VECS + g]);
              s[at + 3u * KEY_VECS + g] = fma(vec4<f32>(x.w), keys[g], s[at + 3u * KEY_VECS + g]);
            }
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
      let slot = 4u * g * TX + tx;
      let keys = vec4<u32>(tile_keys[slot], tile_keys[slot + TX], tile_keys[slot + 2u * TX], tile_keys[slot + 3u * TX]);
      for (var r = 0u; r < ROWS; r++) {
        let position = position_of(row0 + row_of(ty, r));
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
    for (var chunk = 0u; chunk < V_CHUNKS * params.unit; chunk++) {
      let n0 = min(chunk, V_CHUNKS - 1u) * V_CHUNK;
      workgroupBarrier();
      if (n0 % P_CHUNK == 0u) {
        for (var j = 0u; j < P_CHUNK / TX; j++) {
          let i = n0 / TX + j;
          for (var rows = 0u; rows < ROW_VECS; rows++) {
            var p: vec4<f32>;
            for (var e = 0u; e < 4u; e++) {
              let r = 4u * rows + e;
              var x = s[r * KEY_VECS];
              for (var g = 1u; g < KEY_VECS; g++) {
                x = select(x, s[r * KEY_VECS + g], i / 4u == g);
              }
              p[e] = pick(x, i % 4u);
            }
            stage[P_AT + (j * TX + tx) * P_STRIDE + ty + rows * TY] = p;
          }
        }
      }
      stage_v(&fetched, thread);
      workgroupBarrier();
      if (n0 + V_CHUNK < BLOCK_N) {
        fetch_v(&fetched, thread, v_head, last_key, n0 + V_CHUNK);
      }
      for (var group = 0u; group < V_CHUNK / 4u * UNIT; group++) {
        for (var e = 0u; e < 4u; e++) {
          let n = 4u * group + e;
          var values: array<vec4<f32>, COLS>;
          for (var c = 0u; c < COLS; c++) {
            values[c] = stage[V_AT + n * V_STRIDE + c * TX + tx];
          }
          for (var rows = 0u; rows < ROW_VECS; rows++) {
            let p = stage[P_AT + (n0 % P_CHUNK + n) * P_STRIDE + ty + rows * TY];
            let at = 4u * rows * COLS;
            for (var c = 0u; c < COLS; c++) {
              o_acc[at + c] = fma(vec4<f32>(p.x), values[c], o_acc[at + c]);
              o_acc[at + COLS + c] = fma(vec4<f32>(p.y), values[c], o_acc[at + COLS + c]);
              o_acc[at + 2u * COLS + c] = fma(vec4<f32>(p.z), values[c], o_acc[at + 2u * COLS + c]);
              o_acc[at + 3u * COLS + c] = fma(vec4<f32>(p.w), values[c], o_acc[at + 3u * COLS + c]);
            }
          }
        }
      }
    }
    workgroupBarrier();
  }

  row_sum(&l, tx, ty);
  for (var r = 0u; r < ROWS; r++) {
    let row = row0 + row_of(ty, r);
    if (is_row(row)) {
      let seen = l[r] > 0.0;
      let inv_l = select(0.0, 1.0 / l[r], seen);
      for (var c = 0u; c < COLS; c++) {
        let d = c * TX + tx;
        if (d < D4) {
          o[o_row(head_out, row) + d] = pack_vec4(o_acc[r * COLS + c] * inv_l);
        }
      }
      if (tx == 0u && params.write_lse != 0u) {
        lse[lse_row(head_out, row)] =
          select(bitcast<f32>(MINUS_INFINITY * params.unit), LN2 * (m[r] + log2(l[r])), seen);
      }
    }
  }
}
