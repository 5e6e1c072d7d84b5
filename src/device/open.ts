import { MinferenceError } from '../errors.js';
import { rememberMatrixShapes } from './subgroup_matrix.js';

/** Options of {@link openDevice}. */
export interface OpenDeviceOptions {
  /** The `GPU` to ask; `navigator.gpu` unless given. */
  readonly gpu?: GPU;
  readonly powerPreference?: GPUPowerPreference;
  /** Ask for WebGPU's software adapter. */
  readonly forceFallbackAdapter?: boolean;
  /**
   * Extra features to enable when the adapter has them, beside those that the kernels use
   * (`shader-f16`, `subgroups`, `timestamp-query`, `chromium-experimental-subgroup-matrix`).
   */
  readonly optionalFeatures?: readonly string[];
}

// Where shaders run without WGSL's checks of loads and stores, and devices from there.
const unchecked = new WeakSet<GPU | GPUDevice>();

/** Notes that devices of a `GPU` have Dawn's toggle `disable_robustness`. */
export function rememberUnchecked(gpu: GPU): void {
  unchecked.add(gpu);
}

/** Whether loads past the end of a buffer are safe on a device, as WGSL promises. */
export function isChecked(device: GPUDevice): boolean {
  return !unchecked.has(device);
}

const USEFUL_FEATURES = ['shader-f16', 'subgroups', 'timestamp-query', 'chromium-experimental-subgroup-matrix'];

/**
 * Opens a device with every feature and the largest limits that the kernels can use, in a browser or in
 * Deno. In Node use `openNodeDevice` of `minference-webgpu/node`, which brings Dawn along.
 *
 * @throws {@link MinferenceError} `unsupported` when there is no WebGPU or no adapter.
 */
export async function openDevice(options: OpenDeviceOptions = {}): Promise<GPUDevice> {
  const gpu = options.gpu ?? (globalThis.navigator as Navigator | undefined)?.gpu;
  if (!gpu) {
    throw new MinferenceError(
      'unsupported',
      'this runtime has no navigator.gpu: use a browser with WebGPU, Deno, or openNodeDevice() of minference-webgpu/node',
    );
  }
  const adapter = await gpu.requestAdapter({
    powerPreference: options.powerPreference ?? 'high-performance',
    ...(options.forceFallbackAdapter === undefined ? {} : { forceFallbackAdapter: options.forceFallbackAdapter }),
  });
  if (!adapter) {
    throw new MinferenceError('unsupported', 'WebGPU found no adapter: there is no GPU driver here, or it is blocked');
  }
  const wanted = [...USEFUL_FEATURES, ...(options.optionalFeatures ?? [])];
  const requiredFeatures = wanted.filter((f) => adapter.features.has(f as GPUFeatureName)) as GPUFeatureName[];
  const limits = adapter.limits;
  const device = await adapter.requestDevice({
    label: 'minference',
    requiredFeatures,
    requiredLimits: {
      maxBufferSize: limits.maxBufferSize,
      maxStorageBufferBindingSize: limits.maxStorageBufferBindingSize,
      maxComputeWorkgroupStorageSize: limits.maxComputeWorkgroupStorageSize,
      maxComputeInvocationsPerWorkgroup: limits.maxComputeInvocationsPerWorkgroup,
      maxComputeWorkgroupSizeX: limits.maxComputeWorkgroupSizeX,
      maxComputeWorkgroupSizeY: limits.maxComputeWorkgroupSizeY,
      maxStorageBuffersPerShaderStage: limits.maxStorageBuffersPerShaderStage,
    },
  });
  rememberMatrixShapes(device, adapter.info);
  if (unchecked.has(gpu)) unchecked.add(device);
  return device;
}
