import type { DeviceProfile } from '../device/profile.js';
import { limitExceeded } from '../errors.js';
import { BYTES, type DType } from '../kernels/tensor.js';
import type { ModelConfig } from './types.js';

/** Keys and values of neighbouring key/value heads, in buffers of their own: `[kvCount, capacity, headDim]`. */
export interface HeadGroup {
  readonly kvStart: number;
  readonly kvCount: number;
  readonly k: GPUBuffer;
  readonly v: GPUBuffer;
}

const USAGE = 0x80 | 0x04 | 0x08; // STORAGE | COPY_SRC | COPY_DST

/** Keys and values of all layers, for `capacity` positions. Heads share a buffer as far as the device's limits allow. */
export class KvCache {
  readonly capacity: number;
  readonly bytes: number;
  /** `[layer]` */
  readonly layers: readonly (readonly HeadGroup[])[];

  /** @throws {@link MinferenceError} `limit` when a single head does not fit a buffer. */
  constructor(device: GPUDevice, profile: DeviceProfile, config: ModelConfig, capacity: number, dtype: DType) {
    const { layers, numKvHeads, headDim } = config;
    const head = capacity * headDim * BYTES[dtype];
    // Attention binds windows that start on an alignment, hence the room.
    const { maxStorageBufferBindingSize: binding, maxBufferSize: size } = profile.limits;
    const limit = Math.min(binding - 512, size);
    if (head > limit) {
      const name = binding - 512 < size ? 'maxStorageBufferBindingSize' : 'maxBufferSize';
      throw limitExceeded(`the cache of one head for contextLength ${capacity}`, head, name, Math.min(binding, size));
    }
    // As few groups as there can be, of about the same size.
    const perGroup = Math.ceil(numKvHeads / Math.ceil(numKvHeads / Math.floor(limit / head)));
    this.capacity = capacity;
    this.bytes = 2 * layers * numKvHeads * head;
    this.layers = Array.from({ length: layers }, (_, layer) =>
      Array.from({ length: Math.ceil(numKvHeads / perGroup) }, (_, g): HeadGroup => {
        const kvStart = g * perGroup;
        const kvCount = Math.min(perGroup, numKvHeads - kvStart);
        const buffer = (name: string): GPUBuffer =>
          device.createBuffer({ label: `minference ${name} cache ${layer}`, size: kvCount * head, usage: USAGE });
        return { kvStart, kvCount, k: buffer('k'), v: buffer('v') };
      }),
    );
  }

  /** Frees the buffers. */
  destroy(): void {
    for (const { k, v } of this.layers.flat()) {
      k.destroy();
      v.destroy();
    }
  }
}
