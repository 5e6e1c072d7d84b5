// Probabilities of a row and eight neighbouring keys between the passes of the vertical-slash estimate, as they are.

alias Kept = array<vec4<f32>, 2>;

fn to_kept(lo: vec4<f32>, hi: vec4<f32>) -> Kept {
  return Kept(lo, hi);
}

fn of_kept(kept: Kept) -> array<vec4<f32>, 2> {
  return kept;
}
