import type { DeviceProfile } from '../../src/device/profile.js';
import { deriveSeed, Random } from '../../src/reference/random.js';

/** The device that a suite runs on. The same suite runs on Dawn, in Chromium and in Deno. */
export interface SuiteContext {
  readonly device: GPUDevice;
  readonly profile: DeviceProfile;
  /** For messages: runtime, adapter and tier. */
  readonly name: string;
  /** All random input of the run derives from it: a run with the same seed is the same run. */
  readonly seed: number;
}

/** One test, as plain data. */
export interface SuiteCase {
  readonly name: string;
  readonly run: (ctx: SuiteContext) => Promise<void>;
  /** Skipped, by name, on a device or tier without it. */
  readonly needs?: 'f16';
  /** Runs where software rendering is fastest (lavapipe through Dawn, and Deno): what it covers does not depend on the adapter. */
  readonly once?: boolean;
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
