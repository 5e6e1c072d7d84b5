// Probabilities of a row and eight neighbouring keys between the passes of the vertical-slash estimate, as f16: half the memory, and
// half of what the passes write and read. They are relative to the greatest of a few keys, so none that matters is too small for f16.

alias Kept = vec4<u32>;

fn to_kept(lo: vec4<f32>, hi: vec4<f32>) -> Kept {
  return Kept(pack2x16float(lo.xy), pack2x16float(lo.zw), pack2x16float(hi.xy), pack2x16float(hi.zw));
}

fn of_kept(kept: Kept) -> array<vec4<f32>, 2> {
  return array<vec4<f32>, 2>(
    vec4<f32>(unpack2x16float(kept.x), unpack2x16float(kept.y)),
    vec4<f32>(unpack2x16float(kept.z), unpack2x16float(kept.w)),
  );
}
