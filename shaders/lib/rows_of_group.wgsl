// As lib/rows_of_head.wgsl, where GROUP heads (from the prelude) that share keys take turns, so that a few rows of each fill a workgroup:
// place p is row p / GROUP of head entry.head + p % GROUP.

fn is_row(place: u32) -> bool {
  return place / GROUP < params.n_q;
}

fn position_of(place: u32) -> u32 {
  return params.q_offset + place / GROUP;
}

fn last_position(row0: u32, rows: u32) -> u32 {
  return params.q_offset + min((row0 + rows - 1u) / GROUP + 1u, params.n_q) - 1u;
}

fn q_row(q_head: u32, place: u32) -> u32 {
  return q_head + place % GROUP * params.q_head_stride + min(place / GROUP, params.n_q - 1u) * params.q_row_stride;
}

fn o_row(head_out: u32, place: u32) -> u32 {
  return params.o_base + (head_out + place % GROUP) * params.o_head_stride + place / GROUP * params.o_row_stride;
}

fn lse_row(head_out: u32, place: u32) -> u32 {
  return params.lse_base + (head_out + place % GROUP) * params.lse_head_stride + place / GROUP;
}
