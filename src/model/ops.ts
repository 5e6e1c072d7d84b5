import argmaxSource from '../../shaders/model/argmax.wgsl?raw';
import decodeAttentionSource from '../../shaders/model/decode_attention.wgsl?raw';
import decodeCombineSource from '../../shaders/model/decode_combine.wgsl?raw';
import decodeParams from '../../shaders/model/decode_params.wgsl?raw';
import embedSource from '../../shaders/model/embed.wgsl?raw';
import laneSumsSubgroup from '../../shaders/model/lane_sums_subgroup.wgsl?raw';
import laneSumsWorkgroup from '../../shaders/model/lane_sums_workgroup.wgsl?raw';
import logProbsSource from '../../shaders/model/log_probs.wgsl?raw';
import rmsNormSource from '../../shaders/model/rms_norm.wgsl?raw';
import ropeSource from '../../shaders/model/rope.wgsl?raw';
import swigluSource from '../../shaders/model/swiglu.wgsl?raw';
import wordsF16 from '../../shaders/model/words_f16.wgsl?raw';
import wordsF32 from '../../shaders/model/words_f32.wgsl?raw';
import workgroupSum from '../../shaders/model/workgroup_sum.wgsl?raw';
import { type BindingKind, lazyShader, type ShaderSpec } from '../device/pipelines.js';
import type { BufferRange, Recorder } from '../device/recorder.js';
import { f32Bits } from '../index/layer.js';
import { prelude } from '../kernels/shader_text.js';
import { BYTES } from '../kernels/tensor.js';
import type { Matrix, ModelKernels } from './gemm.js';
import type { HeadGroup } from './kv_cache.js';
import { outputLibrary, weightLibrary } from './shader_parts.js';
import type { ModelConfig, WeightType } from './types.js';

/** The words of a uniform; `f32` entries by their bits. */
function words(...values: readonly (number | { readonly f32: number })[]): Uint32Array<ArrayBuffer> {
  return new Uint32Array(values.map((v) => (typeof v === 'number' ? v : f32Bits(v.f32))));
}

function activationShader(
  kernels: ModelKernels,
  name: string,
  source: string,
  constants: Readonly<Record<string, number>>,
  bindings: readonly BindingKind[],
  ...parts: string[]
): ShaderSpec {
  const { activation } = kernels;
  const tag = Object.entries(constants).map(([key, value]) => ` ${key}=${value}`);
  return lazyShader({ label: `${name} ${activation}${tag.join('')}`, bindings }, () =>
    [
      prelude({
        f16: activation === 'f16',
        aliases: { Activation: activation },
        constants,
      }),
      outputLibrary(activation),
      ...parts,
      source,
    ].join('\n'),
  );
}

// ---- embedding

/** Shader of {@link recordEmbedding}. */
export function embeddingShader(type: WeightType): ShaderSpec {
  return lazyShader({ label: `embed ${type}`, bindings: ['uniform', 'read', 'read', 'write'] }, () =>
    [weightLibrary(type), embedSource].join('\n'),
  );
}

/** x[i, :] = table[tokens[i], :] in f32, for `rows` tokens. */
export function recordEmbedding(rec: Recorder, table: Matrix, tokens: GPUBuffer | BufferRange, rows: number, x: GPUBuffer): void {
  for (const part of table.parts) {
    rec.dispatch({
      stage: 'kernel',
      shader: embeddingShader(part.type),
      bindings: [rec.constant(words(rows, part.rows, table.columns, part.rowStart)), part.buffer, tokens, x],
      workgroups: [Math.ceil(table.columns / 8 / 64), rows],
    });
  }
}

// ---- norm

/** Shader of {@link recordRmsNorm}. */
export function rmsNormShader(kernels: ModelKernels): ShaderSpec {
  return activationShader(
    kernels,
    'rms_norm',
    rmsNormSource,
    { THREADS: 256 },
    ['uniform', 'read', 'read', 'write'],
    workgroupSum,
  );
}

