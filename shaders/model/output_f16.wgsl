// Activations stored as f16: values that it cannot hold saturate.
alias Output = f16;
const HALF_MAX: f32 = 65504.0;

fn to_output(x: f32) -> Output {
  return f16(clamp(x, -HALF_MAX, HALF_MAX));
}

fn pack_output(x: vec4<f32>) -> vec4<Output> {
  return vec4<f16>(clamp(x, vec4<f32>(-HALF_MAX), vec4<f32>(HALF_MAX)));
}
