/** One f16 multiply, f32 accumulate of the hardware: `[m, k] x [k, n] + [m, n]`. */
export interface MatrixShape {
  readonly m: 8 | 16;
  readonly n: 8 | 16;
  readonly k: 8 | 16;
}

/**
 * What orders the accesses of one subgroup's invocations to the workgroup memory that only they use.
 *
 * - `workgroup`: `workgroupBarrier`, WGSL's only means.
 * - `subgroup`: nothing. WGSL has no subgroup barrier; hardware that runs a subgroup's memory instructions
 *   in order needs none, but no specification promises it, so it must be checked there.
 */
export type MatrixSync = 'subgroup' | 'workgroup';

/** The feature that the matrix tier needs. */
export const MATRIX_FEATURE = 'chromium-experimental-subgroup-matrix' as GPUFeatureName;

/** Invocations of a subgroup that the matrix kernels are written for. */
export const SUBGROUP_SIZE = 32;

/** The matrix shapes that the kernels can use, best first. */
export const MATRIX_SHAPES: readonly MatrixShape[] = [
  { m: 16, n: 8, k: 16 },
  { m: 16, n: 16, k: 16 },
  { m: 8, n: 8, k: 8 },
  { m: 16, n: 8, k: 8 },
];

/** One entry of `GPUAdapterInfo.subgroupMatrixConfigs` (Dawn and Chromium). */
export interface SubgroupMatrixConfig {
  readonly componentType: string;
  readonly resultComponentType: string;
  readonly M: number;
  readonly N: number;
  readonly K: number;
}

interface MatrixAdapterInfo extends GPUAdapterInfo {
  readonly subgroupMatrixConfigs?: Iterable<SubgroupMatrixConfig>;
}

// GPUDevice.adapterInfo has an empty list where the adapter's own info has the shapes, so they are kept at opening.
const known = new WeakMap<GPUDevice, readonly MatrixShape[]>();

/** Keeps what an adapter tells of its matrices for the device that it gave. */
export function rememberMatrixShapes(device: GPUDevice, info: GPUAdapterInfo): void {
  known.set(device, usableShapes(info));
}

/**
 * The matrix shapes that the kernels can use on a device, best first; empty without `shader-f16` and
 * `chromium-experimental-subgroup-matrix`.
 */
export function matrixShapes(device: GPUDevice, adapterInfo?: GPUAdapterInfo): readonly MatrixShape[] {
  const needed = [MATRIX_FEATURE, 'shader-f16', 'subgroups'] as GPUFeatureName[];
  if (!needed.every((feature) => device.features.has(feature))) return [];
  return adapterInfo ? usableShapes(adapterInfo) : (known.get(device) ?? []);
}

/** `subgroup` on the hardware where the kernels were checked without barriers. */
export function matrixSync(info: Partial<GPUAdapterInfo>): MatrixSync {
  return info.vendor === 'nvidia' ? 'subgroup' : 'workgroup';
}

/** Apple's subgroups are always of 32, though Dawn reports a range. */
function usableShapes(info: MatrixAdapterInfo): readonly MatrixShape[] {
  const fixed = info.subgroupMinSize === SUBGROUP_SIZE && info.subgroupMaxSize === SUBGROUP_SIZE;
  return fixed || info.vendor === 'apple' ? shapesOf(info.subgroupMatrixConfigs ?? []) : [];
}

/** Those of the kernels' shapes that a list of configurations has with f16 inputs and f32 results, best first. */
export function shapesOf(configs: Iterable<SubgroupMatrixConfig>): readonly MatrixShape[] {
  const listed = [...configs].filter((c) => c.componentType === 'f16' && c.resultComponentType === 'f32');
  return MATRIX_SHAPES.filter(({ m, n, k }) => listed.some((c) => c.M === m && c.N === n && c.K === k));
}
