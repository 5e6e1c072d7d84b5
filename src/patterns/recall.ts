import fourNumbers from '../../shaders/lib/four_numbers.wgsl?raw';
import attentionMapShader from '../../shaders/patterns/attention_map.wgsl?raw';
import compareShader from '../../shaders/patterns/compare.wgsl?raw';
import { PipelineCache, type ShaderSpec } from '../device/pipelines.js';
import { BufferPool } from '../device/pool.js';
import type { DeviceProfile } from '../device/profile.js';
import { Recorder } from '../device/recorder.js';
import { checkInteger, checkOneOf, invalidArgument, limitExceeded } from '../errors.js';
import { dispatchFlops, divCeil, f32Bits } from '../index/layer.js';
import { plainScoreTile } from '../index/score_tile.js';
import { prelude, type StorageFormat, storageFormat, storageLibrary } from '../kernels/shader_text.js';
import { BYTES, bindWindow, type Tensor } from '../kernels/tensor.js';
import type { SparsePrefill } from '../scheduler/prefill.js';
import { accepted, encodeSteps, readBuffers, untilLost } from '../scheduler/submit.js';
import type { AttentionLayer, HeadIndex, HeadPattern, HeadReport, StageTimes } from '../scheduler/types.js';
import { MAX_LENGTH, type ResolvedLayer, resolveLayer } from '../scheduler/validate.js';

/** A layer to measure patterns on: its inputs, without outputs and patterns. */
export type MeasuredLayer = Omit<AttentionLayer, 'o' | 'lse' | 'patterns'>;

/** How well one head's sparse attention stands for the dense one. */
export interface HeadQuality {
  readonly head: number;
  readonly pattern: HeadPattern;
  /** The index that the head used. */
  readonly index: HeadIndex;
  /** Query-key pairs that the head computed over the causal total, 0 to 1. */
  readonly density: number;
  /** Share of the dense attention mass that the index keeps, mean over the rows, 0 to 1. */
  readonly recall: number;
  /** The least share of any row. */
  readonly worstRecall: number;
  /** Relative error of the output: `||o_sparse - o_dense|| / ||o_dense||` over the rows. */
  readonly error: number;
  /** Share that each row keeps, `[seqLen]`, when asked for. */
  readonly rowRecall?: Float32Array;
}

/** Result of {@link RecallMeter.measure}. */
export interface LayerQuality {
  readonly heads: readonly HeadQuality[];
  /** GPU time of the sparse layer, index building included, where the device has timestamps. */
  readonly gpuMs?: number;
  /** The same by stage. */
  readonly stages?: StageTimes;
}

/** Options of {@link RecallMeter.measure}. */
export interface MeasureOptions {
  /** Rows before this one are left out: short rows keep everything anyhow. Default 0. */
  readonly firstRow?: number;
  /** Also return the share that each row keeps. */
  readonly perRow?: boolean;
  readonly signal?: AbortSignal;
}

/** A picture of one head: what it attends to, at the resolution of square cells. */
export interface AttentionMap {
  readonly head: number;
  /** Rows and keys of a cell. */
  readonly cell: number;
  /** Cells along the rows (queries of this call). */
  readonly rows: number;
  /** Cells along the keys. */
  readonly keys: number;
  /** `[rows, keys]`: share of their attention that the rows of a cell give to its keys, mean over the rows. Each row of cells sums to 1. */
  readonly values: Float32Array;
}

/** The dense attention of a layer, that patterns are measured against. Holds GPU memory until destroyed. */
export interface DenseReference {
  readonly layer: MeasuredLayer;
  /** GPU time of the dense layer, where the device has timestamps. */
  readonly gpuMs?: number;
  /** The layer with everything filled in; `o` and `lse` are the dense ones. */
  readonly resolved: ResolvedLayer;
  destroy(): void;
}

const STORAGE = 0x80;
const COPY_SRC = 0x04;

