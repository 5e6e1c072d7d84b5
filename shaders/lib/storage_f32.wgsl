// Tensors stored as f32: four consecutive elements of a row are one vec4<f32>.
alias StorageVec4 = vec4<f32>;

fn unpack_vec4(x: StorageVec4) -> vec4<f32> {
  return x;
}

fn pack_vec4(x: vec4<f32>) -> StorageVec4 {
  return x;
}
