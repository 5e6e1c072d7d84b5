// Tensors stored as f16 on a device with `shader-f16`: four consecutive elements of a row are one vec4<f16>.
alias StorageVec4 = vec4<f16>;

fn unpack_vec4(x: StorageVec4) -> vec4<f32> {
  return vec4<f32>(x);
}

fn pack_vec4(x: vec4<f32>) -> StorageVec4 {
  return vec4<f16>(x);
}
