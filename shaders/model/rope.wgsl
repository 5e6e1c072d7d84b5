// Turns the queries and keys of a chunk by their positions, after an RMS norm of each head where the model has one, and
// puts keys and values into the cache.
//
//   q' = rope(norm(q)), in place;   K[head, position] = rope(norm(k));   V[head, position] = v
//   rope: (x_d, x_{d + R/2}) turned by position * f_d for d < R/2; elements from R on stay.
//
// The angle is computed in turns: frequencies are u32 fractions of a turn, whose products with the position wrap as
// angles do, with the rounding error of the fraction beside them. f32 products would be off by whole turns at 1M.
//
// Constants from the pipeline's prelude: HEAD_DIM, ROTARY = R, GROUP (query heads per key/value head), NORM (1: norm).
// Bindings: 0 params, 1 state (position of row 0), 2 qkv [rows, qkv_stride]: q, k and v heads side by side, 3 frequencies
// [R / 2] of (u32 fraction, f32 rest), 4 norm weights [2, HEAD_DIM] of q and k, 5 K, 6 V [kv heads, capacity, HEAD_DIM].
// Workgroups: ((GROUP + 2) * kv heads of this dispatch, rows).

struct RopeParams {
  heads: u32,            // query heads of the model
  kv_heads: u32,         // key/value heads of the model
  kv_start: u32,         // first key/value head that this dispatch does, which is head 0 of the bound cache
  qkv_stride: u32,
  capacity: u32,
  factor: f32,           // what cos and sin are multiplied by
  eps: f32,
}

@group(0) @binding(0) var<uniform> params: RopeParams;
@group(0) @binding(1) var<storage, read> state: array<u32>;
@group(0) @binding(2) var<storage, read_write> qkv: array<Output>;
@group(0) @binding(3) var<storage, read> frequencies: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read> norms: array<f32>;
@group(0) @binding(5) var<storage, read_write> k_cache: array<Output>;
@group(0) @binding(6) var<storage, read_write> v_cache: array<Output>;

const THREADS: u32 = 32u;
const PAIRS: u32 = HEAD_DIM / 2u;
const PER_THREAD: u32 = (PAIRS + THREADS - 1u) / THREADS;
const QUARTER_TURN: f32 = 1.5707963267948966;

// The elements of pair i: half a rotation apart, or half of the rest that is not rotated.
fn pair_at(i: u32) -> vec2<u32> {
  if (i < ROTARY / 2u) {
    return vec2<u32>(i, i + ROTARY / 2u);
  }
  let rest = ROTARY / 2u + i;
  return vec2<u32>(rest, rest + (HEAD_DIM - ROTARY) / 2u);
}

// Cosine and sine, by their series on the eighth of a turn around the nearest quarter: WGSL's own may be off by 2^-11.
fn cos_sin(turns: f32) -> vec2<f32> {
  let quarter = round(4.0 * turns);
  let x = QUARTER_TURN * (4.0 * turns - quarter);
  let x2 = x * x;
  let cosine = fma(x2, fma(x2, fma(x2, fma(x2, 1.0 / 40320.0, -1.0 / 720.0), 1.0 / 24.0), -0.5), 1.0);
  let sine = x * fma(x2, fma(x2, fma(x2, fma(x2, 1.0 / 362880.0, -1.0 / 5040.0), 1.0 / 120.0), -1.0 / 6.0), 1.0);
  let odd = (i32(quarter) & 1) != 0;
  let turned = select(vec2<f32>(cosine, sine), vec2<f32>(-sine, cosine), odd);
  return select(turned, -turned, (i32(quarter) & 2) != 0);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let local_kv = workgroup.x / (GROUP + 2u);
  let kv_head = params.kv_start + local_kv;
  let slot = workgroup.x % (GROUP + 2u);
  let position = state[0] + workgroup.y;
  var head = kv_head * GROUP + slot;
  if (slot >= GROUP) {
    head = params.heads + kv_head + (slot - GROUP) * params.kv_heads;
  }
  let source = workgroup.y * params.qkv_stride + head * HEAD_DIM;
  let slot_at = (local_kv * params.capacity + position) * HEAD_DIM;

  var x: array<vec2<f32>, PER_THREAD>;
  var squares = 0.0;
  for (var j = 0u; j < PER_THREAD; j++) {
    let i = thread + j * THREADS;
    if (i < PAIRS) {
      let at = pair_at(i);
      x[j] = vec2<f32>(f32(qkv[source + at.x]), f32(qkv[source + at.y]));
      squares += dot(x[j], x[j]);
    }
  }
  var scale = 1.0;
  if (NORM == 1u) {
    scale = inverseSqrt(workgroup_sum(squares, thread) / f32(HEAD_DIM) + params.eps);
  }
  for (var j = 0u; j < PER_THREAD; j++) {
    let i = thread + j * THREADS;
    if (i >= PAIRS) {
      continue;
    }
    let at = pair_at(i);
    var y = x[j];
    if (slot == GROUP + 1u) {
      v_cache[slot_at + at.x] = to_output(y.x);
      v_cache[slot_at + at.y] = to_output(y.y);
      continue;
    }
    if (NORM == 1u) {
      let w = select(0u, HEAD_DIM, slot == GROUP);
      y *= scale * vec2<f32>(norms[w + at.x], norms[w + at.y]);
    }
    if (i < ROTARY / 2u) {
      let f = frequencies[i];
      let turns = f32(bitcast<i32>(position * f.x)) * 2.3283064365386963e-10 + f32(position) * bitcast<f32>(f.y);
      let c = params.factor * cos_sin(turns);
      y = vec2<f32>(y.x * c.x - y.y * c.y, y.y * c.x + y.x * c.y);
    }
    if (slot == GROUP) {
      k_cache[slot_at + at.x] = to_output(y.x);
      k_cache[slot_at + at.y] = to_output(y.y);
    } else {
      qkv[source + at.x] = to_output(y.x);
      qkv[source + at.y] = to_output(y.y);
    }
  }
}
