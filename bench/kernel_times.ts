/** The parts that a model's GPU time is split into. */
export const PARTS = ['gemm', 'attention', 'index', 'rest'] as const;

/** One of {@link PARTS}: products with weights, attention itself, building sparse indices, everything else. */
export type Part = (typeof PARTS)[number];

/** GPU milliseconds. */
export interface KernelTimes {
  readonly parts: Readonly<Record<Part, number>>;
  /** By the kernel's label. */
  readonly kernels: ReadonlyMap<string, number>;
  /** Between the first kernel's beginning and the last one's end, when no kernel ran. */
  readonly idle: number;
  /** The same by the kernel that it waited for; `submission` where that was the first one of its command buffer. */
  readonly gaps: ReadonlyMap<string, number>;
}

/** When a kernel ran, in nanoseconds. */
export interface Run {
  readonly kernel: string;
  readonly begin: number;
  readonly end: number;
  /** Whether it was the first one of its command buffer. */
  readonly first: boolean;
}

/** What passes between runs. */
export function idleBetween(runs: readonly Run[]): Pick<KernelTimes, 'idle' | 'gaps'> {
  const gaps = new Map<string, number>();
  let idle = 0;
  let busyUntil = Number.POSITIVE_INFINITY;
  for (const { kernel, begin, end, first } of [...runs].sort((a, b) => a.begin - b.begin)) {
    const ms = Math.max(0, begin - busyUntil) / 1e6;
    const before = first ? 'submission' : kernel;
    gaps.set(before, (gaps.get(before) ?? 0) + ms);
    idle += ms;
    busyUntil = busyUntil === Number.POSITIVE_INFINITY ? end : Math.max(busyUntil, end);
  }
  return { idle, gaps };
}

/** Queries of a set: two for each run of dispatches of one kernel. A command encoder takes as many sets as it needs. */
const QUERIES = 512;

/** Where some of a command encoder's queries go. */
interface Slot {
  readonly querySet: GPUQuerySet;
  readonly resolved: GPUBuffer;
  readonly readback: GPUBuffer;
  /** What runs between a query and the next one. */
  readonly spans: { readonly part: Part; readonly kernel: string; readonly first: boolean }[];
}

/** The part that a kernel belongs to, from its label. */
export function partOf(kernel: string): Part {
  if (/^(estimate|vertical-slash|block-sparse|x-attention|flex-prefill|cumulative|top-k|slash tiles)/.test(kernel))
    return 'index';
  if (/^gem[mv] /.test(kernel)) return 'gemm';
  // Attention kernels name the head size.
  return / D=\d/.test(kernel) ? 'attention' : 'rest';
}

/**
 * Measures every kernel that a device runs, from outside: while it watches, compute passes are cut where the kernel changes, and
 * each piece gets timestamps. Every command encoder must be submitted before the next one is made.
 */
export class KernelWatch {
  readonly #device: GPUDevice;
  readonly #createCommandEncoder: GPUDevice['createCommandEncoder'];
  readonly #free: Slot[] = [];
  #submitted: readonly Slot[] = [];
  #reading: Promise<void>[] = [];
  readonly #kernels = new Map<string, { readonly part: Part; ms: number }>();
  readonly #runs: Run[] = [];
  readonly #whole: boolean;
  #epoch: bigint | undefined;

  /**
   * Watches from now on. The device needs `timestamp-query`.
   *
   * @param whole - not to cut passes: each counts as a kernel named `pass`
   */
  constructor(device: GPUDevice, whole = false) {
    this.#device = device;
    this.#whole = whole;
    this.#createCommandEncoder = device.createCommandEncoder;
    device.createCommandEncoder = (descriptor) => {
      this.#collect();
      return this.#watch(this.#createCommandEncoder.call(device, descriptor));
    };
  }

