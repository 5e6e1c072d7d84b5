import { limitExceeded } from '../errors.js';
import { type BindGroups, bindGroupEntries } from './bind_groups.js';
import { type ConstantPage, Constants } from './constants.js';
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
  /** To be sealed before this is submitted. */
  readonly constants: ConstantPage | undefined;
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

/** What a shader's binding may be: a whole buffer or a part. */
export type Bindable = GPUBuffer | BufferRange;

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
  readonly bindings: readonly Bindable[];
  readonly workgroups: readonly [x: number, y?: number, z?: number];
  readonly flops?: number;
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
  readonly #constants: Constants;
  readonly #bindGroups: BindGroups | undefined;
  readonly #held = new Set<GPUBuffer>();

  /** @param bindGroups - where bind groups are kept for later recorders, if they are to be */
  constructor(device: GPUDevice, pool: BufferPool, pipelines: PipelineCache, bindGroups?: BindGroups) {
    this.device = device;
    this.#bindGroups = bindGroups;
    this.pool = pool;
    this.#pipelines = pipelines;
    this.#constants = new Constants(device);
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

  /**
   * An immutable buffer range with this content, for uniforms and tables: shared by all that ask for the same, never destroyed.
   * Numbers are taken modulo 2^32.
   */
  constant(words: Uint32Array | readonly number[]): BufferRange {
    return this.#constants.get(words instanceof Uint32Array ? words : Uint32Array.from(words, (w) => w >>> 0));
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
    const { label } = shader;
    const { bindings } = options;
    const bindGroup =
      this.#bindGroups?.get(label, layout, bindings) ??
      this.device.createBindGroup({ label, layout, entries: bindGroupEntries(bindings) });
    this.steps.push({
      kind: 'dispatch',
      stage,
      label,
      pipeline,
      bindGroup,
      workgroups: [x, y, z],
      flops: options.flops ?? 0,
      constants: this.#constants.open,
    });
  }

  /** Records filling `buffer` with zeros. */
  clear(stage: Stage, buffer: GPUBuffer, offset = 0, size = buffer.size - offset): void {
    this.steps.push({ kind: 'clear', stage, buffer, offset, size });
  }
}

export type { BindingKind };
