import { BindGroups } from '../device/bind_groups.js';
import { forgetConstants } from '../device/constants.js';
import { PipelineCache } from '../device/pipelines.js';
import { BufferPool, type MemoryReport } from '../device/pool.js';
import { type DeviceProfile, profileDevice } from '../device/profile.js';
import { Recorder } from '../device/recorder.js';
import { checkInteger, checkOneOf, invalidArgument } from '../errors.js';
import { blockSparseIndexShaders } from '../index/block_sparse.js';
import { flexPrefillIndexShaders } from '../index/flex_prefill.js';
import { verticalSlashIndexShaders } from '../index/vertical_slash.js';
import { xAttentionIndexShaders } from '../index/x_attention.js';
import { HEAD_DIMS } from '../kernels/attention.js';
import { storageFormat } from '../kernels/shader_text.js';
import type { DType } from '../kernels/tensor.js';
import { indexDensity, readIndices } from './inspect.js';
import { attentionShaders, type LayerPlan, planLayer } from './plan.js';
import { accepted, batchSteps, encodeSteps, StageTimer, submitBatches, untilLost } from './submit.js';
import type { AttentionLayer, HeadPattern, PlanReport, RunOptions, RunReport, SparsePrefillOptions } from './types.js';
import { checkObject, deviceLost, PATTERN_KINDS, type ResolvedLayer, resolveLayer } from './validate.js';

const MIB = 2 ** 20;
// Guesses before anything has been measured, in floating-point operations per millisecond.
const SOFTWARE_FLOPS_PER_MS = 1e6;
const HARDWARE_FLOPS_PER_MS = 1e9;
const MATRIX_FLOPS_PER_MS = 2e10;

/** What {@link SparsePrefill.prepare} compiles. */
export interface PrepareOptions {
  readonly headDim: number;
  readonly dtype: DType;
  /** Query heads for each key/value head: chunks of few rows have a kernel of their own for it. Default 1. */
  readonly groupSize?: number;
  /** Pattern kinds that will be used. Default: all. */
  readonly kinds?: readonly HeadPattern['kind'][];
}

/**
 * Sparse causal prefill attention on one `GPUDevice`.
 *
 * ```ts
 * const prefill = new SparsePrefill(device);
 * const layer = { q, k, v, o, numHeads: 32, numKvHeads: 8, headDim: 128, seqLen, dtype: 'f16', patterns };
 * prefill.record(encoder, layer);                  // into your own command encoder, no readback; or
 * const report = await prefill.run(layer, { signal, onProgress });
 * ```
 *
 * One instance may be used for all layers of a model, and from several tasks at once.
 */
export class SparsePrefill {
  readonly device: GPUDevice;
  readonly profile: DeviceProfile;
  readonly #pipelines: PipelineCache;
  /** Workspace of {@link record}: reused from layer to layer, in the order of the caller's submissions. */
  readonly #recordPool: BufferPool;
  /** Workspace of {@link run}: held until the GPU is done, since runs may overlap. */
  readonly #runPool: BufferPool;
  readonly #workspaceLimit: number;
  readonly #dispatchMs: number;
  /** Of {@link record}. */
  readonly #bindGroups: BindGroups | undefined;
  #lostInfo: GPUDeviceLostInfo | undefined;
  #flopsPerMs: number;

  /**
   * @throws {@link MinferenceError} `invalid-argument` for bad options, `unsupported` for a tier that the device cannot run.
   */
  constructor(device: GPUDevice, options: SparsePrefillOptions = {}) {
    if (typeof device !== 'object' || device === null || typeof device.createComputePipeline !== 'function') {
      throw invalidArgument('device', device, 'a GPUDevice');
    }
    checkObject('options', options);
    const { workspaceLimit = 512 * MIB, dispatchMs = 100, reuseBindGroups = false } = options;
    checkInteger('options.workspaceLimit', workspaceLimit, 1, Number.MAX_SAFE_INTEGER);
    if (typeof dispatchMs !== 'number' || !(dispatchMs > 0))
      throw invalidArgument('options.dispatchMs', dispatchMs, 'a number above 0');
    if (typeof reuseBindGroups !== 'boolean') throw invalidArgument('options.reuseBindGroups', reuseBindGroups, 'true or false');
    this.device = device;
    const { tilings } = options;
    this.profile = { ...profileDevice(device, options.tier, options.adapterInfo), ...(tilings ? { tilings } : {}) };
    this.#pipelines = new PipelineCache(device);
    this.#recordPool = new BufferPool(device);
    this.#runPool = new BufferPool(device);
    this.#workspaceLimit = workspaceLimit;
    this.#dispatchMs = dispatchMs;
    this.#bindGroups = reuseBindGroups ? new BindGroups(device) : undefined;
    this.#flopsPerMs = firstGuess(this.profile);
    void device.lost.then((info) => {
      this.#lostInfo = info;
    });
  }

