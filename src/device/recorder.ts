import { limitExceeded } from '../errors.js';
import type { BindingKind, PipelineCache, ShaderSpec } from './pipelines.js';
import type { BufferPool } from './pool.js';

/** The stages of a layer, as timing reports name them. */
export const STAGES = ['estimate', 'topk', 'convert', 'kernel'] as const;

/**
 * Part of the work that a dispatch belongs to: `estimate` (scores that the index is built from), `topk`
 * (selection), `convert` (selection to kernel index) or `kernel` (attention itself).
 */
export type Stage = (typeof STAGES)[number];

/** One recorded compute dispatch. */
export interface Dispatch {
  readonly kind: 'dispatch';
  readonly stage: Stage;
  readonly label: string;
  readonly pipeline: GPUComputePipeline;
  readonly bindGroup: GPUBindGroup;
  readonly workgroups: readonly [number, number, number];
  /** Estimated floating-point operations, for cutting long work into short submissions. */
  readonly flops: number;
}

/** Fills a range of a buffer with zeros. */
export interface Clear {
  readonly kind: 'clear';
  readonly stage: Stage;
  readonly buffer: GPUBuffer;
  readonly offset: number;
  readonly size: number;
}

export type Step = Dispatch | Clear;

/** A buffer range to bind. */
export interface BufferRange {
  readonly buffer: GPUBuffer;
  readonly offset: number;
  readonly size: number;
}

/** What {@link Recorder.dispatch} needs to know of one dispatch. */
export interface DispatchOptions {
  readonly stage: Stage;
  readonly shader: ShaderSpec;
  /** One binding for each entry of `shader.bindings`, in order. */
  readonly bindings: readonly (GPUBuffer | BufferRange)[];
  readonly workgroups: readonly [x: number, y?: number, z?: number];
  readonly flops?: number;
}

/** Constants that are kept for each device, and the words of the largest. */
const SHARED_CONSTANTS = 1024;
const SHARED_WORDS = 1024;

/**
 * Most constants return with every layer and chunk, and to make a buffer is what recording costs most: 0.1 ms each, and several
 * more for a submission that has to fill them (Dawn on an H100).
 */
const constants = new WeakMap<GPUDevice, Map<string, GPUBuffer>>();

function constantsOf(device: GPUDevice): Map<string, GPUBuffer> {
  const known = constants.get(device);
  if (known) return known;
  const made = new Map<string, GPUBuffer>();
  constants.set(device, made);
  return made;
}

/**
 * Collects the steps of one plan. Nothing reaches the GPU before the plan is encoded, so a plan that
 * throws half-way leaves nothing behind but pooled buffers, which {@link Recorder.releaseAll} gives back.
 *
 * Workspace that is released while recording may be handed out again to later steps of the same plan:
 * steps run in the order in which they were recorded.
 */
export class Recorder {
  readonly steps: Step[] = [];
  readonly device: GPUDevice;
  readonly pool: BufferPool;
  readonly #pipelines: PipelineCache;
  readonly #held = new Set<GPUBuffer>();

  constructor(device: GPUDevice, pool: BufferPool, pipelines: PipelineCache) {
    this.device = device;
    this.pool = pool;
    this.#pipelines = pipelines;
  }

  /** Pooled storage buffer of at least `size` bytes with arbitrary content. */
  workspace(label: string, size: number): GPUBuffer {
    const buffer = this.pool.acquire(label, size);
    this.#held.add(buffer);
    return buffer;
  }

  /** Gives workspace back; steps recorded from now on may reuse it. */
  release(...buffers: GPUBuffer[]): void {
    for (const buffer of buffers) {
      if (this.#held.delete(buffer)) this.pool.release(buffer);
    }
  }

  /** Gives all workspace back. */
  releaseAll(): void {
    this.release(...this.#held);
  }

  /** A small immutable buffer with this content, for uniforms and tables: shared by all that ask for the same, never destroyed. */
  constant(label: string, data: Uint32Array<ArrayBuffer>, kind: 'uniform' | 'storage' = 'uniform'): GPUBuffer {
    if (data.length > SHARED_WORDS) return this.#newConstant(label, data, kind);
    const known = constantsOf(this.device);
    const key = `${kind} ${label} ${data.join()}`;
    const buffer = known.get(key) ?? this.#newConstant(label, data, kind);
    // The one that was asked for longest ago goes first; the garbage collector frees it when nothing uses it any more.
    known.delete(key);
    known.set(key, buffer);
    if (known.size > SHARED_CONSTANTS) known.delete(known.keys().next().value as string);
    return buffer;
  }

  #newConstant(label: string, data: Uint32Array<ArrayBuffer>, kind: 'uniform' | 'storage'): GPUBuffer {
    const size = Math.max(16, Math.ceil(data.byteLength / 16) * 16);
    const buffer = this.device.createBuffer({
      label: `minference ${label}`,
      size,
      usage: kind === 'uniform' ? 0x40 : 0x80, // UNIFORM : STORAGE
      mappedAtCreation: true,
    });
    new Uint32Array(buffer.getMappedRange()).set(data);
    buffer.unmap();
    return buffer;
  }

  /** Records one dispatch; it sees the writes of all steps before it. */
  dispatch(options: DispatchOptions): void {
    const { shader, stage } = options;
    const [x, y = 1, z = 1] = options.workgroups;
    const limit = this.device.limits.maxComputeWorkgroupsPerDimension;
    for (const n of [x, y, z]) {
      if (n > limit) throw limitExceeded(`dispatch of ${shader.label}`, n, 'maxComputeWorkgroupsPerDimension', limit);
    }
    if (x === 0 || y === 0 || z === 0) return;
    const { pipeline, layout } = this.#pipelines.get(shader);
    const entries = options.bindings.map(
      (b, binding): GPUBindGroupEntry => ({
        binding,
        resource: 'buffer' in b ? b : { buffer: b },
      }),
    );
    const bindGroup = this.device.createBindGroup({ label: shader.label, layout, entries });
    this.steps.push({
      kind: 'dispatch',
      stage,
      label: shader.label,
      pipeline,
      bindGroup,
      workgroups: [x, y, z],
      flops: options.flops ?? 0,
    });
  }

  /** Records filling `buffer` with zeros. */
  clear(stage: Stage, buffer: GPUBuffer, offset = 0, size = buffer.size - offset): void {
    this.steps.push({ kind: 'clear', stage, buffer, offset, size });
  }
}

export type { BindingKind };
