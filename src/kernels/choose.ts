import type { ShaderSpec } from '../device/pipelines.js';
import type { DeviceProfile } from '../device/profile.js';
import { type AttentionKernel, type AttentionTiling, attentionShader, chooseTiling } from './attention.js';
import { matrixAttentionShader, matrixStorage } from './matrix_attention.js';
import { chooseMatrixTiling, type MatrixTiling, matrixBlockM } from './matrix_config.js';
import { storageFormat } from './shader_text.js';
import type { DType, TensorWindow } from './tensor.js';

/** An attention kernel, ready to dispatch: one workgroup for each `blockM` rows of a head. */
export interface ChosenKernel {
  readonly shader: ShaderSpec;
  readonly blockM: number;
}

/** The tiling that a kernel gets: in the matrix tier its own, unless the tensors are f32 or no tiling of it fits. */
export function chooseKernelTiling(
  profile: DeviceProfile,
  kernel: AttentionKernel,
  headDim: number,
  dtype: DType,
): { readonly matrix: MatrixTiling } | { readonly matrix: undefined; readonly plain: AttentionTiling } {
  const { tilings, limits } = profile;
  const matrix =
    profile.matrix && dtype === 'f16'
      ? (tilings?.matrix?.[kernel] ?? chooseMatrixTiling({ ...profile.matrix, limits }, kernel, headDim))
      : undefined;
  return matrix ? { matrix } : { matrix: undefined, plain: tilings?.plain ?? chooseTiling(profile, headDim, dtype) };
}

/**
 * The attention kernel for a pattern on a device.
 *
 * @param windows the tensors as bound: rows that all start on 16 bytes are moved 16 bytes at a time in the matrix tier
 */
export function chooseKernel(
  profile: DeviceProfile,
  kernel: AttentionKernel,
  headDim: number,
  dtype: DType,
  windows: readonly TensorWindow[],
): ChosenKernel {
  const tiling = chooseKernelTiling(profile, kernel, headDim, dtype);
  if (tiling.matrix) {
    const shader = matrixAttentionShader(kernel, headDim, matrixStorage(windows), tiling.matrix);
    return { shader, blockM: matrixBlockM(tiling.matrix) };
  }
  const shader = attentionShader(kernel, headDim, storageFormat(profile, dtype), tiling.plain);
  return { shader, blockM: tiling.plain.blockM };
}
