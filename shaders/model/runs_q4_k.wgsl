// What a thread of the matrix-vector kernel takes of a row at a time, loaded at once: a sub-block of 32 columns, and the word that
// its scale is in.
const_assert GROUPS == 4u;

struct Run {
  head: vec4<u32>,
  sub: u32,
  // Its nibbles are the low ones.
  first: vec4<u32>,
  second: vec4<u32>,
}

fn load_run(row: u32, run: u32) -> Run {
  let block = (row * (params.k / 256u) + run / 8u) * 9u;
  let sub = run % 8u;
  let at = block + 1u + 2u * (sub / 2u);
  let shift = vec4<u32>(4u * (sub % 2u));
  return Run(weights[block], sub, weights[at] >> shift, weights[at + 1u] >> shift);
}

// g of a run's GROUPS.
fn run_quants(x: Run, g: u32) -> Eight {
  let word = select(x.first, x.second, g >= 2u);
  let bytes = select(word.xy, word.zw, g % 2u == 1u);
  return Eight(low_nibbles(bytes.x, 0.0), low_nibbles(bytes.y, 0.0));
}

fn run_scale(x: Run, g: u32) -> Scale {
  return scale_of(x.head, x.sub);
}