/** The shaders of {@link RecallMeter}: the comparison of two outputs, and the picture of a head. */
export function recallShaders(
  profile: DeviceProfile,
  headDim: number,
  storage: StorageFormat,
): { readonly compare: ShaderSpec; readonly map: ShaderSpec } {
  const f16 = storage === 'f16';
  return {
    compare: {
      label: `compare D=${headDim} ${storage}`,
      code: [prelude({ f16, constants: { HEAD_DIM: headDim } }), storageLibrary(storage), compareShader].join('\n'),
      bindings: ['uniform', 'read', 'read', 'read', 'read', 'write', 'write'],
    },
    map: {
      label: `attention map D=${headDim} ${storage}`,
      code: [
        prelude({ f16, constants: { HEAD_DIM: headDim } }),
        storageLibrary(storage),
        plainScoreTile(profile),
        fourNumbers,
        attentionMapShader,
      ].join('\n'),
      bindings: ['uniform', 'read', 'read', 'read', 'write'],
    },
  };
}

/**
 * Measures how much of the dense attention a pattern keeps, on the GPU and exactly: both the dense and the
 * sparse kernel give each row's log-sum-exp of the scores they saw, and the sparse ones saw a subset of the
 * keys, so `exp(lse_sparse - lse_dense)` is the share of the row's attention mass that was kept.
 *
 * ```ts
 * const meter = new RecallMeter(prefill);
 * const dense = await meter.reference(layer);
 * const { heads } = await meter.measure(dense, { kind: 'vertical_slash', verticalSize: 500, slashSize: 700 });
 * const map = await meter.attentionMap(dense, 0);
 * dense.destroy();
 * ```
 */
export class RecallMeter {
  readonly #prefill: SparsePrefill;
  readonly #pipelines: PipelineCache;
  readonly #pool: BufferPool;

  constructor(prefill: SparsePrefill) {
    this.#prefill = prefill;
    this.#pipelines = new PipelineCache(prefill.device);
    this.#pool = new BufferPool(prefill.device);
  }

