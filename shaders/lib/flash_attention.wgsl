// The tiled online-softmax loop that all attention kernels of the portable and f16 tiers share.
//
//   for each tile of BLOCK_N keys:   s = q k^T * scale,   m' = max(m, rowmax s),   p = exp2(s - m')
//                                    l = l * exp2(m - m') + rowsum p
//                                    o = o * exp2(m - m') + p v
//   o /= l,   lse = ln(sum_j exp(s_j))
//
// A workgroup of TY x TX threads owns BLOCK_M rows of one head. Thread (ty, tx) holds, in registers:
//   s: rows ty + r * TY (r < ROWS), keys 4 * tx .. 4 * tx + 3        -> ROWS vec4
//   o: the same rows, vec4 columns tx + c * TX (c < COLS)            -> ROWS * COLS vec4
// q and k are staged through workgroup memory D_CHUNK dimensions at a time, v V_CHUNK keys at a time, so
// workgroup memory does not depend on the sequence length and hardly on the head size.
//
// Constants from the pipeline's prelude: HEAD_DIM, BLOCK_M, BLOCK_N = 4 * TX, TX, TY, D_CHUNK, V_CHUNK; the
// alias TileVec4 says how staged values are kept (vec4<f32> or vec4<f16>). All arithmetic is f32.
// The kernel's own file defines tile_count, key_at and is_visible; lib/row_reduce_*.wgsl defines row_max
// and row_sum over the TX threads of a row.

const D4: u32 = HEAD_DIM / 4u;
const ROWS: u32 = BLOCK_M / TY;
const COLS: u32 = (D4 + TX - 1u) / TX;
const THREADS: u32 = TX * TY;
const DC4: u32 = D_CHUNK / 4u;
const D_CHUNKS: u32 = (D4 + DC4 - 1u) / DC4;
const QK_STRIDE: u32 = DC4 + 1u;      // padded: neighbouring rows fall into different banks
const K_TILE: u32 = BLOCK_M * QK_STRIDE;
const V_STRIDE: u32 = TX * COLS;
const STAGE_SIZE: u32 = max((BLOCK_M + BLOCK_N) * QK_STRIDE, V_CHUNK * V_STRIDE);
const P_STRIDE: u32 = TX + 1u;
const LN2: f32 = 0.6931471805599453;
const MASKED: f32 = -2e30;            // score of a key that a row does not see
const M_START: f32 = -1e30;           // above MASKED, so that masked keys get exp2(-1e30) = 0

var<workgroup> stage: array<TileVec4, STAGE_SIZE>;
var<workgroup> p_tile: array<TileVec4, BLOCK_M * P_STRIDE>;
var<workgroup> tile_keys: array<u32, BLOCK_N>;

