// Activations stored as f32.
alias Output = f32;

fn to_output(x: f32) -> Output {
  return x;
}

fn pack_output(x: vec4<f32>) -> vec4<Output> {
  return x;
}
