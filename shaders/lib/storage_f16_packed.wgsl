// Tensors stored as f16 on a device without `shader-f16`: four consecutive elements of a row are two
// u32 words, converted by WebGPU's core pack and unpack builtins.
alias StorageVec4 = vec2<u32>;

fn unpack_vec4(x: StorageVec4) -> vec4<f32> {
  return vec4<f32>(unpack2x16float(x.x), unpack2x16float(x.y));
}

fn pack_vec4(x: vec4<f32>) -> StorageVec4 {
  return vec2<u32>(pack2x16float(x.xy), pack2x16float(x.zw));
}