fn dot_add(a: vec4<f32>, b: vec4<f32>, sum: f32) -> f32 {
  return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

@compute @workgroup_size(TX, TY)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
  let tx = local.x;
  let ty = local.y;
  let thread = ty * TX + tx;
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

  let tiles = tile_count(entry, row0);
  for (var tile = 0u; tile < tiles; tile++) {
    if (thread < BLOCK_N) {
      tile_keys[thread] = key_at(entry, row0, tile, thread);
    }

    // s = q k^T
    var s: array<vec4<f32>, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
      s[r] = vec4<f32>();
    }
    for (var chunk = 0u; chunk < D_CHUNKS * params.unit; chunk++) {
      let d0 = chunk * DC4;
      workgroupBarrier();
      for (var i = thread; i < (BLOCK_M + BLOCK_N) * DC4; i += THREADS) {
        let line = i / DC4;
        let d = i % DC4;
        var x = vec4<f32>();
        if (line < BLOCK_M) {
          if (row0 + line < params.n_q && d0 + d < D4) {
            x = unpack_vec4(q[q_head + (row0 + line) * params.q_row_stride + d0 + d]);
          }
          stage[line * QK_STRIDE + d] = TileVec4(x);
        } else {
          // Key n goes to line (n % 4) * TX + n / 4: the four keys of neighbouring threads are then neighbours.
          let n = line - BLOCK_M;
          let key = tile_keys[n];
          if (key <= last_key && d0 + d < D4) {
            x = unpack_vec4(k[k_head + key * params.k_row_stride + d0 + d]);
          }
          stage[K_TILE + ((n % 4u) * TX + n / 4u) * QK_STRIDE + d] = TileVec4(x);
        }
      }
      workgroupBarrier();
      for (var d = 0u; d < DC4 * params.unit; d++) {
        let k0 = vec4<f32>(stage[K_TILE + tx * QK_STRIDE + d]);
        let k1 = vec4<f32>(stage[K_TILE + (TX + tx) * QK_STRIDE + d]);
        let k2 = vec4<f32>(stage[K_TILE + (2u * TX + tx) * QK_STRIDE + d]);
        let k3 = vec4<f32>(stage[K_TILE + (3u * TX + tx) * QK_STRIDE + d]);
        for (var r = 0u; r < ROWS; r++) {
          let q_row = vec4<f32>(stage[(ty + r * TY) * QK_STRIDE + d]);
          let sum = s[r];
          s[r] = vec4<f32>(
            dot_add(q_row, k0, sum.x),
            dot_add(q_row, k1, sum.y),
            dot_add(q_row, k2, sum.z),
            dot_add(q_row, k3, sum.w));
        }
      }
    }

    // Online softmax. Each thread keeps its own share of l; the shares are added once, after the loop.
    let keys = vec4<u32>(tile_keys[4u * tx], tile_keys[4u * tx + 1u], tile_keys[4u * tx + 2u], tile_keys[4u * tx + 3u]);
    var m_new: array<f32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
      let position = params.q_offset + row0 + ty + r * TY;
      let visible = vec4<bool>(
        is_visible(entry, position, keys.x),
        is_visible(entry, position, keys.y),
        is_visible(entry, position, keys.z),
        is_visible(entry, position, keys.w));
      s[r] = select(vec4<f32>(MASKED), s[r] * params.scale_log2, visible);
      m_new[r] = max(max(s[r].x, s[r].y), max(s[r].z, s[r].w));
    }
    row_max(&m_new, tx, ty);
    for (var r = 0u; r < ROWS; r++) {
      let m_next = max(m[r], m_new[r]);
      let alpha = exp2(m[r] - m_next);
      let p = exp2(s[r] - m_next);
      m[r] = m_next;
      l[r] = fma(l[r], alpha, (p.x + p.y) + (p.z + p.w));
      for (var c = 0u; c < COLS; c++) {
        o_acc[r * COLS + c] *= alpha;
      }
      p_tile[(ty + r * TY) * P_STRIDE + tx] = TileVec4(p);
    }

    // o += p v
    for (var n0 = 0u; n0 < BLOCK_N * params.unit; n0 += V_CHUNK) {
      workgroupBarrier();
      for (var i = thread; i < V_CHUNK * V_STRIDE; i += THREADS) {
        let key = tile_keys[n0 + i / V_STRIDE];
        let d = i % V_STRIDE;
        var x = vec4<f32>();
        if (key <= last_key && d < D4) {
          x = unpack_vec4(v[v_head + key * params.v_row_stride + d]);
        }
        stage[i] = TileVec4(x);
      }
      workgroupBarrier();
      for (var n = 0u; n < V_CHUNK * params.unit; n += 4u) {
        for (var c = 0u; c < COLS; c++) {
          let at = n * V_STRIDE + c * TX + tx;
          let v0 = vec4<f32>(stage[at]);
          let v1 = vec4<f32>(stage[at + V_STRIDE]);
          let v2 = vec4<f32>(stage[at + 2u * V_STRIDE]);
          let v3 = vec4<f32>(stage[at + 3u * V_STRIDE]);
          for (var r = 0u; r < ROWS; r++) {
            let p = vec4<f32>(p_tile[(ty + r * TY) * P_STRIDE + (n0 + n) / 4u]);
            let sum = o_acc[r * COLS + c];
            o_acc[r * COLS + c] =
              fma(vec4<f32>(p.w), v3, fma(vec4<f32>(p.z), v2, fma(vec4<f32>(p.y), v1, fma(vec4<f32>(p.x), v0, sum))));
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
      let inv_l = 1.0 / l[r];
      for (var c = 0u; c < COLS; c++) {
        let d = c * TX + tx;
        if (d < D4) {
          o[params.o_base + entry.head * params.o_head_stride + row * params.o_row_stride + d] =
            pack_vec4(o_acc[r * COLS + c] * inv_l);
        }
      }
      if (tx == 0u && params.write_lse != 0u) {
        lse[params.lse_base + entry.head * params.n_q + row] = LN2 * (m[r] + log2(l[r]));
      }
    }
  }
}
