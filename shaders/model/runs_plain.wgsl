// What a thread of the matrix-vector kernel takes of a row at a time: GROUPS groups, loaded as they are needed.
struct Run {
  row: u32,
  group: u32,
}

fn load_run(row: u32, run: u32) -> Run {
  return Run(row, run * GROUPS);
}

fn run_quants(x: Run, g: u32) -> Eight {
  return load_quants(x.row, x.group + g);
}

fn run_scale(x: Run, g: u32) -> Scale {
  return load_scale(x.row, x.group + g);
}
