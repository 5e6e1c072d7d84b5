import type { ShaderSpec } from '../device/pipelines.js';
import { type DeviceProfile, workgroupsToFill } from '../device/profile.js';
import { type AttentionKernel, type AttentionTiling, attentionShader, chooseTiling } from './attention.js';
import { matrixAttentionShader, matrixStorage } from './matrix_attention.js';
import { chooseMatrixTiling, type MatrixKernel, type MatrixTiling, matrixBlockM, matrixWorkgroupBytes } from './matrix_config.js';
import { storageFormat } from './shader_text.js';
import type { DType, TensorWindow } from './tensor.js';

/** An attention kernel, ready to dispatch: one workgroup for each `blockM` rows of a head. */
export interface ChosenKernel {
  readonly shader: ShaderSpec;
  readonly blockM: number;
  /** Whether a row's tiles may be dealt out among several workgroups. */
  readonly splits: boolean;
  /** Workgroups that fill the device. */
  readonly fills: number;
  /** Keys of a tile, if the kernel reads its index in tiles (shaders/index/slash_tiles.wgsl). */
  readonly slashTile?: number;
}

/** Tilings chosen before: a layer's plan asks for several, and reading a device's limits is slow. */
const chosenBefore = new WeakMap<DeviceProfile, Map<string, MatrixTiling | AttentionTiling | undefined>>();

function remembered<T extends MatrixTiling | AttentionTiling | undefined>(
  profile: DeviceProfile,
  key: string,
  choose: () => T,
): T {
  const known = chosenBefore.get(profile) ?? new Map<string, MatrixTiling | AttentionTiling | undefined>();
  chosenBefore.set(profile, known);
  if (!known.has(key)) known.set(key, choose());
  return known.get(key) as T;
}

/** The matrix tier's tiling for a kernel, if there is one. */
function matrixTiling(profile: DeviceProfile, kernel: MatrixKernel, headDim: number, dtype: DType): MatrixTiling | undefined {
  const { tilings, limits, matrix } = profile;
  if (!matrix || dtype !== 'f16') return undefined;
  const choose = () => tilings?.matrix?.[kernel] ?? chooseMatrixTiling({ ...matrix, limits }, kernel, headDim);
  return remembered(profile, `${kernel} ${headDim}`, choose);
}

/** A kernel of the matrix tier. */
function matrixKernel(
  profile: DeviceProfile,
  kernel: MatrixKernel,
  headDim: number,
  windows: readonly TensorWindow[],
  tiling: MatrixTiling,
): ChosenKernel {
  const shader = matrixAttentionShader(kernel, headDim, matrixStorage(windows), tiling);
  return {
    shader,
    blockM: matrixBlockM(tiling),
    splits: tiling.split === true,
    fills: workgroupsToFill(profile, matrixWorkgroupBytes(kernel, headDim, tiling)),
    ...(kernel === 'vertical_slash' ? { slashTile: tiling.keys } : {}),
  };
}

/** The tiling that a kernel gets: in the matrix tier its own, unless the tensors are f32 or no tiling of it fits. */
export function chooseKernelTiling(
  profile: DeviceProfile,
  kernel: AttentionKernel,
  headDim: number,
  dtype: DType,
): { readonly matrix: MatrixTiling } | { readonly matrix: undefined; readonly plain: AttentionTiling } {
  const matrix = matrixTiling(profile, kernel, headDim, dtype);
  if (matrix) return { matrix };
  const plain = remembered(profile, `plain ${headDim}`, () => profile.tilings?.plain ?? chooseTiling(profile, headDim));
  return { matrix: undefined, plain };
}

/**
 * The attention kernel for a pattern on a device.
 *
 * @param windows the tensors as bound: rows that all start on 16 bytes are moved 16 bytes at a time in the matrix tier
 * @param few whether the kernel is for few rows: in the matrix tier its keys may be split then, as those of other tiers always may. Of
 *   dense attention, the query heads whose rows are to take turns in a workgroup; their only entry is that of the first
 */
export function chooseKernel(
  profile: DeviceProfile,
  kernel: AttentionKernel,
  headDim: number,
  dtype: DType,
  windows: readonly TensorWindow[],
  few?: { readonly group: number },
): ChosenKernel {
  const tiling = chooseKernelTiling(profile, kernel, headDim, dtype);
  const group = kernel === 'dense' ? (few?.group ?? 1) : 1;
  if (tiling.matrix) {
    const splits = few !== undefined && (kernel === 'dense' || kernel === 'a_shape');
    return matrixKernel(profile, kernel, headDim, windows, splits ? { ...tiling.matrix, split: true, group } : tiling.matrix);
  }
  const shader = attentionShader(kernel, headDim, storageFormat(profile, dtype), { ...tiling.plain, group });
  return { shader, blockM: tiling.plain.blockM, splits: true, fills: workgroupsToFill(profile) };
}

/**
 * The kernel for the bands of vertical-slash heads (shaders/slash_band.wgsl), where the device has one whose workgroups share keys
 * among more rows than the kernel for the rest does. Arguments: as for {@link chooseKernel}.
 */
export function chooseBandKernel(
  profile: DeviceProfile,
  headDim: number,
  dtype: DType,
  windows: readonly TensorWindow[],
): ChosenKernel | undefined {
  const rest = matrixTiling(profile, 'vertical_slash', headDim, dtype);
  const band = matrixTiling(profile, 'slash_band', headDim, dtype);
  if (!rest || !band || matrixBlockM(band) <= matrixBlockM(rest)) return undefined;
  return matrixKernel(profile, 'slash_band', headDim, windows, band);
}
