import { create, globals } from 'webgpu';
import { MinferenceError } from '../errors.js';
import { type OpenDeviceOptions, openDevice, rememberUnchecked } from './open.js';

/** Options of {@link openNodeDevice}. */
export interface OpenNodeDeviceOptions extends Omit<OpenDeviceOptions, 'gpu'> {
  /** Dawn's backend: `vulkan`, `metal`, `d3d12`, `opengl` or `null` (validates, computes nothing). */
  readonly backend?: string;
  /** Part of the name of the adapter to use. */
  readonly adapter?: string;
  /**
   * More Dawn toggles to enable. `disable_robustness` leaves out the checks of loads and stores that WGSL promises: faster by 1 to
   * 3% on an H100 (bench/NOTES.md), for servers that run no shaders but their own.
   */
  readonly toggles?: readonly string[];
}

// f16 on NVIDIA needs the second toggle, subgroup matrices the first; timestamps are rounded without the third's removal.
const ENABLED = ['allow_unsafe_apis', 'vulkan_enable_f16_on_nvidia'];
const DISABLED = ['timestamp_quantization'];

// Dawn crashes when the object that create() returned is collected while devices live, so all are kept.
const instances: GPU[] = [];

/** A `GPU` of Dawn in Node, as `navigator.gpu` is one in browsers. */
export function createNodeGpu(options: OpenNodeDeviceOptions = {}): GPU {
  Object.assign(globalThis, globals);
  const flags = [
    `enable-dawn-features=${[...ENABLED, ...(options.toggles ?? [])].join(',')}`,
    `disable-dawn-features=${DISABLED.join(',')}`,
  ];
  if (options.backend) flags.push(`backend=${options.backend}`);
  if (options.adapter) flags.push(`adapter=${options.adapter}`);
  try {
    const gpu = create(flags);
    instances.push(gpu);
    if (options.toggles?.includes('disable_robustness')) rememberUnchecked(gpu);
    return gpu;
  } catch (cause) {
    throw new MinferenceError('unsupported', `Dawn could not start: ${String(cause)}`, { cause });
  }
}

/**
 * Opens a device on Dawn, headless, with every feature and the largest limits that the kernels can use.
 *
 * @throws {@link MinferenceError} `unsupported` when Dawn finds no adapter.
 */
export function openNodeDevice(options: OpenNodeDeviceOptions = {}): Promise<GPUDevice> {
  return openDevice({ ...options, gpu: createNodeGpu(options) });
}
