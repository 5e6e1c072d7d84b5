// Ceiling of fused multiply-adds: 16 independent chains of T = vec4<f32 or f16> per thread, LOOPS long.
// x = x * a + b with |a| < 1 stays finite. Each chain is a variable of its own: loops over an array need not be unrolled. The prelude defines T and its scalar S.

override LOOPS: u32 = 1024u;
@group(0) @binding(0) var<storage, read_write> out: array<u32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let a = T(S(0.5) + S(id.x & 7u) * S(0.03125));
  let b = T(S(0.25));
  let x = T(S(id.x & 31u));
  var x0 = x + T(S(0));
  var x1 = x + T(S(1));
  var x2 = x + T(S(2));
  var x3 = x + T(S(3));
  var x4 = x + T(S(4));
  var x5 = x + T(S(5));
  var x6 = x + T(S(6));
  var x7 = x + T(S(7));
  var x8 = x + T(S(8));
  var x9 = x + T(S(9));
  var x10 = x + T(S(10));
  var x11 = x + T(S(11));
  var x12 = x + T(S(12));
  var x13 = x + T(S(13));
  var x14 = x + T(S(14));
  var x15 = x + T(S(15));
  for (var n = 0u; n < LOOPS; n++) {
    x0 = fma(x0, a, b);
    x1 = fma(x1, a, b);
    x2 = fma(x2, a, b);
    x3 = fma(x3, a, b);
    x4 = fma(x4, a, b);
    x5 = fma(x5, a, b);
    x6 = fma(x6, a, b);
    x7 = fma(x7, a, b);
    x8 = fma(x8, a, b);
    x9 = fma(x9, a, b);
    x10 = fma(x10, a, b);
    x11 = fma(x11, a, b);
    x12 = fma(x12, a, b);
    x13 = fma(x13, a, b);
    x14 = fma(x14, a, b);
    x15 = fma(x15, a, b);
  }
  let sum = x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7
    + x8 + x9 + x10 + x11 + x12 + x13 + x14 + x15;
  // Never true, but the compiler cannot know.
  if (sum.x + sum.y + sum.z + sum.w < S(-1.0)) {
    out[id.x & 16383u] = 1u;
  }
}
