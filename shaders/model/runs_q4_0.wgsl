// What a thread of the matrix-vector kernel takes of a row at a time, loaded at once: a block.
const_assert GROUPS == 4u;

struct Run {
  d: u32,
  words: vec4<u32>,
}

fn load_run(row: u32, run: u32) -> Run {
  let byte = (row * (params.k / 32u) + run) * 18u;
  let at = byte / 4u;
  let a = vec4<u32>(weights[at], weights[at + 1u], weights[at + 2u], weights[at + 3u]);
  let b = vec4<u32>(a.yzw, weights[at + 4u]);
  if ((byte & 2u) == 0u) {
    return Run(a.x, (a >> vec4<u32>(16u)) | (b << vec4<u32>(16u)));
  }
  return Run(a.x >> 16u, b);
}

// g of a run's GROUPS.
fn run_quants(x: Run, g: u32) -> Eight {
  let bytes = select(x.words.xy, x.words.zw, g % 2u == 1u);
  if (g < 2u) {
    return Eight(low_nibbles(bytes.x, 8.0), low_nibbles(bytes.y, 8.0));
  }
  return Eight(high_nibbles(bytes.x, 8.0), high_nibbles(bytes.y, 8.0));
}

fn run_scale(x: Run, g: u32) -> Scale {
  return Scale(half(x.d), 0.0);
}
