// Ceiling of fused multiply-adds: 16 independent chains of T = vec4<f32 or f16> per thread, LOOPS long.
// x = x * a + b with |a| < 1 stays finite. The prelude defines T and its scalar S.

override LOOPS: u32 = 1024u;
@group(0) @binding(0) var<storage, read_write> out: array<u32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let a = T(S(0.5) + S(id.x & 7u) * S(0.03125));
  let b = T(S(0.25));
  var x: array<T, 16>;
  for (var i = 0u; i < 16u; i++) {
    x[i] = T(S(id.x & 31u) + S(i));
  }
  for (var n = 0u; n < LOOPS; n++) {
    for (var i = 0u; i < 16u; i++) {
      x[i] = fma(x[i], a, b);
    }
  }
  var sum = T(S(0));
  for (var i = 0u; i < 16u; i++) {
    sum += x[i];
  }
  // Never true, but the compiler cannot know.
  if (sum.x + sum.y + sum.z + sum.w < S(-1.0)) {
    out[id.x & 16383u] = 1u;
  }
}