/** y = norm(x[firstRow ...]) for `rows` rows of the f32 residual stream of `width` columns. */
export function recordRmsNorm(
  rec: Recorder,
  kernels: ModelKernels,
  options: { x: GPUBuffer; weight: GPUBuffer; y: GPUBuffer; width: number; eps: number; rows: number; firstRow?: number },
): void {
  const { x, weight, y, width, eps, rows, firstRow = 0 } = options;
  rec.dispatch({
    stage: 'kernel',
    shader: rmsNormShader(kernels),
    bindings: [rec.constant(words(width, firstRow, { f32: eps })), x, weight, y],
    workgroups: [rows],
  });
}

// ---- rope and cache

/** Shader of {@link recordRope}. */
export function ropeShader(kernels: ModelKernels, config: ModelConfig): ShaderSpec {
  const constants = {
    HEAD_DIM: config.headDim,
    ROTARY: config.rope.rotaryDim,
    GROUP: config.numHeads / config.numKvHeads,
    NORM: config.qkNorm ? 1 : 0,
  };
  // The sum's THREADS is declared by the shader itself.
  return activationShader(
    kernels,
    'rope',
    ropeSource,
    constants,
    ['uniform', 'read', 'write', 'read', 'read', 'write', 'write'],
    workgroupSum,
  );
}

/** Options of {@link recordRope}. */
export interface RopeOptions {
  readonly config: ModelConfig;
  /** Word 0: the position of row 0. */
  readonly state: GPUBuffer;
  /** `[rows, (heads + 2 kvHeads) headDim]`: queries are turned in place. */
  readonly qkv: GPUBuffer;
  /** See `ropeTable`. */
  readonly frequencies: GPUBuffer;
  /** What cos and sin are multiplied by. */
  readonly factor: number;
  /** `[2, headDim]` f32 norm weights of q and k; read only for models with `qkNorm`. */
  readonly norms: GPUBuffer;
  readonly groups: readonly HeadGroup[];
  readonly capacity: number;
  readonly rows: number;
}

/** Norms and turns queries and keys, and writes keys and values into the cache. */
export function recordRope(rec: Recorder, kernels: ModelKernels, options: RopeOptions): void {
  const { config, state, qkv, frequencies, factor, norms, groups, capacity, rows } = options;
  const { numHeads, numKvHeads, headDim } = config;
  const stride = (numHeads + 2 * numKvHeads) * headDim;
  for (const { kvStart, kvCount, k, v } of groups) {
    const params = words(numHeads, numKvHeads, kvStart, stride, capacity, { f32: factor }, { f32: config.rmsEps });
    rec.dispatch({
      stage: 'kernel',
      shader: ropeShader(kernels, config),
      bindings: [rec.constant(params), state, qkv, frequencies, norms, k, v],
      workgroups: [(numHeads / numKvHeads + 2) * kvCount, rows],
    });
  }
}

// ---- MLP

/** Shader of {@link recordSwiglu}. */
export function swigluShader(kernels: ModelKernels): ShaderSpec {
  return activationShader(kernels, 'swiglu', swigluSource, {}, ['uniform', 'read', 'write']);
}

/** y = silu(gate) * up; `gateUp` is `[rows, 2 inner]`. */
export function recordSwiglu(
  rec: Recorder,
  kernels: ModelKernels,
  gateUp: GPUBuffer,
  y: GPUBuffer,
  inner: number,
  rows: number,
): void {
  rec.dispatch({
    stage: 'kernel',
    shader: swigluShader(kernels),
    bindings: [rec.constant(words(inner)), gateUp, y],
    workgroups: [Math.ceil(inner / 4 / 64), rows],
  });
}

// ---- decoding

/** How the decoding kernel shares its work out, see shaders/model/decode_attention.wgsl. */
export interface DecodeTiling {
  /** Query heads of a workgroup. */
  readonly heads: number;
  /** Threads that share a row. */
  readonly lanes: number;
  /** Words of 16 bytes of a row that a thread has. */
  readonly slice: number;
  /** Keys that a thread loads at a time. */
  readonly unroll: number;
  /** Whether the threads of a row exchange their sums inside a subgroup. */
  readonly subgroups: boolean;
  /** Keys that a workgroup takes at a time. */
  readonly tile: number;
}

