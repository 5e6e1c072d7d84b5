// Eight f32 as eight f16, the first in the lowest bits.
fn pack_halves(a: vec4<f32>, b: vec4<f32>) -> vec4<u32> {
  return vec4<u32>(
    bitcast<u32>(vec2<f16>(a.xy)),
    bitcast<u32>(vec2<f16>(a.zw)),
    bitcast<u32>(vec2<f16>(b.xy)),
    bitcast<u32>(vec2<f16>(b.zw)));
}