  /** Stops watching, and waits for what was submitted. */
  async stop(): Promise<KernelTimes> {
    this.#device.createCommandEncoder = this.#createCommandEncoder;
    this.#collect();
    await Promise.all(this.#reading);
    for (const { querySet, resolved, readback } of this.#free) {
      for (const thing of [querySet, resolved, readback]) thing.destroy();
    }
    const parts: Record<Part, number> = { gemm: 0, attention: 0, index: 0, rest: 0 };
    for (const { part, ms } of this.#kernels.values()) parts[part] += ms;
    const kernels = new Map([...this.#kernels].map(([kernel, { ms }]) => [kernel, ms]));
    return { parts, kernels, ...idleBetween(this.#runs) };
  }

  #slot(): Slot {
    const device = this.#device;
    const size = 8 * QUERIES;
    return (
      this.#free.pop() ?? {
        querySet: device.createQuerySet({ type: 'timestamp', count: QUERIES }),
        resolved: device.createBuffer({ size, usage: GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC }),
        readback: device.createBuffer({ size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST }),
        spans: [],
      }
    );
  }

  /** Replaces the methods of an encoder that begin passes and that end it. */
  #watch(encoder: GPUCommandEncoder): GPUCommandEncoder {
    const begin = encoder.beginComputePass.bind(encoder);
    const finish = encoder.finish.bind(encoder);
    const slots: Slot[] = [];
    encoder.beginComputePass = (descriptor = {}) => {
      let pass: GPUComputePassEncoder | undefined;
      let current = '';
      const watched: Pick<GPUComputePassEncoder, 'setPipeline' | 'setBindGroup' | 'dispatchWorkgroups' | 'end'> = {
        setPipeline: (pipeline) => {
          const label = this.#whole ? 'pass' : pipeline.label;
          if (!pass || label !== current) {
            pass?.end();
            let slot = slots.at(-1);
            if (!slot || 2 * slot.spans.length === QUERIES) {
              slot = this.#slot();
              slots.push(slot);
            }
            const { spans, querySet } = slot;
            const query = 2 * spans.length;
            current = label;
            const first = query === 0 && slots.length === 1;
            spans.push({ part: partOf(current), kernel: current, first });
            const timestampWrites = { querySet, beginningOfPassWriteIndex: query, endOfPassWriteIndex: query + 1 };
            pass = begin({ ...descriptor, timestampWrites });
          }
          pass?.setPipeline(pipeline);
        },
        setBindGroup: (index: number, group: GPUBindGroup | null | undefined) => pass?.setBindGroup(index, group),
        dispatchWorkgroups: (x, y, z) => pass?.dispatchWorkgroups(x, y, z),
        end: () => pass?.end(),
      };
      return watched as GPUComputePassEncoder;
    };
    encoder.finish = (descriptor) => {
      for (const { querySet, resolved, readback, spans } of slots) {
        encoder.resolveQuerySet(querySet, 0, 2 * spans.length, resolved, 0);
        encoder.copyBufferToBuffer(resolved, 0, readback, 0, 16 * spans.length);
      }
      this.#submitted = slots;
      return finish(descriptor);
    };
    return encoder;
  }

  /** Begins to read what the last encoder measured. */
  #collect(): void {
    for (const slot of this.#submitted) this.#reading.push(this.#read(slot));
    this.#submitted = [];
  }

  async #read(slot: Slot): Promise<void> {
    const { readback, spans } = slot;
    await readback.mapAsync(GPUMapMode.READ);
    const ns = new BigUint64Array(readback.getMappedRange());
    for (const [i, { part, kernel, first }] of spans.entries()) {
      // Since the first one, as nanoseconds since an epoch are more than a double can count.
      this.#epoch ??= ns[2 * i];
      const since = (at: bigint | undefined): number => Number((at ?? 0n) - (this.#epoch ?? 0n));
      const begin = since(ns[2 * i]);
      // Devices may report an end before its beginning (a reset counter); such a span counts as zero.
      const end = Math.max(begin, since(ns[2 * i + 1]));
      this.#runs.push({ kernel, begin, end, first });
      const ms = (end - begin) / 1e6;
      const known = this.#kernels.get(kernel);
      if (known) known.ms += ms;
      else this.#kernels.set(kernel, { part, ms });
    }
    readback.unmap();
    spans.length = 0;
    this.#free.push(slot);
  }
}