const DECODE_THREADS = 128;
/** Query heads of a workgroup at most: its threads keep q and o of all of them in registers. */
const DECODE_HEADS = 4;
/** Workgroups and splits at most: some waves of a large GPU. */
const DECODE_WORKGROUPS = 1024;
const DECODE_SPLITS = 128;

/** The tiling for a device and a model's heads. */
export function decodeTiling({ profile, activation }: ModelKernels, config: ModelConfig): DecodeTiling {
  const group = config.numHeads / config.numKvHeads;
  const heads = Math.ceil(group / Math.ceil(group / DECODE_HEADS));
  const words = (config.headDim * BYTES[activation]) / 16;
  const lanes = Math.min(32, 2 ** Math.ceil(Math.log2(words)));
  const slice = Math.ceil(words / lanes);
  const subgroups = profile.tier !== 'portable' && profile.subgroups && profile.subgroupMinSize >= lanes;
  // What takes long to compile, and workgroup memory for the sums, grow with it.
  const unroll = profile.software ? 2 : subgroups ? 8 / slice : 4;
  return { heads, lanes, slice, unroll, subgroups, tile: (DECODE_THREADS / lanes) * unroll };
}

/** Shader of the splits of {@link recordDecodeAttention}. */
export function decodeAttentionShader(kernels: ModelKernels, config: ModelConfig): ShaderSpec {
  const { heads, lanes, slice, unroll, subgroups } = decodeTiling(kernels, config);
  const { activation } = kernels;
  const constants = {
    HEAD_DIM: config.headDim,
    GROUP: config.numHeads / config.numKvHeads,
    HEADS: heads,
    LANES: lanes,
    SLICE: slice,
    UNROLL: unroll,
    THREADS: DECODE_THREADS,
  };
  const tag = `D=${config.headDim} group=${constants.GROUP} unroll=${unroll}${subgroups ? ' sg' : ''}`;
  return lazyShader(
    { label: `decode_attention ${activation} ${tag}`, bindings: ['uniform', 'read', 'read', 'read', 'read', 'write', 'write'] },
    () =>
      [
        prelude({ f16: activation === 'f16', subgroups, aliases: { Activation: activation }, constants }),
        activation === 'f16' ? wordsF16 : wordsF32,
        decodeParams,
        decodeAttentionSource,
        subgroups ? laneSumsSubgroup : laneSumsWorkgroup,
      ].join('\n'),
  );
}

/** Shader that joins the splits of {@link recordDecodeAttention}. */
export function decodeCombineShader(kernels: ModelKernels, config: ModelConfig): ShaderSpec {
  const columns = config.headDim / 4;
  const constants = { D4: columns, PARTS: Math.max(1, Math.floor(256 / columns)) };
  return activationShader(
    kernels,
    'decode_combine',
    decodeCombineSource,
    constants,
    ['uniform', 'read', 'read', 'read', 'write'],
    decodeParams,
  );
}

/** Options of {@link recordDecodeAttention}. */
export interface DecodeOptions {
  readonly config: ModelConfig;
  /** Word 0: the position of the row. */
  readonly state: GPUBuffer;
  /** `[heads, headDim]` at the start of the buffer. */
  readonly q: GPUBuffer;
  /** `[heads, headDim]` */
  readonly o: GPUBuffer;
  readonly groups: readonly HeadGroup[];
  readonly capacity: number;
  /** At most; short sequences have fewer. */
  readonly splits: number;
}

/** Splits that fill a large GPU, of a tile each or more in a cache of this capacity. */
export function decodeSplits(kernels: ModelKernels, config: ModelConfig, capacity: number): number {
  const { heads, tile } = decodeTiling(kernels, config);
  const workgroups = config.numKvHeads * Math.ceil(config.numHeads / config.numKvHeads / heads);
  return Math.min(DECODE_SPLITS, Math.ceil(DECODE_WORKGROUPS / workgroups), Math.ceil(capacity / tile));
}

