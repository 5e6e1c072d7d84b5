import argmaxSource from '../../shaders/model/argmax.wgsl?raw';
import decodeAttentionSource from '../../shaders/model/decode_attention.wgsl?raw';
import decodeCombineSource from '../../shaders/model/decode_combine.wgsl?raw';
import embedSource from '../../shaders/model/embed.wgsl?raw';
import logProbsSource from '../../shaders/model/log_probs.wgsl?raw';
import rmsNormSource from '../../shaders/model/rms_norm.wgsl?raw';
import ropeSource from '../../shaders/model/rope.wgsl?raw';
import swigluSource from '../../shaders/model/swiglu.wgsl?raw';
import workgroupSum from '../../shaders/model/workgroup_sum.wgsl?raw';
import type { ShaderSpec } from '../device/pipelines.js';
import type { BufferRange, Recorder } from '../device/recorder.js';
import { MinferenceError } from '../errors.js';
import { prelude } from '../kernels/shader_text.js';
import type { Matrix, ModelKernels } from './gemm.js';
import type { HeadGroup } from './kv_cache.js';
import { outputLibrary, weightLibrary } from './shader_parts.js';
import type { ModelConfig, WeightType } from './types.js';

/** The words of a uniform; `f32` entries by their bits. */
function words(...values: readonly (number | { readonly f32: number })[]): Uint32Array<ArrayBuffer> {
  return new Uint32Array(values.map((v) => (typeof v === 'number' ? v : bits(v.f32))));
}

/** The bits of an f32. */
function bits(x: number): number {
  return new Uint32Array(new Float32Array([x]).buffer)[0] ?? 0;
}

function activationShader(
  kernels: ModelKernels,
  name: string,
  source: string,
  constants: Readonly<Record<string, number>>,
  ...parts: string[]
) {
  const { activation } = kernels;
  const tag = Object.entries(constants).map(([key, value]) => ` ${key}=${value}`);
  return {
    label: `${name} ${activation}${tag.join('')}`,
    code: [
      prelude({
        f16: activation === 'f16',
        aliases: { Activation: activation, TileVec4: `vec4<${activation}>` },
        constants,
      }),
      outputLibrary(activation),
      ...parts,
      source,
    ].join('\n'),
  };
}

// ---- embedding

/** Shader of {@link recordEmbedding}. */
export function embeddingShader(type: WeightType): ShaderSpec {
  return {
    label: `embed ${type}`,
    code: [weightLibrary(type), embedSource].join('\n'),
    bindings: ['uniform', 'read', 'read', 'write'],
  };
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
  return {
    ...activationShader(kernels, 'rms_norm', rmsNormSource, { THREADS: 256 }, workgroupSum),
    bindings: ['uniform', 'read', 'read', 'write'],
  };
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
  return {
    ...activationShader(kernels, 'rope', ropeSource, constants, workgroupSum),
    bindings: ['uniform', 'read', 'write', 'read', 'read', 'write', 'write'],
  };
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
  return { ...activationShader(kernels, 'swiglu', swigluSource, {}), bindings: ['uniform', 'read', 'write'] };
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

/** Keys that the decoding kernel stages at a time, and its threads. */
export interface DecodeTiling {
  readonly keys: number;
  readonly threads: number;
}

/** The largest tile of keys that workgroup memory holds, and about one thread for each vec4 of output. */
export function decodeTiling(kernels: ModelKernels, config: ModelConfig): DecodeTiling {
  const { limits } = kernels.profile;
  const group = config.numHeads / config.numKvHeads;
  const vec4 = kernels.activation === 'f16' ? 8 : 16;
  const columns = config.headDim / 4;
  const bytes = (keys: number): number => group * columns * vec4 + keys * (columns + 1) * vec4 + group * keys * 4;
  const keys = [64, 32, 16, 8, 4].find((n) => bytes(n) <= limits.maxComputeWorkgroupStorageSize);
  if (!keys) {
    throw new MinferenceError(
      'limit',
      `decoding needs ${bytes(4)} bytes of workgroup memory for ${group} query heads of ${config.headDim}`,
      {
        argument: 'config.numHeads',
        value: config.numHeads,
        allowed: `at most ${limits.maxComputeWorkgroupStorageSize} bytes (maxComputeWorkgroupStorageSize)`,
      },
    );
  }
  return { keys, threads: group * columns > 64 ? 128 : 64 };
}

/** Shader of the splits of {@link recordDecodeAttention}. */
export function decodeAttentionShader(kernels: ModelKernels, config: ModelConfig): ShaderSpec {
  const tiling = decodeTiling(kernels, config);
  const constants = {
    HEAD_DIM: config.headDim,
    GROUP: config.numHeads / config.numKvHeads,
    THREADS: tiling.threads,
    KEYS: tiling.keys,
  };
  return {
    ...activationShader(kernels, 'decode_attention', decodeAttentionSource, constants),
    bindings: ['uniform', 'read', 'read', 'read', 'read', 'write', 'write'],
  };
}

/** Shader that joins the splits of {@link recordDecodeAttention}. */
export function decodeCombineShader(kernels: ModelKernels, config: ModelConfig): ShaderSpec {
  return {
    ...activationShader(kernels, 'decode_combine', decodeCombineSource, { D4: config.headDim / 4 }),
    bindings: ['uniform', 'read', 'read', 'write'],
  };
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
  readonly splits: number;
}

/** Splits that fill a GPU without leaving many of them empty in a cache of this capacity. */
export function decodeSplits(config: ModelConfig, capacity: number): number {
  return Math.max(1, Math.min(64, Math.ceil(512 / config.numKvHeads), Math.ceil(capacity / 64)));
}

/** Attention of one query row over the cache, up to its own position. */
export function recordDecodeAttention(rec: Recorder, kernels: ModelKernels, options: DecodeOptions): void {
  const { config, state, q, o, groups, capacity, splits } = options;
  const { numHeads, headDim } = config;
  const partialO = rec.workspace('decode outputs', numHeads * splits * headDim * 4);
  const partialMl = rec.workspace('decode sums', numHeads * splits * 8);
  for (const { kvStart, kvCount, k, v } of groups) {
    const scale = Math.LOG2E / Math.sqrt(headDim);
    const params = words(kvStart, capacity, splits, config.slidingWindow ?? capacity, { f32: scale }, 1);
    rec.dispatch({
      stage: 'kernel',
      shader: decodeAttentionShader(kernels, config),
      bindings: [rec.constant(params), state, q, k, v, partialO, partialMl],
      workgroups: [splits, kvCount],
    });
  }
  rec.dispatch({
    stage: 'kernel',
    shader: decodeCombineShader(kernels, config),
    bindings: [rec.constant(words(splits)), partialO, partialMl, o],
    workgroups: [numHeads],
  });
  rec.release(partialO, partialMl);
}

// ---- logits

/** Shader of {@link recordArgmax}. */
export const ARGMAX: ShaderSpec = { label: 'argmax', code: argmaxSource, bindings: ['uniform', 'read', 'write'] };

/** token[0] = argmax of `n` f32 logits, the lowest index among equals. */
export function recordArgmax(rec: Recorder, logits: GPUBuffer, n: number, token: GPUBuffer): void {
  rec.dispatch({ stage: 'kernel', shader: ARGMAX, bindings: [rec.constant(words(n)), logits, token], workgroups: [1] });
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
