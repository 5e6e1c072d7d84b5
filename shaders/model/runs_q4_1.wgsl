// What a thread of the matrix-vector kernel takes of a row at a time, loaded at once: a block.
const_assert GROUPS == 4u;

struct Run {
  d_m: u32,
  words: vec4<u32>,
}

fn load_run(row: u32, run: u32) -> Run {
  let at = (row * (params.k / 32u) + run) * 5u;
  return Run(weights[at], vec4<u32>(weights[at + 1u], weights[at + 2u], weights[at + 3u], weights[at + 4u]));
}

// g of a run's GROUPS.
fn run_quants(x: Run, g: u32) -> Eight {
  let bytes = select(x.words.xy, x.words.zw, g % 2u == 1u);
  if (g < 2u) {
    return Eight(low_nibbles(bytes.x, 0.0), low_nibbles(bytes.y, 0.0));
  }
  return Eight(high_nibbles(bytes.x, 0.0), high_nibbles(bytes.y, 0.0));
}

fn run_scale(x: Run, g: u32) -> Scale {
  return Scale(half(x.d_m), half(x.d_m >> 16u));
}
