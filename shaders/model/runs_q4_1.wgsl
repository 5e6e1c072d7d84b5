// Runs of runs_nibbles.wgsl where blocks have 20 bytes.

fn load_run(row: u32, run: u32) -> Run {
  let at = (row * (params.k / 32u) + run) * 5u;
  return Run(weights[at], vec4<u32>(weights[at + 1u], weights[at + 2u], weights[at + 3u], weights[at + 4u]));
}

fn run_scale(x: Run, g: u32) -> Scale {
  return Scale(half(x.head), half(x.head >> 16u));
}
