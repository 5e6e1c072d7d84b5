import { invalidArgument, MinferenceError } from '../errors.js';

/** Every tier, least demanding first. */
export const TIERS = ['portable', 'f16'] as const;

/**
 * A family of kernels, by what it needs of the device:
 *
 * - `portable`: WebGPU core only. f32 arithmetic; f16 tensors are read through core pack/unpack builtins.
 * - `f16`: `shader-f16`, and `subgroups` when there. f16 staging, f32 arithmetic.
 */
export type Tier = (typeof TIERS)[number];

/** What the kernels need to know of a device. */
export interface DeviceProfile {
  readonly tier: Tier;
  readonly subgroups: boolean;
  /** Smallest subgroup size that the device may use (1 when unknown). */
  readonly subgroupMinSize: number;
  readonly limits: GPUSupportedLimits;
  /** A CPU pretending to be a GPU: work is cut into much smaller pieces. */
  readonly software: boolean;
  /** For people: vendor, architecture and description as far as the browser tells them. */
  readonly name: string;
}

/** Tiers that a device can run, least demanding first. */
export function availableTiers(device: GPUDevice): Tier[] {
  return TIERS.filter((tier) => tier === 'portable' || device.features.has('shader-f16'));
}

/** Reads a device's features and picks the best tier, or the one asked for. */
export function profileDevice(device: GPUDevice, tier?: Tier | 'auto'): DeviceProfile {
  const tiers = availableTiers(device);
  if (tier !== undefined && tier !== 'auto') {
    if (!TIERS.includes(tier)) throw invalidArgument('tier', tier, ['auto', ...TIERS].map((t) => `"${t}"`).join(', '));
    if (!tiers.includes(tier)) {
      throw new MinferenceError('unsupported', `tier "${tier}" needs a device with the feature shader-f16`, {
        argument: 'tier',
        value: tier,
        allowed: tiers.map((t) => `"${t}"`).join(', '),
      });
    }
  }
  const info: Partial<GPUAdapterInfo> = device.adapterInfo ?? {};
  const words = [info.vendor, info.architecture, info.description].filter((w): w is string => !!w);
  const name = [...new Set(words)].join(' ') || 'unknown adapter';
  return {
    tier: tier === undefined || tier === 'auto' ? (tiers.at(-1) ?? 'portable') : tier,
    subgroups: device.features.has('subgroups' as GPUFeatureName),
    subgroupMinSize: info.subgroupMinSize || 1,
    limits: device.limits,
    software: info.isFallbackAdapter === true || /swiftshader|llvmpipe|lavapipe|software|warp/i.test(name),
    name,
  };
}
