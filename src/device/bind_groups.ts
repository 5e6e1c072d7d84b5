import { Recent } from './recent.js';
import type { Bindable } from './recorder.js';

/** Bind groups that are kept. */
const KEPT = 2048;

// Numbers instead of objects, so that a list of bindings has a key.
const numbers = new WeakMap<object, number>();
let last = 0;

function numberOf(object: object): number {
  const known = numbers.get(object);
  if (known !== undefined) return known;
  numbers.set(object, ++last);
  return last;
}

/** The bind group's entries for bindings in order. */
export function bindGroupEntries(bindings: readonly Bindable[]): GPUBindGroupEntry[] {
  return bindings.map((b, binding) => ({ binding, resource: 'buffer' in b ? b : { buffer: b } }));
}

/**
 * Bind groups that were made before. A layer binds the same buffers in every chunk and every prompt, and each object costs twice: once
 * when it is made, and once when the garbage collector frees it, which stops the program for long enough that a GPU runs out of work.
 */
export class BindGroups {
  readonly #device: GPUDevice;
  /** By layout and bindings. */
  readonly #made = new Recent<GPUBindGroup>(KEPT);

  constructor(device: GPUDevice) {
    this.#device = device;
  }

  /** A bind group with these bindings; `label` is that of its first user. */
  get(label: string, layout: GPUBindGroupLayout, bindings: readonly Bindable[]): GPUBindGroup {
    let key = `${numberOf(layout)}`;
    for (const b of bindings) {
      key += 'buffer' in b ? ` ${numberOf(b.buffer)} ${b.offset} ${b.size}` : ` ${numberOf(b)}`;
    }
    const known = this.#made.get(key);
    if (known) return known;
    const group = this.#device.createBindGroup({ label, layout, entries: bindGroupEntries(bindings) });
    this.#made.set(key, group);
    return group;
  }

  /** Forgets all: what they bind can be freed. */
  clear(): void {
    this.#made.clear();
  }
}
