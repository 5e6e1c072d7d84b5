// x[i, :] = W[tokens[i], :]: the rows of the embedding table that the tokens name, in f32.
//
// A dispatch holds rows [row_start, row_start + n) of the table and leaves tokens alone that lie in another one's.
// Bindings: 0 params, 1 weights [n, k], 2 tokens [m], 3 x [m, k]. Workgroups: (ceil(k / 8 / 64), m).

struct EmbedParams {
  m: u32,
  n: u32,
  k: u32,
  row_start: u32,
}

@group(0) @binding(0) var<uniform> params: EmbedParams;
@group(0) @binding(2) var<storage, read> tokens: array<u32>;
@group(0) @binding(3) var<storage, read_write> x: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let row = tokens[id.y] - params.row_start;
  if (id.x < params.k / 8u && row < params.n) {
    let w = load_weights(row, id.x);
    let at = (id.y * (params.k / 8u) + id.x) * 2u;
    x[at] = w.lo;
    x[at + 1u] = w.hi;
  }
}