/** Attention of one query row over the cache, up to its own position. */
export function recordDecodeAttention(rec: Recorder, kernels: ModelKernels, options: DecodeOptions): void {
  const { config, state, q, o, groups, capacity, splits } = options;
  const { numHeads, numKvHeads, headDim } = config;
  const { heads, tile } = decodeTiling(kernels, config);
  const chunks = Math.ceil(numHeads / numKvHeads / heads);
  const partialO = rec.workspace('decode outputs', numHeads * splits * headDim * 4);
  const partialMl = rec.workspace('decode sums', numHeads * splits * 8);
  const scale = Math.LOG2E / Math.sqrt(headDim);
  const paramsOf = (kvStart: number): BufferRange =>
    rec.constant(words(kvStart, capacity, splits, config.slidingWindow ?? capacity, { f32: scale }, tile));
  for (const { kvStart, kvCount, k, v } of groups) {
    rec.dispatch({
      stage: 'kernel',
      shader: decodeAttentionShader(kernels, config),
      bindings: [paramsOf(kvStart), state, q, k, v, partialO, partialMl],
      workgroups: [splits * chunks, kvCount],
    });
  }
  rec.dispatch({
    stage: 'kernel',
    shader: decodeCombineShader(kernels, config),
    bindings: [paramsOf(0), state, partialO, partialMl, o],
    workgroups: [numHeads],
  });
  rec.release(partialO, partialMl);
}

// ---- logits

/** Logits of a workgroup of argmax, if that makes no more than {@link ARGMAX_WORKGROUPS}. */
const ARGMAX_RUN = 1024;
const ARGMAX_WORKGROUPS = 256;

/** A shader of {@link recordArgmax}: the one that chooses a candidate from each part of the logits, or the last one. */
export function argmaxShader(last: boolean): ShaderSpec {
  return lazyShader({ label: `argmax${last ? ' of candidates' : ''}`, bindings: ['uniform', 'read', 'write'] }, () =>
    [prelude({ constants: { THREADS: 256, LAST: last ? 1 : 0 } }), argmaxSource].join('\n'),
  );
}

/** token[0] = argmax of `n` f32 logits, the lowest index among equals. */
export function recordArgmax(rec: Recorder, logits: GPUBuffer, n: number, token: GPUBuffer): void {
  const count = Math.min(ARGMAX_WORKGROUPS, Math.ceil(n / ARGMAX_RUN));
  const candidates = rec.workspace('argmax candidates', 8 * count);
  const record = (last: boolean, from: GPUBuffer, many: number, to: GPUBuffer, workgroups: number): void =>
    rec.dispatch({
      stage: 'kernel',
      shader: argmaxShader(last),
      bindings: [rec.constant(words(many, n - 1)), from, to],
      workgroups: [workgroups],
    });
  record(false, logits, n, candidates, count);
  record(true, candidates, count, token, 1);
  rec.release(candidates);
}

/** Shader of {@link recordLogProbs}. */
export const LOG_PROBS: ShaderSpec = {
  label: 'log_probs',
  code: [prelude({ constants: { THREADS: 256 } }), workgroupSum, logProbsSource].join('\n'),
  bindings: ['uniform', 'read', 'read', 'write'],
};

/** out[firstRow + i] = log-probability of targets[firstRow + i] by row i of `[rows, n]` f32 logits. */
export function recordLogProbs(
  rec: Recorder,
  logits: GPUBuffer,
  n: number,
  targets: GPUBuffer,
  out: GPUBuffer,
  firstRow: number,
  rows: number,
): void {
  rec.dispatch({
    stage: 'kernel',
    shader: LOG_PROBS,
    bindings: [rec.constant(words(n, firstRow)), logits, targets, out],
    workgroups: [rows],
  });
}
