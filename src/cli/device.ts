import { type Command, InvalidArgumentError, Option } from 'commander';
import { openDevice } from '../device/open.js';
import { pollGently } from '../device/poll.js';
import { TIERS, type Tier } from '../device/profile.js';
import { MinferenceError } from '../errors.js';
import type { CliContext } from './app.js';

/** Options of every command that opens a device. */
export interface DeviceOptions {
  readonly tier: Tier | 'auto';
  readonly adapter?: string;
}

/** Adds `--tier` and `--adapter`. */
export function addDeviceOptions(command: Command): Command {
  return command
    .addOption(new Option('--tier <tier>', 'kernel family').choices(['auto', ...TIERS]).default('auto'))
    .option('--adapter <name>', "part of the GPU adapter's name (Node only)");
}

/**
 * Opens a device for a command and closes it afterwards: the runtime's own WebGPU where there is one (Deno),
 * else Dawn. GPU errors that nobody asked about become notes.
 */
export async function withDevice<T>(
  context: CliContext,
  options: DeviceOptions,
  body: (device: GPUDevice) => Promise<T>,
): Promise<T> {
  const device = await open(options).catch((cause: unknown) => {
    if (cause instanceof MinferenceError) throw cause;
    throw new MinferenceError(
      'unsupported',
      `no GPU device could be opened: ${cause instanceof Error ? cause.message : String(cause)}`,
      { cause },
    );
  });
  device.addEventListener('uncapturederror', (event) =>
    context.note(`GPU error: ${(event as GPUUncapturedErrorEvent).error.message}`),
  );
  try {
    return await body(device);
  } finally {
    device.destroy();
  }
}

async function open(options: DeviceOptions): Promise<GPUDevice> {
  if ((globalThis.navigator as Navigator | undefined)?.gpu) {
    if (options.adapter !== undefined) {
      throw new MinferenceError('unsupported', '--adapter works in Node only: this runtime chooses the adapter itself', {
        argument: '--adapter',
        value: options.adapter,
      });
    }
    return openDevice();
  }
  // Loaded here so that runtimes with their own WebGPU never load Dawn.
  const { openNodeDevice } = await import('../device/node.js');
  pollGently();
  return openNodeDevice(options.adapter === undefined ? {} : { adapter: options.adapter });
}

/** Parser of an integer option. */
export function integer(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || value < min || value > max) {
      throw new InvalidArgumentError(`Allowed: an integer from ${min} to ${max}.`);
    }
    return value;
  };
}

/** Parser of an option that is a number above 0. */
export function positiveNumber(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isFinite(value) || value <= 0) throw new InvalidArgumentError('Allowed: a number above 0.');
  return value;
}