  /** Runs the layer densely and keeps output and log-sum-exp. */
  async reference(layer: MeasuredLayer, options: { readonly signal?: AbortSignal } = {}): Promise<DenseReference> {
    const outputs = await this.#outputs(layer);
    try {
      const full: AttentionLayer = { ...layer, ...outputs, patterns: { kind: 'dense' } };
      const report = await this.#prefill.run(packed(full), { timestamps: true, ...options });
      const resolved = resolveLayer(this.#prefill.profile, packed(full));
      return {
        layer,
        resolved,
        ...(report.gpuMs === undefined ? {} : { gpuMs: report.gpuMs }),
        destroy: () => destroyAll(outputs),
      };
    } catch (error) {
      destroyAll(outputs);
      throw error;
    }
  }

  /** Runs the layer with these patterns and compares it with the dense one. */
  async measure(
    dense: DenseReference,
    patterns: HeadPattern | readonly HeadPattern[],
    options: MeasureOptions = {},
  ): Promise<LayerQuality> {
    const { firstRow = 0, perRow = false, signal } = options;
    const { numHeads, seqLen } = dense.resolved;
    checkInteger('firstRow', firstRow, 0, seqLen - 1);
    const outputs = await this.#outputs(dense.layer);
    try {
      const layer = packed({ ...dense.layer, ...outputs, patterns });
      const report = await this.#prefill.run(layer, { inspect: true, timestamps: true, ...(signal ? { signal } : {}) });
      const sparse = resolveLayer(this.#prefill.profile, layer);
      const { sums, rows } = await this.#compare(dense.resolved, sparse, firstRow, perRow);
      const chunks = divCeil(seqLen, 64);
      const heads = (report.heads ?? []).map((head): HeadQuality => {
        const own = sums.subarray(4 * chunks * head.head, 4 * chunks * (head.head + 1));
        const rowRecall = rows?.slice(seqLen * head.head, seqLen * (head.head + 1));
        return { ...described(head), ...foldSums(own, seqLen - firstRow), ...(rowRecall ? { rowRecall } : {}) };
      });
      if (heads.length !== numHeads) throw invalidArgument('patterns', patterns, `one pattern for each of ${numHeads} heads`);
      const { gpuMs, stages } = report;
      return { heads, ...(gpuMs === undefined ? {} : { gpuMs }), ...(stages ? { stages } : {}) };
    } finally {
      destroyAll(outputs);
    }
  }

  /**
   * Where one head's attention goes, averaged over square cells. For drawing: at most `size` cells a side.
   *
   * @param size - most cells along the longer side; default 128.
   */
  async attentionMap(dense: DenseReference, head: number, size = 128): Promise<AttentionMap> {
    const { device, profile } = this.#prefill;
    const layer = dense.resolved;
    checkInteger('head', head, 0, layer.numHeads - 1);
    checkInteger('size', size, 1, 4096);
    const visible = layer.queryOffset + layer.seqLen;
    let cell = 8;
    while (visible > cell * size) cell *= 2;
    const rows = divCeil(layer.seqLen, cell);
    const keys = divCeil(visible, cell);
    const kvHead = Math.floor((head * layer.numKvHeads) / layer.numHeads);
    const q = bindWindow(device, 'q', layer.q, head, head + 1);
    const k = bindWindow(device, 'k', layer.k, kvHead, kvHead + 1);
    const lse = lseWindow(layer, head);
    const { map: shader } = recallShaders(profile, layer.headDim, storageFormat(profile, layer.q.dtype));
    await untilLost(device, this.#pipelines.prepare([shader]));
    const record = (rec: Recorder): GPUBuffer => {
      const map = rec.workspace('attention map', rows * keys * 4);
      const groupRows = Math.max(cell, 64);
      const groupKeys = Math.max(cell, 128);
      const groups = divCeil(layer.seqLen, groupRows);
      const flops = groupRows * visible * layer.headDim * 2;
      const atOnce = Math.max(1, Math.floor(dispatchFlops(profile) / flops));
      for (let first = 0; first < groups; first += atOnce) {
        const params = rec.constant([
          layer.seqLen,
          layer.queryOffset,
          cell,
          rows,
          keys,
          f32Bits(layer.scale * Math.LOG2E),
          q.base + head * q.headStride,
          q.rowStride,
          k.base + kvHead * k.headStride,
          k.rowStride,
          lse.base,
          first,
        ]);
        rec.dispatch({
          stage: 'estimate',
          shader,
          bindings: [params, q.range, k.range, lse.range, map],
          workgroups: [divCeil(visible, groupKeys), Math.min(atOnce, groups - first)],
          flops: flops * atOnce,
        });
      }
      return map;
    };
    const [values] = await this.#recordAndRead(record, (map) => [{ buffer: map, size: rows * keys * 4 }]);
    return { head, cell, rows, keys, values: new Float32Array(values as ArrayBuffer) };
  }

  /** Frees the meter's workspace. References are destroyed on their own. */
  destroy(): void {
    this.#pool.destroy();
  }

  /** Output buffers of a run of this layer. */
  async #outputs(layer: MeasuredLayer): Promise<{ readonly o: GPUBuffer; readonly lse: GPUBuffer }> {
    const { device } = this.#prefill;
    if (typeof layer !== 'object' || layer === null) throw invalidArgument('layer', layer, 'an object');
    const { numHeads, seqLen, headDim, dtype } = layer;
    checkOneOf('dtype', dtype, ['f16', 'f32']);
    checkInteger('numHeads', numHeads, 1, 4096);
    checkInteger('seqLen', seqLen, 1, MAX_LENGTH);
    checkInteger('headDim', headDim, 1, 256);
    const rows = numHeads * seqLen;
    const { maxBufferSize } = device.limits;
    const bytes = rows * headDim * BYTES[dtype];
    if (bytes > maxBufferSize) throw limitExceeded('the output to measure', bytes, 'maxBufferSize', maxBufferSize);
    const buffer = (label: string, size: number): GPUBuffer =>
      device.createBuffer({ label, size: Math.max(16, Math.ceil(size / 4) * 4), usage: STORAGE | COPY_SRC });
    return accepted(device, () => ({
      o: buffer('measured o', bytes),
      lse: buffer('measured lse', rows * 4),
    }));
  }

  async #compare(dense: ResolvedLayer, sparse: ResolvedLayer, firstRow: number, perRow: boolean) {
    const { device, profile } = this.#prefill;
    const { numHeads, seqLen, headDim } = dense;
    const { compare: shader } = recallShaders(profile, headDim, storageFormat(profile, dense.q.dtype));
    await untilLost(device, this.#pipelines.prepare([shader]));
    const chunks = divCeil(seqLen, 64);
    // Binding offsets are multiples of 256 bytes.
    const partialStride = divCeil(chunks * 16, 256) * 256;
    const recallStride = divCeil(seqLen * 4, 256) * 256;
    const record = (rec: Recorder): { readonly partial: GPUBuffer; readonly recall: GPUBuffer } => {
      const partial = rec.workspace('compared sums', numHeads * partialStride);
      const recall = rec.workspace('row recall', numHeads * recallStride);
      const o = (t: Tensor, head: number) => bindWindow(device, 'o', t, head, head + 1);
      for (let head = 0; head < numHeads; head++) {
        const a = o(dense.o, head);
        const b = o(sparse.o, head);
        const lseA = lseWindow(dense, head);
        const lseB = lseWindow(sparse, head);
        const params = rec.constant([
          seqLen,
          firstRow,
          a.base + head * a.headStride,
          b.base + head * b.headStride,
          lseA.base,
          lseB.base,
        ]);
        rec.dispatch({
          stage: 'kernel',
          shader,
          bindings: [
            params,
            a.range,
            b.range,
            lseA.range,
            lseB.range,
            { buffer: partial, offset: head * partialStride, size: chunks * 16 },
            { buffer: recall, offset: head * recallStride, size: seqLen * 4 },
          ],
          workgroups: [chunks],
          flops: seqLen * headDim * 5,
        });
      }
      return { partial, recall };
    };
    const [partial, recall] = await this.#recordAndRead(record, (buffers) => [
      { buffer: buffers.partial, size: numHeads * partialStride },
      ...(perRow ? [{ buffer: buffers.recall, size: numHeads * recallStride }] : []),
    ]);
    const strided = (data: ArrayBuffer, stride: number, used: number): Float32Array => {
      const out = new Float32Array((numHeads * used) / 4);
      for (let h = 0; h < numHeads; h++) out.set(new Float32Array(data, h * stride, used / 4), (h * used) / 4);
      return out;
    };
    return {
      sums: strided(partial as ArrayBuffer, partialStride, chunks * 16),
      rows: recall && strided(recall, recallStride, seqLen * 4),
    };
  }

