import { limitExceeded, MinferenceError } from '../errors.js';

/** What a {@link BufferPool} holds and held, in bytes. */
export interface MemoryReport {
  /** Bytes of all buffers that the pool owns now, in use or free. */
  readonly allocatedBytes: number;
  /** Bytes in use now. */
  readonly usedBytes: number;
  /** Most bytes ever in use at once since the last {@link BufferPool.resetPeak}. */
  readonly peakBytes: number;
  /** Bytes per purpose at the time of the peak. */
  readonly peakByLabel: Readonly<Record<string, number>>;
}

const USAGE = 0x80 | 0x04 | 0x08; // STORAGE | COPY_SRC | COPY_DST

/**
 * Recycles workspace buffers and accounts for them. A buffer that was given back may be handed out
 * again at once: GPU work runs in the order in which it was recorded, so the next user's writes come
 * after the last user's reads.
 */
export class BufferPool {
  readonly #device: GPUDevice;
  readonly #free = new Map<number, GPUBuffer[]>();
  readonly #used = new Map<GPUBuffer, string>();
  #allocated = 0;
  #usedBytes = 0;
  #peak = 0;
  #peakByLabel: Record<string, number> = {};

  constructor(device: GPUDevice) {
    this.#device = device;
  }

  /** A storage buffer of at least `size` bytes (its content is arbitrary). */
  acquire(label: string, size: number): GPUBuffer {
    const limits = this.#device.limits;
    const bytes = bucketSize(Math.max(size, 16));
    const wanted = Math.max(16, Math.ceil(size / 16) * 16);
    if (wanted > limits.maxStorageBufferBindingSize) {
      throw limitExceeded(`workspace "${label}"`, wanted, 'maxStorageBufferBindingSize', limits.maxStorageBufferBindingSize);
    }
    if (wanted > limits.maxBufferSize) {
      throw limitExceeded(`workspace "${label}"`, wanted, 'maxBufferSize', limits.maxBufferSize);
    }
    const rounded = Math.min(bytes, limits.maxStorageBufferBindingSize, limits.maxBufferSize);
    const list = this.#free.get(rounded);
    let buffer = list?.pop();
    if (!buffer) {
      buffer = this.#device.createBuffer({ label: `minference ${label}`, size: rounded, usage: USAGE });
      this.#allocated += rounded;
    }
    this.#used.set(buffer, label);
    this.#usedBytes += rounded;
    if (this.#usedBytes > this.#peak) {
      this.#peak = this.#usedBytes;
      const byLabel: Record<string, number> = {};
      for (const [b, name] of this.#used) byLabel[name] = (byLabel[name] ?? 0) + b.size;
      this.#peakByLabel = byLabel;
    }
    return buffer;
  }

  /** Gives a buffer back for reuse by work that is recorded later. */
  release(buffer: GPUBuffer): void {
    if (!this.#used.delete(buffer)) throw new MinferenceError('gpu', 'a workspace buffer was released twice');
    this.#usedBytes -= buffer.size;
    const list = this.#free.get(buffer.size);
    if (list) list.push(buffer);
    else this.#free.set(buffer.size, [buffer]);
  }

  /** Bytes held, used, and used at most. */
  report(): MemoryReport {
    return {
      allocatedBytes: this.#allocated,
      usedBytes: this.#usedBytes,
      peakBytes: this.#peak,
      peakByLabel: { ...this.#peakByLabel },
    };
  }

  /** Starts a new peak measurement. */
  resetPeak(): void {
    this.#peak = this.#usedBytes;
    this.#peakByLabel = {};
  }

  /** Destroys the free buffers. */
  trim(): void {
    for (const [size, list] of this.#free) {
      for (const buffer of list) buffer.destroy();
      this.#allocated -= size * list.length;
    }
    this.#free.clear();
  }

  /** Destroys every buffer, in use or not. */
  destroy(): void {
    this.trim();
    for (const buffer of this.#used.keys()) buffer.destroy();
    this.#used.clear();
    this.#usedBytes = 0;
    this.#allocated = 0;
  }
}

/** Sizes are rounded up to a quarter of a power of two, so that reuse is likely and waste under 25%. */
function bucketSize(size: number): number {
  const step = 2 ** Math.max(4, Math.floor(Math.log2(size)) - 2);
  return Math.ceil(size / step) * step;
}