  /** Compiles the pipelines that a model needs, ahead of time and off the main thread. */
  async prepare(options: PrepareOptions): Promise<void> {
    checkObject('options', options);
    const { headDim, dtype, groupSize = 1, kinds = ['dense', 'a_shape', 'vertical_slash', 'block_sparse'] } = options;
    if (!Array.isArray(kinds)) throw invalidArgument('kinds', kinds, 'an array');
    for (const [i, kind] of kinds.entries()) checkOneOf(`kinds[${i}]`, kind, PATTERN_KINDS);
    checkOneOf('dtype', dtype, ['f16', 'f32']);
    checkInteger('groupSize', groupSize, 1, 1024);
    if (!HEAD_DIMS.includes(headDim as (typeof HEAD_DIMS)[number]))
      throw invalidArgument('headDim', headDim, HEAD_DIMS.join(', '));
    this.#checkAlive();
    const storage = storageFormat(this.profile, dtype);
    const compile = this.#pipelines.prepare([
      ...attentionShaders(this.profile, headDim, dtype, kinds, groupSize),
      ...(kinds.includes('vertical_slash') ? verticalSlashIndexShaders(this.profile, headDim, storage) : []),
      ...(kinds.includes('block_sparse') ? blockSparseIndexShaders(this.profile, headDim, storage) : []),
      ...(kinds.includes('flex_prefill') ? flexPrefillIndexShaders(this.profile, headDim, storage) : []),
      ...(kinds.includes('x_attention') ? xAttentionIndexShaders(this.profile, headDim, storage) : []),
    ]);
    await untilLost(this.device, compile);
  }

  /**
   * Records the whole layer, index building included, into the caller's command encoder: no readback, no
   * await, no copy. Encoders must be submitted in the order in which layers were recorded into them, since
   * the workspace is reused.
   *
   * @param timer - measures the layer's compute passes, if given.
   * @throws {@link MinferenceError} before anything is recorded when an argument is wrong or a limit is exceeded.
   */
  record(encoder: GPUCommandEncoder, layer: AttentionLayer, timer?: StageTimer): PlanReport {
    if (typeof encoder !== 'object' || encoder === null || typeof encoder.beginComputePass !== 'function') {
      throw invalidArgument('encoder', encoder, 'a GPUCommandEncoder');
    }
    if (timer !== undefined && typeof timer?.next !== 'function') throw invalidArgument('timer', timer, 'a StageTimer');
    this.#checkAlive();
    const resolved = resolveLayer(this.profile, layer);
    const rec = new Recorder(this.device, this.#recordPool, this.#pipelines, this.#bindGroups);
    this.#recordPool.resetPeak();
    try {
      const plan = this.#plan(rec, resolved);
      encodeSteps(encoder, rec.steps, timer);
      return this.#report(rec, plan, this.#recordPool.report());
    } finally {
      rec.releaseAll();
    }
  }

  /**
   * Runs the layer and waits for it. Work of up to two dispatch budgets is one submission; longer work is
   * cut into several, and can then be aborted in between.
   *
   * @throws {@link MinferenceError} `device-lost`, `out-of-memory` or `gpu` when the GPU fails; or the
   *   abort signal's reason. The caller's q, k and v are never written.
   */
  async run(layer: AttentionLayer, options: RunOptions = {}): Promise<RunReport> {
    checkObject('options', options);
    const { signal, onProgress, timestamps = false, inspect = false } = options;
    if (signal !== undefined && typeof signal?.throwIfAborted !== 'function') {
      throw invalidArgument('options.signal', signal, 'an AbortSignal');
    }
    if (onProgress !== undefined && typeof onProgress !== 'function') {
      throw invalidArgument('options.onProgress', onProgress, 'a function');
    }
    signal?.throwIfAborted();
    this.#checkAlive();
    const resolved = resolveLayer(this.profile, layer);
    const rec = new Recorder(this.device, this.#runPool, this.#pipelines);
    const timed = timestamps && this.device.features.has('timestamp-query');
    const timer = timed ? new StageTimer(this.device) : undefined;
    try {
      this.#runPool.resetPeak();
      const plan = await this.#planScoped(rec, resolved, inspect);
      const report = this.#report(rec, plan, this.#runPool.report());
      const batches = batchSteps(rec.steps, 2 * this.#dispatchMs * this.#flopsPerMs);
      await submitBatches({
        device: this.device,
        batches,
        totalFlops: report.flops,
        timer,
        signal,
        onProgress,
        onBatch: (flops, ms) => this.learnSpeed(flops, ms),
      });
      const result: RunReport = { ...report, submits: batches.length };
      const stages = timer ? await untilLost(this.device, timer.read()) : undefined;
      const heads = inspect ? await this.#inspect(plan, resolved) : undefined;
      return {
        ...result,
        ...(stages ? { stages, gpuMs: stages.estimate + stages.topk + stages.convert + stages.kernel } : {}),
        ...(heads ? { heads } : {}),
      };
    } finally {
      timer?.destroy();
      rec.releaseAll();
    }
  }

  /**
   * Tells how long the GPU took for recorded work, so that later dispatches are cut to `dispatchMs`. {@link run} does so itself.
   *
   * @param flops operations of the work, as {@link record} reports them
   * @param ms from the work before it, or from its own submission, to its end; what takes less than 2 ms teaches nothing
   */
  learnSpeed(flops: number, ms: number): void {
    if (!(flops > 0 && ms >= 2)) return;
    const measured = flops / ms;
    this.#flopsPerMs =
      measured > this.#flopsPerMs ? Math.min(measured, 4 * this.#flopsPerMs) : Math.max(measured, this.#flopsPerMs / 4);
  }

  /** Workspace that this instance holds, in bytes, of {@link run} and of {@link record}. */
  memory(): { readonly run: MemoryReport; readonly record: MemoryReport } {
    return { run: this.#runPool.report(), record: this.#recordPool.report() };
  }

  /**
   * Frees workspace that is not in use, and lets go of the caller's buffers. After an allocation of {@link record} has failed, this makes
   * room for another try; {@link run} does it itself.
   */
  trim(): void {
    forgetConstants(this.device);
    this.#bindGroups?.clear();
    this.#runPool.trim();
    this.#recordPool.trim();
  }

  /** Frees everything. The device and the caller's buffers stay. */
  destroy(): void {
    this.#bindGroups?.clear();
    this.#runPool.destroy();
    this.#recordPool.destroy();
  }

  #plan(rec: Recorder, layer: ResolvedLayer, keepIndices = false): LayerPlan {
    return planLayer(
      rec,
      layer,
      { profile: this.profile, workspaceLimit: this.#workspaceLimit, dispatchFlops: this.#dispatchMs * this.#flopsPerMs },
      keepIndices,
    );
  }

  /** Plans under error scopes, so that a failed allocation rejects instead of surfacing as an uncaptured error. */
  async #planScoped(rec: Recorder, layer: ResolvedLayer, keepIndices: boolean): Promise<LayerPlan> {
    try {
      return await accepted(this.device, () => this.#plan(rec, layer, keepIndices));
    } catch (error) {
      // Buffers that failed to be allocated must not be handed out again.
      rec.releaseAll();
      this.#runPool.trim();
      forgetConstants(this.device);
      throw error;
    }
  }

  #report(rec: Recorder, plan: LayerPlan, memory: MemoryReport): PlanReport {
    let dispatches = 0;
    let flops = 0;
    for (const step of rec.steps) {
      if (step.kind === 'dispatch') {
        dispatches++;
        flops += step.flops;
      }
    }
    return { tier: this.profile.tier, dispatches, flops, indexBytes: plan.indexBytes, memory };
  }

  async #inspect(plan: LayerPlan, layer: ResolvedLayer): Promise<RunReport['heads']> {
    const shape = { seqLen: layer.seqLen, kvLen: layer.kvLen, queryOffset: layer.queryOffset };
    const indices = await readIndices(this.device, plan.heads, shape);
    return plan.heads.map(({ head, pattern }, i) => {
      const index = indices[i] ?? { kind: 'dense' };
      return { head, pattern, index, density: indexDensity(pattern, index, shape) };
    });
  }

  #checkAlive(): void {
    if (this.#lostInfo) throw deviceLost(this.#lostInfo);
  }
}

/** The speed of a device that has done nothing yet. */
function firstGuess({ software, matrix }: DeviceProfile): number {
  if (software) return SOFTWARE_FLOPS_PER_MS;
  return matrix ? MATRIX_FLOPS_PER_MS : HARDWARE_FLOPS_PER_MS;
}
