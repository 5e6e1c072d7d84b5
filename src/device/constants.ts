import { Recent } from './recent.js';
import type { BufferRange } from './recorder.js';

/** Bytes of a page, and of the largest constant that goes into one. */
const PAGE_BYTES = 8192;
const LARGEST = 4096;
/** What offsets of uniforms and storage must be multiples of, on every device. */
const ALIGNMENT = 256;
/** Constants that are kept for each device. */
const KEPT = 1024;

const USAGE = 0x40 | 0x80; // UNIFORM | STORAGE

/** The constants of a device that are in GPU memory, by content. The garbage collector frees their buffers when nothing uses them. */
const shared = new WeakMap<GPUDevice, Recent<BufferRange>>();

function sharedBy(device: GPUDevice): Recent<BufferRange> {
  const known = shared.get(device);
  if (known) return known;
  const made = new Recent<BufferRange>(KEPT);
  shared.set(device, made);
  return made;
}

/** Forgets the constants of a device: some may lie in a buffer for which there was no memory. */
export function forgetConstants(device: GPUDevice): void {
  shared.delete(device);
}

/** A buffer that constants are written into one behind the other, until it is sealed for use. */
export class ConstantPage {
  readonly #device: GPUDevice;
  readonly #buffer: GPUBuffer;
  #words: Uint32Array | undefined;
  #used = 0;
  readonly #ranges = new Map<string, BufferRange>();

  constructor(device: GPUDevice, bytes = PAGE_BYTES) {
    this.#device = device;
    const size = Math.ceil(bytes / 16) * 16;
    this.#buffer = device.createBuffer({ label: 'minference constants', size, usage: USAGE, mappedAtCreation: true });
    this.#words = new Uint32Array(this.#buffer.getMappedRange());
  }

  /** Where a constant that this page holds already lies. */
  get(key: string): BufferRange | undefined {
    return this.#words && this.#ranges.get(key);
  }

  /** Writes a constant; `undefined` when the page has no room for it or is sealed. Without a key nobody else gets to know it. */
  add(data: Uint32Array, key?: string): BufferRange | undefined {
    const size = Math.max(16, Math.ceil(data.byteLength / 16) * 16);
    if (!this.#words || this.#used + size > this.#buffer.size) return undefined;
    const range = { buffer: this.#buffer, offset: this.#used, size };
    this.#words.set(data, this.#used / 4);
    this.#used = Math.ceil((this.#used + size) / ALIGNMENT) * ALIGNMENT;
    if (key !== undefined) this.#ranges.set(key, range);
    return range;
  }

  /**
   * Hands the page to the GPU. It must be sealed before anything that reads it is submitted; only then do others get to know its
   * constants.
   */
  seal(): void {
    if (!this.#words) return;
    this.#words = undefined;
    this.#buffer.unmap();
    const known = sharedBy(this.#device);
    for (const [key, range] of this.#ranges) known.set(key, range);
  }
}

/**
 * Constants of the plans of one recorder. Most return with every layer and chunk, and are shared by all that ask for the same; the
 * others of a submission share a buffer: to make one is what recording costs most, 0.1 ms (Dawn on an H100), and the GPU has to fill
 * each before it begins.
 */
export class Constants {
  readonly #device: GPUDevice;
  #page: ConstantPage | undefined;

  constructor(device: GPUDevice) {
    this.#device = device;
  }

  /** The page that constants are being written to, if any. It must be sealed before they are used. */
  get open(): ConstantPage | undefined {
    return this.#page;
  }

  /** Where this content lies in GPU memory once {@link Constants.open} is sealed. */
  get(data: Uint32Array): BufferRange {
    if (data.byteLength > LARGEST) {
      const page = new ConstantPage(this.#device, data.byteLength);
      const range = page.add(data) as BufferRange;
      page.seal();
      return range;
    }
    const key = data.join();
    const known = sharedBy(this.#device).get(key) ?? this.#page?.get(key) ?? this.#page?.add(data, key);
    if (known) return known;
    this.#page?.seal();
    this.#page = new ConstantPage(this.#device);
    return this.#page.add(data, key) as BufferRange;
  }
}
