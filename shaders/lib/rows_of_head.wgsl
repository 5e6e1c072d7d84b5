// Where the rows of a workgroup lie: place p is query row p of head entry.head. `row0` is a workgroup's first place. The same functions for
// heads that share a workgroup: lib/rows_of_group.wgsl.

fn is_row(place: u32) -> bool {
  return place < params.n_q;
}

// Absolute position of the row at a place.
fn position_of(place: u32) -> u32 {
  return params.q_offset + place;
}

// Absolute position of the last real row among `rows` places from row0 on.
fn last_position(row0: u32, rows: u32) -> u32 {
  return params.q_offset + min(row0 + rows, params.n_q) - 1u;
}

// Where a place's row lies in q, if head entry.head begins at q_head. Places past the end have the last row.
fn q_row(q_head: u32, place: u32) -> u32 {
  return q_head + min(place, params.n_q - 1u) * params.q_row_stride;
}

// Where the results of a place go, if those of head entry.head go to head_out.
fn o_row(head_out: u32, place: u32) -> u32 {
  return params.o_base + head_out * params.o_head_stride + place * params.o_row_stride;
}

fn lse_row(head_out: u32, place: u32) -> u32 {
  return params.lse_base + head_out * params.lse_head_stride + place;
}
