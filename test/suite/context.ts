import type { DeviceProfile } from '../../src/device/profile.js';
import type { DType } from '../../src/kernels/tensor.js';
import { deriveSeed, Random } from '../../src/reference/random.js';

/** The device that a suite runs on. The same suite runs on Dawn, in Chromium and in Deno. */
export interface SuiteContext {
  readonly device: GPUDevice;
  readonly profile: DeviceProfile;
  /** For messages: runtime, adapter and tier. */
  readonly name: string;
  /** All random input of the run derives from it: a run with the same seed is the same run. */
  readonly seed: number;
  /**
   * Not the reference run, which is Dawn in Node and tries every size and shape: a choice of them shows that the same
   * kernels and calls work on another runtime or adapter. Most of it is in two head sizes, see {@link headDimOf}.
   */
  readonly brief?: boolean;
}

/** One test, as plain data. */
export interface SuiteCase {
  readonly name: string;
  readonly run: (ctx: SuiteContext) => Promise<void>;
  /** Skipped, by name, on a device or tier without it. */
  readonly needs?: 'f16';
  /** Part of the reference run only: what it adds to other cases does not depend on runtime and adapter. */
  readonly once?: boolean;
}

/** Must the case be skipped, by name? */
export function isSkipped(test: SuiteCase, ctx: SuiteContext): boolean {
  return (test.needs === 'f16' && ctx.profile.tier === 'portable') || (test.once === true && ctx.brief === true);
}

/**
 * The head size of a case that could take any. Compiling dominates on software adapters, so brief runs have one for each
 * element type, those of `minference verify --quick`.
 */
export function headDimOf(ctx: SuiteContext, dtype: DType, any: number): number {
  if (!ctx.brief) return any;
  return dtype === 'f32' ? 64 : 128;
}

export function assert(condition: boolean, message: string): asserts condition {
  if (!condition) throw new Error(message);
}

/** Random numbers of one case, which depend on the run's seed and on the case's name only. */
export function randomOf(ctx: SuiteContext, name: string): Random {
  return new Random(deriveSeed(ctx.seed, name));
}

/**
 * Runs one case; the error of a failed one says where it ran and how to run it again, and names GPU errors
 * that nobody caught. Fails when the device was lost.
 */
export async function runCase(test: SuiteCase, ctx: SuiteContext): Promise<void> {
  const gpuErrors: string[] = [];
  const note = (event: GPUUncapturedErrorEvent): void => {
    gpuErrors.push(event.error.message);
  };
  ctx.device.addEventListener('uncapturederror', note as EventListener);
  const lost = ctx.device.lost.then((info) => {
    throw new Error(`the device was lost (${info.reason}): ${info.message}`);
  });
  try {
    await Promise.race([test.run(ctx), lost]);
    if (gpuErrors.length > 0) throw new Error('the GPU reported errors');
  } catch (cause) {
    const text = cause instanceof Error ? cause.message : String(cause);
    const gpu = gpuErrors.map((e) => `\n  GPU error: ${e}`).join('');
    throw new Error(`${text}${gpu}\n  on ${ctx.name}; again with SEED=${ctx.seed}`, { cause });
  } finally {
    ctx.device.removeEventListener('uncapturederror', note as EventListener);
  }
}