  /** Runs what `record` records and copies the buffers that `read` names to the CPU. */
  async #recordAndRead<T>(
    record: (rec: Recorder) => T,
    read: (recorded: T) => readonly { readonly buffer: GPUBuffer; readonly size: number }[],
  ): Promise<ArrayBuffer[]> {
    const { device } = this.#prefill;
    const rec = new Recorder(device, this.#pool, this.#pipelines);
    try {
      const recorded = await accepted(device, () => record(rec));
      return await readBuffers(device, read(recorded), (encoder) => encodeSteps(encoder, rec.steps));
    } catch (error) {
      // Buffers that failed to be allocated must not be handed out again.
      rec.releaseAll();
      this.#pool.trim();
      throw error;
    } finally {
      rec.releaseAll();
    }
  }
}

/** The same layer with a packed `[numHeads, seqLen, headDim]` output, whatever the layout of its inputs. */
function packed(layer: AttentionLayer): AttentionLayer {
  const o = layer.o as GPUBuffer;
  return { ...layer, o: { buffer: o, headStride: layer.seqLen * layer.headDim, rowStride: layer.headDim } };
}

function destroyAll(outputs: { readonly o: GPUBuffer; readonly lse: GPUBuffer }): void {
  outputs.o.destroy();
  outputs.lse.destroy();
}

/** Where one head's log-sum-exp lies: a bindable range, and its first element in it. */
function lseWindow(layer: ResolvedLayer, head: number) {
  const { buffer, offset } = layer.lse ?? { buffer: layer.o.buffer, offset: 0 };
  const first = offset + head * layer.seqLen * 4;
  const aligned = Math.floor(first / 256) * 256;
  return { range: { buffer, offset: aligned, size: first + layer.seqLen * 4 - aligned }, base: (first - aligned) / 4 };
}

function described({ head, pattern, index, density }: HeadReport) {
  return { head, pattern, index, density };
}

/** Adds up the chunks of one head. */
function foldSums(chunks: Float32Array, rows: number): { recall: number; worstRecall: number; error: number } {
  let recall = 0;
  let worst = 1;
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < chunks.length; i += 4) {
    recall += chunks[i] as number;
    worst = Math.min(worst, chunks[i + 1] as number);
    difference += chunks[i + 2] as number;
    norm += chunks[i + 3] as number;
  }
  return { recall: Math.min(1, recall / rows), worstRecall: worst, error: difference === 0 ? 0 : Math.sqrt(difference / norm) };
}
