import { invalidArgument, MinferenceError } from '../errors.js';
import type { AttentionTiling } from '../kernels/attention.js';
import type { MatrixKernel, MatrixTiling } from '../kernels/matrix_config.js';
import { isChecked } from './open.js';
import { type MatrixShape, type MatrixSync, matrixShapes, matrixSync } from './subgroup_matrix.js';

/** Every tier, least demanding first. */
export const TIERS = ['portable', 'f16', 'matrix'] as const;

/**
 * A family of kernels, by what it needs of the device:
 *
 * - `portable`: WebGPU core only. f32 arithmetic; f16 tensors are read through core pack/unpack builtins.
 * - `f16`: `shader-f16`, and `subgroups` when there. f16 staging, f32 arithmetic.
 * - `matrix`: `chromium-experimental-subgroup-matrix`, on an adapter that lists a shape with f16 inputs and f32 results
 *   and has subgroups of 32. f16 tensors run on matrix units; f32 tensors and index building as in the f16 tier.
 */
export type Tier = (typeof TIERS)[number];

/** Tilings to use whatever the device: what benchmarks compare. */
export interface TilingOverrides {
  /** Of the portable and f16 tiers' kernels. */
  readonly plain?: AttentionTiling;
  /** Of the matrix tier's kernels. */
  readonly matrix?: Partial<Readonly<Record<MatrixKernel, MatrixTiling>>>;
  /** Workgroups that fill the device ({@link workgroupsToFill}). */
  readonly workgroups?: number;
}

/** What the kernels need to know of a device. */
export interface DeviceProfile {
  readonly tier: Tier;
  readonly subgroups: boolean;
  /** Smallest subgroup size that the device may use (1 when unknown). */
  readonly subgroupMinSize: number;
  readonly limits: GPUSupportedLimits;
  /** What the matrix tier has to work with; only in that tier. */
  readonly matrix?: { readonly shapes: readonly MatrixShape[]; readonly sync: MatrixSync };
  readonly tilings?: TilingOverrides;
  /** Whether loads past the end of a buffer are safe, as WGSL promises: not with Dawn's toggle `disable_robustness`. */
  readonly checked: boolean;
  /** A CPU pretending to be a GPU: work is cut into much smaller pieces. */
  readonly software: boolean;
  /** For people: vendor, architecture and description as far as the browser tells them. */
  readonly name: string;
}

/** Workgroup memory that the workgroups of one of NVIDIA's multiprocessors share (bench/NOTES.md). */
const MULTIPROCESSOR_BYTES = 48 * 1024;
/** Fill any GPU: two for each of an H100's 132 multiprocessors. */
const GPU_WORKGROUPS = 264;
/** Any fill a CPU that pretends to be a GPU. */
const SOFTWARE_WORKGROUPS = 1;

/**
 * Workgroups of a dispatch that fill the device. Dispatches wait for each other, so that a smaller one takes no less time, and leaves
 * multiprocessors idle: so attention then splits keys, and products split the columns of both factors.
 *
 * @param workgroupBytes workgroup memory of each: half as many do where one has a multiprocessor to itself
 */
export function workgroupsToFill({ tilings, software }: Pick<DeviceProfile, 'tilings' | 'software'>, workgroupBytes = 0): number {
  const count = tilings?.workgroups ?? (software ? SOFTWARE_WORKGROUPS : GPU_WORKGROUPS);
  return 2 * workgroupBytes > MULTIPROCESSOR_BYTES ? count / 2 : count;
}

const NEEDS: Readonly<Record<Tier, string>> = {
  portable: 'any device',
  f16: 'a device with the feature shader-f16',
  matrix:
    'a device with the features shader-f16, subgroups and chromium-experimental-subgroup-matrix, from openDevice() or with the option adapterInfo',
};

/**
 * Tiers that a device can run, least demanding first.
 *
 * @param adapterInfo of the adapter that the device came from: devices do not tell their matrix shapes themselves. Not
 *   needed for devices of `openDevice()`.
 */
export function availableTiers(device: GPUDevice, adapterInfo?: GPUAdapterInfo): Tier[] {
  const able: Readonly<Record<Tier, boolean>> = {
    portable: true,
    f16: device.features.has('shader-f16'),
    matrix: matrixShapes(device, adapterInfo).length > 0,
  };
  return TIERS.filter((tier) => able[tier]);
}

/**
 * Reads a device's features and picks the best tier, or the one asked for.
 *
 * @param adapterInfo as for {@link availableTiers}
 * @throws {@link MinferenceError} `invalid-argument` for an unknown tier, `unsupported` for one that the device cannot run.
 */
export function profileDevice(device: GPUDevice, tier?: Tier | 'auto', adapterInfo?: GPUAdapterInfo): DeviceProfile {
  const tiers = availableTiers(device, adapterInfo);
  if (tier !== undefined && tier !== 'auto') {
    if (!TIERS.includes(tier)) throw invalidArgument('tier', tier, ['auto', ...TIERS].map((t) => `"${t}"`).join(', '));
    if (!tiers.includes(tier)) {
      throw new MinferenceError('unsupported', `tier "${tier}" needs ${NEEDS[tier]}`, {
        argument: 'tier',
        value: tier,
        allowed: tiers.map((t) => `"${t}"`).join(', '),
      });
    }
  }
  const info: Partial<GPUAdapterInfo> = device.adapterInfo ?? {};
  const words = [info.vendor, info.architecture, info.description].filter((w): w is string => !!w);
  const name = [...new Set(words)].join(' ') || 'unknown adapter';
  const chosen = tier === undefined || tier === 'auto' ? (tiers.at(-1) ?? 'portable') : tier;
  return {
    tier: chosen,
    ...(chosen === 'matrix' ? { matrix: { shapes: matrixShapes(device, adapterInfo), sync: matrixSync(info) } } : {}),
    subgroups: device.features.has('subgroups' as GPUFeatureName),
    subgroupMinSize: info.subgroupMinSize || 1,
    limits: device.limits,
    checked: isChecked(device),
    software: info.isFallbackAdapter === true || /swiftshader|llvmpipe|lavapipe|software|warp/i.test(name),
    name,
  };
}
