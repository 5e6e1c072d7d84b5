// Runs of runs_nibbles.wgsl where blocks have 18 bytes.

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

fn run_scale(x: Run, g: u32) -> Scale {
  return Scale(half(x.head), 0.0);
}
