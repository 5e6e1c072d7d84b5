// Fills a buffer with pairs of normal f16 values.
@group(0) @binding(0) var<storage, read_write> words: array<u32>;

override SEED: u32 = 1u;

fn hash(x: u32) -> u32 {
  var h = x * 0x9e3779b9u + SEED * 0x85ebca6bu;
  h = (h ^ (h >> 16u)) * 0x21f0aaadu;
  h = (h ^ (h >> 15u)) * 0x735a2d97u;
  return h ^ (h >> 15u);
}

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
  let i = id.y * groups.x * 256u + id.x;
  if (i < arrayLength(&words)) {
    let radius = sqrt(-2.0 * log((f32(hash(2u * i) >> 8u) + 1.0) / 16777217.0));
    let angle = 6.2831853 * f32(hash(2u * i + 1u) >> 8u) / 16777216.0;
    words[i] = pack2x16float(radius * vec2<f32>(cos(angle), sin(angle)));
  }
}
