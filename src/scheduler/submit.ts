import type { Stage, Step } from '../device/recorder.js';
import { MinferenceError } from '../errors.js';
import type { PrefillProgress, StageTimes } from './types.js';
import { deviceLost } from './validate.js';

/** Passes of a query set: WebGPU allows 4096 queries. */
const SET_PASSES = 2048;

/** Timestamps of up to {@link SET_PASSES} passes. */
class TimestampSet {
  readonly querySet: GPUQuerySet;
  readonly #resolved: GPUBuffer;
  readonly #readback: GPUBuffer;

  constructor(device: GPUDevice) {
    this.querySet = device.createQuerySet({ type: 'timestamp', count: 2 * SET_PASSES });
    const size = 16 * SET_PASSES;
    this.#resolved = device.createBuffer({ size, usage: 0x0200 | 0x0004 }); // QUERY_RESOLVE | COPY_SRC
    this.#readback = device.createBuffer({ size, usage: 0x0001 | 0x0008 }); // MAP_READ | COPY_DST
  }

  resolve(encoder: GPUCommandEncoder, passes: number): void {
    encoder.resolveQuerySet(this.querySet, 0, 2 * passes, this.#resolved, 0);
    encoder.copyBufferToBuffer(this.#resolved, 0, this.#readback, 0, 16 * passes);
  }

  /** Milliseconds of each pass, once what resolves them has been submitted. */
  async read(passes: number): Promise<number[]> {
    await this.#readback.mapAsync(1, 0, 16 * passes); // READ
    const ns = new BigUint64Array(this.#readback.getMappedRange(0, 16 * passes));
    // Devices may report an end before its beginning (a reset counter); such a pass counts as zero.
    const times = Array.from({ length: passes }, (_, i) => Math.max(0, Number((ns[2 * i + 1] ?? 0n) - (ns[2 * i] ?? 0n)) / 1e6));
    this.#readback.unmap();
    return times;
  }

  destroy(): void {
    this.querySet.destroy();
    this.#resolved.destroy();
    this.#readback.destroy();
  }
}

/** GPU time of one compute pass. */
export interface PassTime {
  readonly stage: Stage;
  readonly ms: number;
}

/**
 * Measures the GPU time of every compute pass that is recorded with it, by timestamp queries. For use with
 * `SparsePrefill.record`; `SparsePrefill.run` with `timestamps` makes its own.
 */
export class StageTimer {
  readonly #device: GPUDevice;
  readonly #sets: TimestampSet[] = [];
  readonly #stages: Stage[] = [];

  /** @throws {@link MinferenceError} `unsupported` when the device lacks `timestamp-query`. */
  constructor(device: GPUDevice) {
    if (!device.features.has('timestamp-query')) {
      throw new MinferenceError('unsupported', 'timing needs a device with the feature timestamp-query');
    }
    this.#device = device;
  }

  /** Timestamp writes for the next pass. */
  next(stage: Stage): GPUComputePassTimestampWrites {
    const pass = this.#stages.push(stage) - 1;
    const set = Math.floor(pass / SET_PASSES);
    const timestamps = this.#sets[set] ?? new TimestampSet(this.#device);
    this.#sets[set] = timestamps;
    const first = 2 * (pass % SET_PASSES);
    return { querySet: timestamps.querySet, beginningOfPassWriteIndex: first, endOfPassWriteIndex: first + 1 };
  }

  /** Waits for the work that was submitted so far; the times of all passes, in order. Starts over after that. */
  async readPasses(): Promise<PassTime[]> {
    const stages = this.#stages.splice(0);
    const used = this.#sets.slice(0, Math.ceil(stages.length / SET_PASSES));
    if (used.length === 0) return [];
    const passesOf = (set: number): number => Math.min(SET_PASSES, stages.length - set * SET_PASSES);
    const encoder = this.#device.createCommandEncoder();
    used.forEach((set, i) => {
      set.resolve(encoder, passesOf(i));
    });
    this.#device.queue.submit([encoder.finish()]);
    const times = (await Promise.all(used.map((set, i) => set.read(passesOf(i))))).flat();
    return stages.map((stage, i) => ({ stage, ms: times[i] ?? 0 }));
  }

  /** Like {@link readPasses}, added up per stage. */
  async read(): Promise<StageTimes> {
    const total: Record<Stage, number> = { estimate: 0, topk: 0, convert: 0, kernel: 0 };
    for (const { stage, ms } of await this.readPasses()) total[stage] += ms;
    return total;
  }

  /** Frees the queries. */
  destroy(): void {
    for (const set of this.#sets.splice(0)) set.destroy();
  }
}

/** Encodes steps in as few compute passes as can be: one for each stage that is to be timed. */
export function encodeSteps(encoder: GPUCommandEncoder, steps: readonly Step[], timer?: StageTimer): void {
  let pass: GPUComputePassEncoder | undefined;
  let passStage: Stage | undefined;
  for (const step of steps) {
    if (pass && (step.kind === 'clear' || (timer && step.stage !== passStage))) {
      pass.end();
      pass = undefined;
    }
    if (step.kind === 'clear') {
      encoder.clearBuffer(step.buffer, step.offset, step.size);
      continue;
    }
    if (!pass) {
      const timestampWrites = timer?.next(step.stage);
      const label = timer ? `minference ${step.stage}` : 'minference';
      pass = encoder.beginComputePass({ label, ...(timestampWrites ? { timestampWrites } : {}) });
      passStage = step.stage;
    }
    step.constants?.seal();
    pass.setPipeline(step.pipeline);
    pass.setBindGroup(0, step.bindGroup);
    pass.dispatchWorkgroups(...step.workgroups);
  }
  pass?.end();
}

/** Cuts steps into batches of about `flops`, in order. */
export function batchSteps(steps: readonly Step[], flops: number): { steps: Step[]; flops: number }[] {
  const batches: { steps: Step[]; flops: number }[] = [];
  let current = { steps: [] as Step[], flops: 0 };
  for (const step of steps) {
    const cost = step.kind === 'dispatch' ? step.flops : 0;
    if (current.flops > 0 && current.flops + cost > flops) {
      batches.push(current);
      current = { steps: [], flops: 0 };
    }
    current.steps.push(step);
    current.flops += cost;
  }
  if (current.steps.length > 0) batches.push(current);
  return batches;
}

/** Runs `body` under error scopes; resolves to a typed error, or `undefined` when the GPU accepted everything. */
export function withErrorScopes(device: GPUDevice, body: () => void): Promise<MinferenceError | undefined> {
  device.pushErrorScope('internal');
  device.pushErrorScope('out-of-memory');
  device.pushErrorScope('validation');
  let thrown: unknown;
  try {
    body();
  } catch (error) {
    thrown = error;
  }
  // Innermost first. Popped before any await, so that scopes of other code on this device stay paired.
  const popped = [device.popErrorScope(), device.popErrorScope(), device.popErrorScope()];
  return Promise.all(popped).then(([validation, memory, internal]) => {
    if (memory) return new MinferenceError('out-of-memory', `the GPU is out of memory: ${memory.message}`, { cause: memory });
    if (thrown) throw thrown;
    const error = validation ?? internal;
    return error ? new MinferenceError('gpu', `the GPU rejected the work: ${error.message}`, { cause: error }) : undefined;
  });
}

/** Whether a device is lost, and who waits for it. */
interface Loss {
  info: GPUDeviceLostInfo | undefined;
  readonly waiting: Set<(error: MinferenceError) => void>;
}

// Not a race against `device.lost` for each wait: such a promise would keep all of them until the device is gone.
const losses = new WeakMap<GPUDevice, Loss>();
/** How long a failure waits for the news that the device is lost, which explains it, in milliseconds. */
const LOST_DELAY = 200;

function lossOf(device: GPUDevice): Loss {
  const known = losses.get(device);
  if (known) return known;
  const loss: Loss = { info: undefined, waiting: new Set() };
  losses.set(device, loss);
  void device.lost.then((info) => {
    loss.info = info;
    for (const reject of loss.waiting) reject(deviceLost(info));
    loss.waiting.clear();
  });
  return loss;
}

/**
 * Waits for something that the GPU is to do. When the device is lost meanwhile, rejects with `device-lost`, whatever the
 * runtime does with the pending work: reject it in its own words, or never settle it.
 */
export function untilLost<T>(device: GPUDevice, work: Promise<T>): Promise<T> {
  const loss = lossOf(device);
  return new Promise<T>((resolve, reject) => {
    const fail = (error: MinferenceError): void => {
      loss.waiting.delete(reject);
      reject(error);
    };
    loss.waiting.add(reject);
    work.then(
      (value) => {
        loss.waiting.delete(reject);
        resolve(value);
      },
      (cause: unknown) => {
        if (cause instanceof MinferenceError) fail(cause);
        else {
          const message = `the GPU failed: ${cause instanceof Error ? cause.message : String(cause)}`;
          setTimeout(() => fail(new MinferenceError('gpu', message, { cause })), LOST_DELAY);
        }
      },
    );
    if (loss.info) fail(deviceLost(loss.info));
  });
}

/**
 * Makes GPU calls and gives what they return.
 *
 * @throws {@link MinferenceError} `device-lost`, `out-of-memory` or `gpu` when the GPU refuses one.
 */
export async function accepted<T>(device: GPUDevice, calls: () => T): Promise<T> {
  let result: { readonly value: T } | undefined;
  const error = await untilLost(
    device,
    withErrorScopes(device, () => {
      result = { value: calls() };
    }),
  );
  if (error) throw error;
  return (result as { readonly value: T }).value;
}

/**
 * Copies buffers to the CPU, in one submission.
 *
 * @param record - records work before the copies.
 * @throws {@link MinferenceError} `device-lost`, `out-of-memory` or `gpu`.
 */
export async function readBuffers(
  device: GPUDevice,
  sources: readonly { readonly buffer: GPUBuffer; readonly size: number }[],
  record?: (encoder: GPUCommandEncoder) => void,
): Promise<ArrayBuffer[]> {
  const staging: GPUBuffer[] = [];
  if (sources.length === 0) return [];
  try {
    await accepted(device, () => {
      for (const { size } of sources) staging.push(device.createBuffer({ size, usage: 0x0001 | 0x0008 })); // MAP_READ | COPY_DST
      const encoder = device.createCommandEncoder();
      record?.(encoder);
      sources.forEach(({ buffer, size }, i) => {
        encoder.copyBufferToBuffer(buffer, 0, staging[i] as GPUBuffer, 0, size);
      });
      device.queue.submit([encoder.finish()]);
    });
    const copies: ArrayBuffer[] = [];
    for (const buffer of staging) {
      await untilLost(device, buffer.mapAsync(1)); // READ
      copies.push(buffer.getMappedRange().slice(0));
    }
    return copies;
  } finally {
    for (const buffer of staging) buffer.destroy();
  }
}

/** What {@link submitBatches} needs. */
export interface SubmitOptions {
  readonly device: GPUDevice;
  readonly batches: readonly { readonly steps: readonly Step[]; readonly flops: number }[];
  readonly totalFlops: number;
  readonly timer?: StageTimer | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: PrefillProgress) => void) | undefined;
  /** Told how long the GPU took for a batch, in milliseconds. */
  readonly onBatch?: (flops: number, ms: number) => void;
}

/** Submits batch after batch, two in flight, so that the GPU never idles and an abort takes effect soon. */
export async function submitBatches(options: SubmitOptions): Promise<void> {
  const { device, batches, totalFlops, timer, signal, onProgress, onBatch } = options;
  let completed = 0;
  let lastDone = performance.now();
  const inFlight: Promise<void>[] = [];
  const submit = (batch: (typeof batches)[number]): Promise<void> => {
    const rejected = withErrorScopes(device, () => {
      const encoder = device.createCommandEncoder({ label: 'minference layer' });
      encodeSteps(encoder, batch.steps, timer);
      device.queue.submit([encoder.finish()]);
    });
    const submitted = performance.now();
    const done = device.queue.onSubmittedWorkDone();
    return untilLost(device, Promise.all([done, rejected])).then(([, error]) => {
      if (error) throw error;
      const now = performance.now();
      onBatch?.(batch.flops, now - Math.max(submitted, lastDone));
      lastDone = now;
      completed += batch.flops;
      onProgress?.({ fraction: totalFlops > 0 ? Math.min(1, completed / totalFlops) : 1, completedFlops: completed, totalFlops });
    });
  };
  try {
    for (const batch of batches) {
      signal?.throwIfAborted();
      if (inFlight.length >= 2) await inFlight.shift();
      signal?.throwIfAborted();
      inFlight.push(submit(batch));
    }
  } finally {
    const rest = await Promise.allSettled(inFlight);
    const failed = rest.find((r): r is PromiseRejectedResult => r.status === 'rejected');
    // biome-ignore lint/correctness/noUnsafeFinally: a GPU error outranks the abort that may be under way
    if (failed) throw failed.reason;
  }
  signal?.throwIfAborted();
}
