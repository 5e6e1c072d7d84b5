import { BindGroups } from '../device/bind_groups.js';
import { PipelineCache, type ShaderSpec } from '../device/pipelines.js';
import { BufferPool, type MemoryReport } from '../device/pool.js';
import { type DeviceProfile, profileDevice, type Tier } from '../device/profile.js';
import { Recorder, type Step } from '../device/recorder.js';
import { checkInteger, invalidArgument, MinferenceError } from '../errors.js';
import { INDEX_BLOCK } from '../kernels/attention.js';
import { blockFits } from '../kernels/matrix_product.js';
import { BYTES, concatenated } from '../kernels/tensor.js';
import { type LayerPatternOptions, type PatternConfig, patternsForLayer } from '../patterns/config.js';
import { SparsePrefill } from '../scheduler/prefill.js';
import { accepted, encodeSteps, readBuffers, StageTimer, withErrorScopes } from '../scheduler/submit.js';
import type { AttentionLayer, HeadPattern, SparsePrefillOptions, StageTimes } from '../scheduler/types.js';
import { deviceLost, resolvePattern } from '../scheduler/validate.js';
import {
  DEQUANTIZE_ROWS,
  fusesNorm,
  fusesSwiglu,
  type Matrix,
  type ModelKernels,
  type Product,
  productShaders,
  recordProduct,
  recordSwigluProduct,
} from './gemm.js';
import { KvCache } from './kv_cache.js';
import { chooseGemmTiling, FEW_ROWS_TILINGS, type MatrixGemmTiling, type MatrixProductOutput } from './matrix_gemm.js';
import {
  argmaxShader,
  decodeAttentionShader,
  decodeCombineShader,
  decodeSplits,
  embeddingShader,
  recordArgmax,
  recordDecodeAttention,
  recordEmbedding,
  recordLogProbs,
  recordRmsNorm,
  recordRope,
  recordSwiglu,
  rmsNormShader,
  ropeShader,
  swigluShader,
} from './ops.js';
import { ropeFrequencies, ropeTable } from './rope.js';
import { Sampler, type SamplingOptions } from './sample.js';
import { activationBytes, type LoadedModel, layerMatrixElements, type ModelConfig } from './types.js';
import { type LayerWeights, type ModelWeights, uploadWeights } from './weights.js';

/** What heads attend to in a long prefill: one pattern for all, a pattern file, or a function of the layer. */
export type ModelPatterns = HeadPattern | PatternConfig | ((layer: number) => HeadPattern | readonly HeadPattern[]);

/** Options of {@link LanguageModel.load}. */
export interface LanguageModelOptions {
  /** Kernel family; the best that the device can run unless given. */
  readonly tier?: Tier | 'auto';
  /** Tokens that the cache holds, prompt and answer together. Default: the model's own, at most 8192. */
  readonly contextLength?: number;
  /**
   * Most tokens of a prompt that run through the layers together: bounds the memory for activations. Default: as many as take
   * 256 MiB or an eighth of what the weights take, at least 2048 and at most 8192; 2048 on software adapters.
   */
  readonly chunkSize?: number;
  /** Sparse attention of prompts. Default: dense. */
  readonly patterns?: ModelPatterns;
  /** How a pattern file is read. */
  readonly patternOptions?: LayerPatternOptions;
  /**
   * Chunks with which the sequence has fewer tokens than this attend densely, and so do chunks of fewer than 64 tokens, such as questions
   * behind a text: for these an index costs more than it saves. 0: no chunk does. Default 4096.
   */
  readonly denseBelow?: number;
  /** Whether the matrix tier computes its products on subgroup matrices (tensor cores), too, or how. Default true. */
  readonly matrixProducts?: boolean | MatrixGemmTiling;
  /** Options of the attention. */
  readonly attention?: Omit<SparsePrefillOptions, 'tier'>;
  readonly signal?: AbortSignal;
  /** Weights that are on the GPU, in bytes. */
  readonly onProgress?: (progress: { readonly fraction: number; readonly bytes: number; readonly totalBytes: number }) => void;
}

/** Progress of a prefill. */
export interface ModelProgress {
  /** Share of the layers of all chunks that are done, 0 to 1. */
  readonly fraction: number;
  /** Tokens whose chunks are done. */
  readonly tokens: number;
  readonly totalTokens: number;
}

/** Options of {@link LanguageModel.prefill}. */
export interface ModelPrefillOptions {
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: ModelProgress) => void;
  /** Called with the logits `[rows, vocabSize]` of some neighbouring tokens, from index `first` of the call's tokens on. */
  readonly onLogits?: (first: number, logits: Float32Array) => void;
  /** Compute the log-probability of every token after the first one: what perplexity is made of. */
  readonly logProbs?: boolean;
  /** What heads attend to in this call, instead of the model's own patterns. */
  readonly patterns?: ModelPatterns;
  /** As the model's own, for this call. */
  readonly denseBelow?: number;
  /** Report the density of the attention. Reads every index back, so layers wait for each other. */
  readonly inspect?: boolean;
  /**
   * Sees each layer's queries, keys and values on the GPU, with RoPE, before they are used: to capture or to analyse them. The
   * buffers are valid until the returned promise resolves. Layers wait for each other.
   */
  readonly onAttention?: (call: AttentionCall) => void | Promise<void>;
  /** Measure GPU time (needs `timestamp-query`; silently absent from the result otherwise). */
  readonly timestamps?: boolean;
  /** Tokens that will follow, for models whose rotary frequencies depend on the length of the whole. */
  readonly expectedTokens?: number;
}

/** What {@link ModelPrefillOptions.onAttention} sees: some heads of a layer, and a chunk of the prompt. */
export interface AttentionCall {
  /** Counted from 0. */
  readonly layer: number;
  /** First query head in `attention`; a layer comes in parts when its cache takes several buffers. */
  readonly firstHead: number;
  /** Queries of the chunk, keys and values of everything up to its end. */
  readonly attention: AttentionLayer;
}

/** Result of {@link LanguageModel.prefill}. */
export interface ModelPrefillResult {
  /** Logits of the last token, `[vocabSize]`. */
  readonly logits: Float32Array;
  /** Log-probability of each token of the call after the first one, given all before it. */
  readonly logProbs?: Float32Array;
  /** Query-key pairs that all heads computed over the causal total, 0 to 1, when `inspect` was asked for. */
  readonly density?: number;
  /** GPU milliseconds of everything but attention, and of attention by stage. */
  readonly times?: { readonly linearMs: number; readonly attention: StageTimes };
}

/** Options of {@link LanguageModel.generate}. */
export interface GenerateOptions extends SamplingOptions {
  /** Tokens to make at most. Default: what the context has room for. */
  readonly maxTokens?: number;
  /** Tokens that end the answer, and are not part of it. Default: those of the model's config. */
  readonly stop?: readonly number[];
  /** What heads attend to in these tokens, instead of the model's own patterns. */
  readonly patterns?: ModelPatterns;
  /** As the model's own, for these tokens. */
  readonly denseBelow?: number;
  readonly signal?: AbortSignal;
  /** Progress of the prompt. */
  readonly onProgress?: (progress: ModelProgress) => void;
}

/** Bytes that a model holds on the GPU. */
export interface ModelMemory {
  readonly weights: number;
  readonly cache: number;
  /**
   * Activations between the kernels of a prefill, and of a decoding step. In the matrix tier also the f16 of quantised weights, of one
   * matrix at a time and at most 128 MiB.
   */
  readonly activations: MemoryReport;
  readonly decoding: MemoryReport;
  /** Sparse indices and what building them takes. */
  readonly attention: MemoryReport;
}

const STORAGE = 0x80 | 0x04 | 0x08; // STORAGE | COPY_SRC | COPY_DST
const READBACK = 0x01 | 0x08; // MAP_READ | COPY_DST
const DEFAULT_CONTEXT = 8192;
/** Buffers of a size that are kept for readbacks: as many as decoding has on the way, and one that is being read. */
const READBACKS = 3;
/** Submissions on the way at a time. */
const SUBMISSIONS_IN_FLIGHT = 3;
/**
 * Layers share a submission as long as it stays below so many operations: a submission costs milliseconds however little it does,
 * and yet has to end in time for watchdogs and aborts, 0.2 s on a GPU of 1 TFLOPS.
 */
const SUBMISSION_FLOPS = 2e11;
/** Bytes of activations that the default chunk may take whatever the model, and the share of the weights' bytes that it may take. */
const ACTIVATION_BYTES = 2 ** 28;
const ACTIVATION_SHARE = 1 / 8;
/** Bytes of logits that are made at a time when all are asked for. */
const LOGITS_BYTES = 2 ** 26;

/** `[layer][head]` */
type LayerPatterns = readonly (readonly HeadPattern[])[];

/** Where a chunk of a prompt runs. */
interface Chunk {
  /** Index of its first token in the call. */
  readonly first: number;
  readonly rows: number;
  /** Position of its first token in the sequence. */
  readonly position: number;
}

interface Timers {
  readonly linear: StageTimer;
  readonly attention: StageTimer;
}

/** A chunk in a layer. */
interface LayerStep {
  readonly rec: Recorder;
  readonly index: number;
  readonly chunk: Chunk;
  /** Tokens of the chunk. */
  readonly ids: GPUBuffer;
  /** Residual stream. */
  readonly x: GPUBuffer;
  readonly patterns: readonly HeadPattern[];
  readonly timers: Timers | undefined;
}

/** Rows that a product begins with, normed or to be. */
type NormedRows = Pick<Product, 'a' | 'norm' | 'rows' | 'firstRow'>;

/** Workspace of a layer's attention, and the attention. */
interface LayerInputs {
  readonly qkv: GPUBuffer;
  readonly o: GPUBuffer;
  readonly calls: readonly AttentionCall[];
}

/** What looking at the attention of a call adds up. */
interface Watch {
  pairs: number;
  causal: number;
  readonly onAttention?: (call: AttentionCall) => void | Promise<void>;
}

/**
 * A language model on one `GPUDevice`: long prompts with sparse attention, then one token after another.
 *
 * ```ts
 * const model = await LanguageModel.load(device, loaded, { contextLength: 131072, patterns });
 * for await (const token of model.generate(tokens, { maxTokens: 200 })) print(token);
 * ```
 *
 * The sequence grows with every call, so a conversation goes on where it stopped; {@link reset} starts a new one.
 * One call runs at a time.
 */
export class LanguageModel {
  readonly device: GPUDevice;
  readonly config: ModelConfig;
  readonly profile: DeviceProfile;
  /** Tokens that the cache holds. */
  readonly contextLength: number;
  readonly #kernels: ModelKernels;
  readonly #weights: ModelWeights;
  readonly #cache: KvCache;
  readonly #attention: SparsePrefill;
  readonly #patterns: LayerPatterns;
  readonly #denseBelow: number;
  readonly #chunkSize: number;
  readonly #pipelines: PipelineCache;
  readonly #pool: BufferPool;
  /** Workspace of the decoding steps, which are recorded once. */
  readonly #decodePool: BufferPool;
  /** Of prefill. */
  readonly #bindGroups: BindGroups;
  /** Word 0: position of row 0. */
  readonly #state: GPUBuffer;
  readonly #token: GPUBuffer;
  readonly #logits: GPUBuffer;
  /** See {@link layerMatrixElements}. */
  readonly #layerElements: number;
  readonly #frequencies: GPUBuffer;
  readonly #buffers: readonly GPUBuffer[];
  /** Buffers for readbacks, free, by size: to make one takes longer than to record a layer. */
  readonly #readbacks = new Map<number, GPUBuffer[]>();
  readonly #lost: Promise<never>;
  #lostInfo: GPUDeviceLostInfo | undefined;
  #ropeFactor = 1;
  #decodeSteps: { readonly factor: number; readonly steps: readonly Step[] } | undefined;
  /** When the last submission of a prompt was done. */
  #busyUntil = 0;
  /** Tokens in the cache. */
  #position = 0;
  /** The last token that was generated: part of the sequence, but not in the cache yet. */
  #pending: number | undefined;
  #busy = false;
  #destroyed = false;

  /**
   * Reads the weights onto the GPU, allocates the cache and compiles the kernels.
   *
   * @throws {@link MinferenceError} that names what is wrong; or the signal's reason.
   */
  static async load(device: GPUDevice, model: LoadedModel, options: LanguageModelOptions = {}): Promise<LanguageModel> {
    const { config } = model;
    const profile = profileDevice(device, options.tier);
    const settings = resolveOptions(profile, model, options);
    options.signal?.throwIfAborted();
    const { onProgress } = options;
    const weights = await uploadWeights(device, profile, model, {
      signal: options.signal,
      onProgress: onProgress && ((bytes, totalBytes) => onProgress({ fraction: bytes / totalBytes, bytes, totalBytes })),
    });
    let instance: LanguageModel | undefined;
    try {
      const error = await withErrorScopes(device, () => {
        instance = new LanguageModel(device, profile, config, weights, settings, options);
      });
      if (error) throw error;
      await instance?.prepare();
      options.signal?.throwIfAborted();
      return instance as LanguageModel;
    } catch (error) {
      instance?.destroy();
      weights.destroy();
      throw error;
    }
  }

  private constructor(
    device: GPUDevice,
    profile: DeviceProfile,
    config: ModelConfig,
    weights: ModelWeights,
    settings: Settings,
    options: LanguageModelOptions,
  ) {
    this.device = device;
    this.profile = profile;
    this.config = config;
    this.contextLength = settings.contextLength;
    this.#kernels = settings.kernels;
    this.#chunkSize = settings.chunkSize;
    this.#patterns = settings.patterns;
    this.#denseBelow = settings.denseBelow;
    this.#layerElements = layerMatrixElements(config);
    this.#weights = weights;
    this.#pipelines = pipelinesOf(device);
    this.#pool = new BufferPool(device);
    this.#decodePool = new BufferPool(device);
    this.#bindGroups = new BindGroups(device);
    this.#attention = new SparsePrefill(device, {
      ...options.attention,
      ...(options.tier ? { tier: options.tier } : {}),
      reuseBindGroups: true,
    });
    this.#cache = new KvCache(device, profile, config, settings.contextLength, settings.kernels.activation);
    const buffer = (label: string, size: number): GPUBuffer =>
      device.createBuffer({ label: `minference ${label}`, size: Math.max(16, size), usage: STORAGE });
    this.#state = buffer('state', 16);
    this.#token = buffer('token', 16);
    this.#logits = buffer('logits', config.vocabSize * 4);
    this.#frequencies = buffer('frequencies', config.rope.rotaryDim * 4);
    this.#buffers = [this.#state, this.#token, this.#logits, this.#frequencies];
    this.#lost = device.lost.then((info) => {
      this.#lostInfo = info;
      throw deviceLost(info);
    });
    this.#lost.catch(() => {}); // Calls race against it; none may be running.
  }

  /** Tokens of the sequence so far. */
  get length(): number {
    return this.#position + (this.#pending === undefined ? 0 : 1);
  }

  /**
   * Compiles the kernels of long prompts, of short ones and of decoding. {@link load} has done it for the model's own patterns.
   *
   * @param patterns what else heads will attend to
   */
  async prepare(patterns?: ModelPatterns): Promise<void> {
    const { config } = this;
    const { embedding, layers, head } = this.#weights;
    const specs: ShaderSpec[] = [
      ...embedding.parts.map((part) => embeddingShader(part.type)),
      rmsNormShader(this.#kernels),
      ropeShader(this.#kernels, config),
      swigluShader(this.#kernels),
      decodeAttentionShader(this.#kernels, config),
      decodeCombineShader(this.#kernels, config),
      argmaxShader(false),
      argmaxShader(true),
      ...this.#productShaders(head, 'f32', [1], true),
    ];
    // Software adapters compile for long.
    const few = this.profile.software ? [] : FEW_ROWS_TILINGS.map((t) => t.blockM).filter((n) => n < this.#chunkSize);
    const rows = [1, ...few, this.#chunkSize];
    for (const layer of layers) {
      specs.push(
        ...this.#productShaders(layer.qkv, 'activation', rows, true),
        ...this.#productShaders(layer.output, 'add', rows),
      );
      specs.push(...this.#productShaders(layer.down, 'add', rows));
      for (const n of rows) {
        const output = fusesSwiglu(this.#kernels, layer.gateUp, n) ? 'swiglu' : 'activation';
        specs.push(...this.#productShaders(layer.gateUp, output, [n], true));
      }
    }
    const own = patterns ? modelPatterns(config, patterns) : this.#patterns;
    const kinds = [...new Set(['dense' as const, ...own.flat().map((p) => p.kind)])];
    const { headDim, numHeads, numKvHeads } = config;
    const attention = { headDim, dtype: this.#kernels.activation, groupSize: numHeads / numKvHeads, kinds };
    await Promise.race([Promise.all([this.#pipelines.prepare(specs), this.#attention.prepare(attention)]), this.#lost]);
  }

  #productShaders(matrix: Matrix, output: MatrixProductOutput, rows: readonly number[], normed = false): ShaderSpec[] {
    return rows.flatMap((n) => productShaders(this.#kernels, matrix, output, n, normed && fusesNorm(n, matrix.columns)));
  }

  /**
   * Appends tokens to the sequence.
   *
   * An abort, or a failure, leaves the sequence as it was after the last whole chunk.
   *
   * @throws {@link MinferenceError} `limit` when the context has no room for them; `device-lost`, `out-of-memory` or
   * `gpu`; or the signal's reason.
   */
  prefill(tokens: ArrayLike<number>, options: ModelPrefillOptions = {}): Promise<ModelPrefillResult> {
    return this.#exclusive(async () => {
      try {
        return await this.#prefill(this.#checkTokens(tokens), options);
      } catch (error) {
        this.#forgetFailed(error);
        throw error;
      }
    });
  }

  /**
   * Appends tokens to the sequence and yields the ones that the model answers with. All of them, and the one that ended
   * the answer, become part of the sequence. Tokens may be empty when the sequence is not.
   *
   * @throws as {@link prefill} does.
   */
  async *generate(tokens: ArrayLike<number>, options: GenerateOptions = {}): AsyncGenerator<number, void, void> {
    this.#enter();
    try {
      const { signal, onProgress } = options;
      const sampler = new Sampler(options);
      const stop = new Set(options.stop ?? this.config.stopIds);
      const given = this.#checkTokens(tokens, this.#pending === undefined ? 1 : 0);
      const room = this.contextLength - this.length - given.length;
      if (options.maxTokens !== undefined) {
        checkInteger('maxTokens', options.maxTokens, 0, Number.MAX_SAFE_INTEGER);
        if (options.maxTokens > room) throw contextOverflow('maxTokens', options.maxTokens, room);
      }
      const maxTokens = options.maxTokens ?? Math.max(0, room);
      const { logits } = await this.#prefill(given, {
        ...(signal ? { signal } : {}),
        ...(onProgress ? { onProgress } : {}),
        ...(options.patterns ? { patterns: options.patterns } : {}),
        ...(options.denseBelow === undefined ? {} : { denseBelow: options.denseBelow }),
        expectedTokens: maxTokens,
      });
      if (maxTokens === 0) return;
      const first = sampler.sample(logits);
      yield* sampler.greedy
        ? this.#decodeGreedily(first, maxTokens, stop, signal)
        : this.#decodeSampled(first, maxTokens, stop, sampler, signal);
    } catch (error) {
      this.#forgetFailed(error);
      throw error;
    } finally {
      this.#busy = false;
    }
  }

  /** Starts a new sequence. */
  reset(): void {
    this.truncate(0);
  }

  /**
   * Keeps the first `length` tokens of the sequence: another question may then follow the same text.
   *
   * @throws {@link MinferenceError} `invalid-argument` for more tokens than there are
   */
  truncate(length: number): void {
    this.#checkAlive();
    if (this.#busy) throw busy();
    checkInteger('length', length, 0, this.length);
    if (length === this.length) return;
    this.#position = length;
    this.#pending = undefined;
  }

  /** What the model holds on the GPU. */
  memory(): ModelMemory {
    return {
      weights: this.#weights.bytes,
      cache: this.#cache.bytes,
      activations: this.#pool.report(),
      decoding: this.#decodePool.report(),
      attention: this.#attention.memory().record,
    };
  }

  /** Frees everything. The device stays. */
  destroy(): void {
    this.#destroyed = true;
    this.#weights.destroy();
    this.#cache.destroy();
    this.#attention.destroy();
    this.#bindGroups.clear();
    this.#pool.destroy();
    this.#decodePool.destroy();
    for (const buffer of [...this.#buffers, ...[...this.#readbacks.values()].flat()]) buffer.destroy();
    this.#readbacks.clear();
  }

  // ---- checks

  #checkAlive(): void {
    if (this.#lostInfo) throw deviceLost(this.#lostInfo);
    if (this.#destroyed) throw new MinferenceError('gpu', 'the model was destroyed');
  }

  #enter(): void {
    this.#checkAlive();
    if (this.#busy) throw busy();
    this.#busy = true;
  }

  async #exclusive<T>(body: () => Promise<T>): Promise<T> {
    this.#enter();
    try {
      return await body();
    } finally {
      this.#busy = false;
    }
  }

  #checkTokens(tokens: ArrayLike<number>, least = 1): number[] {
    if (typeof tokens !== 'object' || tokens === null || typeof tokens.length !== 'number') {
      throw invalidArgument('tokens', tokens, 'a list of token ids');
    }
    if (tokens.length < least) throw invalidArgument('tokens', tokens, `at least ${least} token`);
    const room = this.contextLength - this.length;
    if (tokens.length > room) throw contextOverflow('tokens.length', tokens.length, room);
    const most = this.config.vocabSize - 1;
    const ids = Array.from(tokens);
    // A name for each of a million tokens would take longer than all their checks.
    const wrong = ids.findIndex((id) => !(Number.isInteger(id) && id >= 0 && id <= most));
    if (wrong >= 0) checkInteger(`tokens[${wrong}]`, ids[wrong], 0, most);
    return ids;
  }

  // ---- prefill

  async #prefill(given: readonly number[], options: ModelPrefillOptions): Promise<ModelPrefillResult> {
    const { signal, onProgress, onLogits, logProbs, timestamps, expectedTokens = 0 } = options;
    signal?.throwIfAborted();
    const { inspect, onAttention, denseBelow = this.#denseBelow } = options;
    checkInteger('denseBelow', denseBelow, 0, Number.MAX_SAFE_INTEGER);
    const patterns = options.patterns ? modelPatterns(this.config, options.patterns) : this.#patterns;
    const watch = inspect || onAttention ? { pairs: 0, causal: 0, ...(onAttention ? { onAttention } : {}) } : undefined;
    const tokens = this.#pending === undefined ? given : [this.#pending, ...given];
    // Callers count from their own first token.
    const skipped = tokens.length - given.length;
    if (this.#position === 0) this.#chooseFrequencies(tokens.length + expectedTokens);
    const chunks = this.#chunks(tokens.length);
    const timed = timestamps && this.device.features.has('timestamp-query');
    const timers = timed ? { linear: new StageTimer(this.device), attention: new StageTimer(this.device) } : undefined;
    const times = { linearMs: 0, attention: { estimate: 0, topk: 0, convert: 0, kernel: 0 } };
    const probabilities: Float32Array[] = [];
    const inFlight: Promise<void>[] = [];
    const refused: Promise<void>[] = [];
    let last: ArrayBuffer | undefined;
    try {
      for (const chunk of chunks) {
        const rec = new Recorder(this.device, this.#pool, this.#pipelines, this.#bindGroups);
        try {
          const report = (layers: number): void => {
            const done = layers === this.config.layers;
            if (done) {
              this.#position = chunk.position + chunk.rows;
              if (chunk === chunks[0]) this.#pending = undefined;
            }
            onProgress?.({
              fraction: (chunk.first + (chunk.rows * layers) / this.config.layers) / tokens.length,
              tokens: chunk.first + (done ? chunk.rows : 0),
              totalTokens: tokens.length,
            });
          };
          const x = this.#watched(refused, () => rec.workspace('residual stream', chunk.rows * this.config.hiddenSize * 4));
          await this.#runChunk(rec, chunk, tokens, x, { signal, timers, report, patterns, denseBelow, watch, inFlight, refused });
          // Layers that are looked at record their rest later.
          if (watch) await Promise.all(inFlight);
          if (onLogits || logProbs) {
            const visit =
              onLogits && ((row: number, logits: Float32Array) => this.#visit(onLogits, chunk.first + row - skipped, logits));
            const p = await this.#allLogits(rec, chunk, tokens, x, logProbs === true, visit);
            if (p) probabilities.push(p);
          }
          if (chunk === chunks.at(-1)) last = await this.#lastLogits(rec, x, chunk.rows);
        } finally {
          rec.releaseAll();
        }
        if (timers) {
          for (const { ms } of await this.#race(timers.linear.readPasses())) times.linearMs += ms;
          for (const { stage, ms } of await this.#race(timers.attention.readPasses())) times.attention[stage] += ms;
        }
      }
      await Promise.all([...refused, ...inFlight]);
      const logits = new Float32Array(last as ArrayBuffer);
      signal?.throwIfAborted();
      return {
        logits,
        ...(logProbs ? { logProbs: concatenated(probabilities).subarray(skipped, tokens.length - 1) } : {}),
        ...(inspect && watch ? { density: watch.pairs / watch.causal } : {}),
        ...(timers ? { times } : {}),
      };
    } finally {
      // First what could not be made: what was made with it says less.
      const rest = await Promise.allSettled([...refused, ...inFlight]);
      timers?.linear.destroy();
      timers?.attention.destroy();
      const failed = rest.find((r): r is PromiseRejectedResult => r.status === 'rejected');
      // biome-ignore lint/correctness/noUnsafeFinally: a GPU error outranks the abort that may be under way
      if (failed) throw failed.reason;
    }
  }

  /** Hands logits to the caller without those of a token that the call did not give. */
  #visit(onLogits: (first: number, logits: Float32Array) => void, first: number, logits: Float32Array): void {
    if (first >= 0) onLogits(first, logits);
    else if (logits.length > this.config.vocabSize) onLogits(0, logits.subarray(this.config.vocabSize));
  }

  /** Chunks of about the same size: a short one would have few rows to estimate sparse indices from. */
  #chunks(count: number): Chunk[] {
    const pieces = Math.ceil(count / this.#chunkSize);
    const rows = Math.min(this.#chunkSize, Math.ceil(count / pieces / 64) * 64);
    return Array.from({ length: Math.ceil(count / rows) }, (_, i) => ({
      first: i * rows,
      rows: Math.min(rows, count - i * rows),
      position: this.#position + i * rows,
    }));
  }

  #chooseFrequencies(length: number): void {
    const { frequencies, factor } = ropeFrequencies(this.config.rope, length);
    this.device.queue.writeBuffer(this.#frequencies, 0, ropeTable(frequencies));
    this.#ropeFactor = factor;
  }

  /** Operations of a layer for a chunk, at most: dense attention. */
  #layerFlops({ rows, position }: Chunk): number {
    const { numHeads, headDim } = this.config;
    return rows * (2 * this.#layerElements + 4 * numHeads * headDim * (position + rows));
  }

  /** Submits a chunk's way through all layers; waits for no more than it must. */
  async #runChunk(
    rec: Recorder,
    chunk: Chunk,
    tokens: readonly number[],
    x: GPUBuffer,
    options: {
      readonly signal: AbortSignal | undefined;
      readonly timers: Timers | undefined;
      /** Told how many layers are done. */
      readonly report: (layers: number) => void;
      readonly patterns: LayerPatterns;
      readonly denseBelow: number;
      readonly watch: Watch | undefined;
      readonly inFlight: Promise<void>[];
      readonly refused: Promise<void>[];
    },
  ): Promise<void> {
    const { signal, timers, report, patterns, denseBelow, watch, inFlight, refused } = options;
    const ids = this.#watched(refused, () => {
      const buffer = rec.workspace('tokens', chunk.rows * 4);
      this.device.queue.writeBuffer(buffer, 0, new Uint32Array(tokens.slice(chunk.first, chunk.first + chunk.rows)));
      this.device.queue.writeBuffer(this.#state, 0, new Uint32Array([chunk.position]));
      return buffer;
    });
    const together = watch ? 1 : Math.max(1, Math.floor(SUBMISSION_FLOPS / this.#layerFlops(chunk)));
    for (let first = 0; first < this.config.layers; first += together) {
      signal?.throwIfAborted();
      if (inFlight.length >= (watch ? 1 : SUBMISSIONS_IN_FLIGHT)) await inFlight.shift();
      const end = Math.min(first + together, this.config.layers);
      const steps = Array.from({ length: end - first }, (_, i) => ({
        rec,
        index: first + i,
        chunk,
        ids,
        x,
        timers,
        patterns: this.#patternsAt(patterns[first + i], chunk, denseBelow),
      }));
      let flops = 0;
      const submitted = watch
        ? this.#watchLayer(steps[0] as LayerStep, watch, signal)
        : this.#submit((encoder) => {
            for (const step of steps) flops += this.#recordLayer(encoder, step);
          });
      const start = performance.now();
      const done = submitted.then(() => {
        const now = performance.now();
        this.#attention.learnSpeed(flops, now - Math.max(start, this.#busyUntil));
        this.#busyUntil = now;
        report(end);
      });
      done.catch(() => {}); // Its turn to be waited for comes later.
      inFlight.push(done);
    }
  }

  /** Records a layer; its operations. */
  #recordLayer(encoder: GPUCommandEncoder, step: LayerStep): number {
    const { rec, timers, chunk } = step;
    const { qkv, o, calls } = this.#recordInputs(encoder, step);
    let flops = 2 * chunk.rows * this.#layerElements;
    for (const { attention } of calls) flops += this.#attention.record(encoder, attention, timers?.attention).flops;
    rec.release(qkv);
    this.#recordRest(encoder, step, o);
    return flops;
  }

  /** As {@link #recordLayer}, in submissions of its own, so that the attention can be looked at. */
  async #watchLayer(step: LayerStep, watch: Watch, signal: AbortSignal | undefined): Promise<void> {
    const { rec, chunk } = step;
    const { qkv, o, calls } = await this.#submit((encoder) => this.#recordInputs(encoder, step));
    const causal = chunk.rows * chunk.position + (chunk.rows * (chunk.rows + 1)) / 2;
    for (const call of calls) {
      await watch.onAttention?.(call);
      const { heads = [] } = await this.#attention.run(call.attention, { inspect: true, ...(signal ? { signal } : {}) });
      watch.pairs += heads.reduce((sum, { density }) => sum + density * causal, 0);
      watch.causal += heads.length * causal;
    }
    await this.#submit((encoder) => {
      rec.release(qkv);
      this.#recordRest(encoder, step, o);
    });
  }

  /** Everything before the attention of a layer, and what the attention then runs on. */
  #recordInputs(encoder: GPUCommandEncoder, { rec, index, chunk, ids, x, timers, patterns }: LayerStep): LayerInputs {
    if (index === 0) recordEmbedding(rec, this.#weights.embedding, ids, chunk.rows, x);
    const { rows, position } = chunk;
    const { headDim, numHeads, numKvHeads } = this.config;
    const bytes = BYTES[this.#kernels.activation];
    const qkv = this.#recordQkv(rec, this.#weights.layers[index] as LayerWeights, index, x, rows);
    encodeSteps(encoder, rec.steps.splice(0), timers?.linear);
    const o = rec.workspace('attention output', rows * numHeads * headDim * bytes);
    const group = numHeads / numKvHeads;
    const cache = { headStride: this.contextLength * headDim, rowStride: headDim };
    const calls = (this.#cache.layers[index] ?? []).map(({ kvStart, kvCount, k, v }): AttentionCall => {
      const firstHead = kvStart * group;
      const offset = firstHead * headDim * bytes;
      return {
        layer: index,
        firstHead,
        attention: {
          q: { buffer: qkv, offset, headStride: headDim, rowStride: (numHeads + 2 * numKvHeads) * headDim },
          k: { buffer: k, ...cache },
          v: { buffer: v, ...cache },
          o: { buffer: o, offset, headStride: headDim, rowStride: numHeads * headDim },
          numHeads: kvCount * group,
          numKvHeads: kvCount,
          headDim,
          seqLen: rows,
          kvLen: position + rows,
          queryOffset: position,
          dtype: this.#kernels.activation,
          patterns: patterns.slice(firstHead, (kvStart + kvCount) * group),
        },
      };
    });
    return { qkv, o, calls };
  }

  /** Everything behind the attention of a layer. */
  #recordRest(encoder: GPUCommandEncoder, { rec, index, chunk, x, timers }: LayerStep, o: GPUBuffer): void {
    const layer = this.#weights.layers[index] as LayerWeights;
    recordProduct(rec, this.#kernels, { matrix: layer.output, a: o, rows: chunk.rows, c: x, output: 'add' });
    rec.release(o);
    this.#recordMlp(rec, layer, x, chunk.rows);
    encodeSteps(encoder, rec.steps.splice(0), timers?.linear);
  }

  /** Queries, keys and values of a layer; keys and values go to the cache. Returns the workspace with the queries. */
  #recordQkv(rec: Recorder, layer: LayerWeights, index: number, x: GPUBuffer, rows: number): GPUBuffer {
    const { config } = this;
    const bytes = BYTES[this.#kernels.activation];
    const qkv = rec.workspace('qkv', rows * layer.qkv.rows * bytes);
    this.#recordNormed(rec, layer.attentionNorm, x, rows, (normed) =>
      recordProduct(rec, this.#kernels, { ...normed, matrix: layer.qkv, c: qkv, output: 'activation' }),
    );
    recordRope(rec, this.#kernels, {
      config,
      state: this.#state,
      qkv,
      frequencies: this.#frequencies,
      factor: this.#ropeFactor,
      norms: layer.headNorms,
      groups: this.#cache.layers[index] ?? [],
      capacity: this.contextLength,
      rows,
    });
    return qkv;
  }

  #recordMlp(rec: Recorder, layer: LayerWeights, x: GPUBuffer, rows: number): void {
    const { intermediateSize } = this.config;
    const kernels = this.#kernels;
    const bytes = BYTES[kernels.activation];
    const inner = rec.workspace('inner', rows * intermediateSize * bytes);
    const matrix = layer.gateUp;
    this.#recordNormed(rec, layer.mlpNorm, x, rows, (normed) => {
      if (fusesSwiglu(kernels, matrix, rows)) {
        recordSwigluProduct(rec, kernels, { ...normed, matrix, c: inner });
        return;
      }
      const gateUp = rec.workspace('gate and up', rows * 2 * intermediateSize * bytes);
      recordProduct(rec, kernels, { ...normed, matrix, c: gateUp, output: 'activation' });
      recordSwiglu(rec, kernels, gateUp, inner, intermediateSize, rows);
      rec.release(gateUp);
    });
    recordProduct(rec, kernels, { matrix: layer.down, a: inner, rows, c: x, output: 'add' });
    rec.release(inner);
  }

  /** What the heads of a layer with these patterns attend to in a chunk. */
  #patternsAt(own: readonly HeadPattern[] | undefined, { position, rows }: Chunk, denseBelow: number): readonly HeadPattern[] {
    const end = position + rows;
    const { numHeads, slidingWindow } = this.config;
    const all = (pattern: HeadPattern): HeadPattern[] => new Array<HeadPattern>(numHeads).fill(pattern);
    if (slidingWindow !== undefined && end > slidingWindow)
      return all({ kind: 'a_shape', initSize: 0, localSize: slidingWindow });
    const sparse = end >= denseBelow && (denseBelow === 0 || rows >= INDEX_BLOCK);
    return own && sparse ? own : all({ kind: 'dense' });
  }

  /** Logits of one row of the residual stream, into the model's own buffer. */
  #recordLogits(rec: Recorder, x: GPUBuffer, row: number): void {
    const { head, norm } = this.#weights;
    const record = (normed: NormedRows): void =>
      recordProduct(rec, this.#kernels, { ...normed, matrix: head, c: this.#logits, output: 'f32' });
    this.#recordNormed(rec, norm, x, 1, record, row);
  }

  /** Records what begins with a norm of rows of the residual stream: in a product of few rows, or before it. */
  #recordNormed(
    rec: Recorder,
    weight: GPUBuffer,
    x: GPUBuffer,
    rows: number,
    record: (normed: NormedRows) => void,
    firstRow = 0,
  ): void {
    const { hiddenSize: width, rmsEps: eps } = this.config;
    if (fusesNorm(rows, width)) {
      record({ a: x, norm: { weight, eps }, rows, firstRow });
      return;
    }
    const y = rec.workspace('normed', rows * width * BYTES[this.#kernels.activation]);
    recordRmsNorm(rec, this.#kernels, { x, weight, y, width, eps, rows, firstRow });
    record({ a: y, rows });
    rec.release(y);
  }

  #lastLogits(rec: Recorder, x: GPUBuffer, rows: number): Promise<ArrayBuffer> {
    return this.#submitAndRead(this.#logits, this.config.vocabSize * 4, (encoder) => {
      this.#recordLogits(rec, x, rows - 1);
      encodeSteps(encoder, rec.steps.splice(0));
    });
  }

  /** Logits of all rows of a chunk, some at a time, for the caller or for the log-probabilities of the next tokens. */
  async #allLogits(
    rec: Recorder,
    chunk: Chunk,
    tokens: readonly number[],
    x: GPUBuffer,
    logProbs: boolean,
    visit: ((row: number, logits: Float32Array) => void) | undefined,
  ): Promise<Float32Array | undefined> {
    const { hiddenSize, rmsEps, vocabSize } = this.config;
    const limit = Math.min(LOGITS_BYTES, this.profile.limits.maxStorageBufferBindingSize, this.profile.limits.maxBufferSize);
    const most = Math.max(1, Math.min(chunk.rows, Math.floor(limit / (4 * vocabSize))));
    // The last token's row has no target.
    const next = Array.from({ length: chunk.rows }, (_, i) => tokens[chunk.first + i + 1] ?? 0);
    const { h, logits, targets, out } = await accepted(this.device, () => {
      const buffers = {
        h: rec.workspace('normed', chunk.rows * hiddenSize * BYTES[this.#kernels.activation]),
        logits: rec.workspace('all logits', most * vocabSize * 4),
        targets: rec.workspace('targets', chunk.rows * 4),
        out: rec.workspace('log-probabilities', chunk.rows * 4),
      };
      this.device.queue.writeBuffer(buffers.targets, 0, new Uint32Array(next));
      return buffers;
    });
    for (let row = 0; row < chunk.rows; row += most) {
      const rows = Math.min(most, chunk.rows - row);
      await this.#submit((encoder) => {
        recordRmsNorm(rec, this.#kernels, {
          x,
          weight: this.#weights.norm,
          y: h,
          width: hiddenSize,
          eps: rmsEps,
          rows,
          firstRow: row,
        });
        recordProduct(rec, this.#kernels, { matrix: this.#weights.head, a: h, rows, c: logits, output: 'f32' });
        if (logProbs) recordLogProbs(rec, logits, vocabSize, targets, out, row, rows);
        encodeSteps(encoder, rec.steps.splice(0));
      });
      visit?.(row, new Float32Array(await this.#read(logits, rows * vocabSize * 4)));
    }
    return logProbs ? new Float32Array(await this.#read(out, chunk.rows * 4)) : undefined;
  }

  // ---- decoding

  /** The steps that turn the token in `#token`, at the position in `#state`, into logits and their argmax in `#token`. */
  #decoding(): readonly Step[] {
    if (this.#decodeSteps?.factor === this.#ropeFactor) return this.#decodeSteps.steps;
    const { config } = this;
    const { numHeads, headDim } = config;
    const rec = new Recorder(this.device, this.#decodePool, this.#pipelines);
    const x = rec.workspace('residual stream', config.hiddenSize * 4);
    recordEmbedding(rec, this.#weights.embedding, this.#token, 1, x);
    for (const [index, layer] of this.#weights.layers.entries()) {
      const q = this.#recordQkv(rec, layer, index, x, 1);
      const o = rec.workspace('attention output', numHeads * headDim * BYTES[this.#kernels.activation]);
      recordDecodeAttention(rec, this.#kernels, {
        config,
        state: this.#state,
        q,
        o,
        groups: this.#cache.layers[index] ?? [],
        capacity: this.contextLength,
        splits: decodeSplits(this.#kernels, config, this.contextLength),
      });
      rec.release(q);
      recordProduct(rec, this.#kernels, { matrix: layer.output, a: o, rows: 1, c: x, output: 'add' });
      rec.release(o);
      this.#recordMlp(rec, layer, x, 1);
    }
    this.#recordLogits(rec, x, 0);
    recordArgmax(rec, this.#logits, config.vocabSize, this.#token);
    const steps = [...rec.steps];
    rec.releaseAll();
    this.#decodeSteps = { factor: this.#ropeFactor, steps };
    return steps;
  }

  /** Runs one token through the model; resolves to a copy of `bytes` of a buffer afterwards. */
  #step(position: number, source: GPUBuffer, bytes: number): Promise<ArrayBuffer> {
    return this.#submitAndRead(source, bytes, (encoder) => {
      this.device.queue.writeBuffer(this.#state, 0, new Uint32Array([position]));
      encodeSteps(encoder, this.#decoding());
    });
  }

  async *#decodeSampled(
    first: number,
    maxTokens: number,
    stop: ReadonlySet<number>,
    sampler: Sampler,
    signal: AbortSignal | undefined,
  ): AsyncGenerator<number, void, void> {
    this.#pending = first;
    for (let made = 1; ; made++) {
      const token = this.#pending;
      if (stop.has(token)) return;
      yield token;
      if (made >= maxTokens) return;
      signal?.throwIfAborted();
      this.device.queue.writeBuffer(this.#token, 0, new Uint32Array([token]));
      const logits = new Float32Array(await this.#step(this.#position, this.#logits, this.config.vocabSize * 4));
      this.#position++;
      this.#pending = sampler.sample(logits);
    }
  }

  /** The next token goes from step to step on the GPU, which runs ahead of what the CPU has seen. */
  async *#decodeGreedily(
    first: number,
    maxTokens: number,
    stop: ReadonlySet<number>,
    signal: AbortSignal | undefined,
  ): AsyncGenerator<number, void, void> {
    this.#pending = first;
    this.device.queue.writeBuffer(this.#token, 0, new Uint32Array([first]));
    const inFlight: Promise<ArrayBuffer>[] = [];
    let started = 0;
    try {
      for (let made = 1; ; made++) {
        const token = this.#pending;
        if (stop.has(token)) return;
        while (started < maxTokens - 1 && inFlight.length < 2) {
          const step = this.#step(this.#position + inFlight.length, this.#token, 4);
          step.catch(() => {}); // Reported when its turn comes.
          inFlight.push(step);
          started++;
        }
        yield token;
        if (made >= maxTokens) return;
        signal?.throwIfAborted();
        const next = inFlight.shift();
        if (!next) return;
        this.#pending = new Uint32Array(await next)[0];
        this.#position++;
        if (this.#pending === undefined) return;
      }
    } finally {
      // What ran ahead wrote to the cache past the sequence's end, where the next tokens go.
      await Promise.allSettled(inFlight);
    }
  }

  // ---- GPU

  /** Records and submits, then calls `submitted`; resolves to what `body` returned when the GPU is done, rejects when it refuses or is lost. */
  async #submit<T>(body: (encoder: GPUCommandEncoder) => T, submitted?: () => void): Promise<T> {
    this.#checkAlive();
    let result: T | undefined;
    const accepted = withErrorScopes(this.device, () => {
      const encoder = this.device.createCommandEncoder({ label: 'minference model' });
      result = body(encoder);
      this.device.queue.submit([encoder.finish()]);
      submitted?.();
    });
    const done = this.device.queue.onSubmittedWorkDone();
    const [error] = await this.#race(Promise.all([accepted, done]));
    if (error) throw error;
    return result as T;
  }

  /** As {@link #submit}, with a copy of `bytes` of a buffer at the end, which it resolves to. */
  async #submitAndRead(source: GPUBuffer, bytes: number, body: (encoder: GPUCommandEncoder) => void): Promise<ArrayBuffer> {
    let mapped: Promise<undefined> | undefined;
    let staging: GPUBuffer | undefined;
    const record = (encoder: GPUCommandEncoder): GPUBuffer => {
      staging = this.#readbacks.get(bytes)?.pop() ?? this.device.createBuffer({ size: bytes, usage: READBACK });
      body(encoder);
      encoder.copyBufferToBuffer(source, 0, staging, 0, bytes);
      return staging;
    };
    // Asked for at once. Where it fails, so does the submission, which says why.
    const map = (): void => {
      mapped = staging?.mapAsync(1); // READ
      mapped?.catch(() => {});
    };
    try {
      const buffer = await this.#submit(record, map);
      if (mapped) await this.#race(mapped);
      const copy = buffer.getMappedRange().slice(0);
      buffer.unmap();
      this.#keepReadback(buffer);
      return copy;
    } catch (error) {
      staging?.destroy();
      throw error;
    }
  }

  /** Keeps a buffer for the next readback of as many bytes. */
  #keepReadback(buffer: GPUBuffer): void {
    const kept = this.#readbacks.get(buffer.size) ?? [];
    this.#readbacks.set(buffer.size, kept);
    if (kept.length < READBACKS && !this.#destroyed) kept.push(buffer);
    else buffer.destroy();
  }

  async #read(buffer: GPUBuffer, bytes: number): Promise<ArrayBuffer> {
    const [copy] = await readBuffers(this.device, [{ buffer, size: bytes }]);
    return copy as ArrayBuffer;
  }

  /** Makes GPU calls now and gives what they return; if the GPU refuses one, a promise in `refused` rejects. */
  #watched<T>(refused: Promise<void>[], calls: () => T): T {
    let made: { readonly value: T } | undefined;
    let thrown: unknown;
    const watched = withErrorScopes(this.device, () => {
      try {
        made = { value: calls() };
      } catch (error) {
        thrown = error;
      }
    });
    const outcome = this.#race(watched).then((error) => {
      if (error) throw error;
    });
    outcome.catch(() => {}); // Its turn to be waited for comes later.
    refused.push(outcome);
    if (!made) throw thrown;
    return (made as { readonly value: T }).value;
  }

  /** After a failed allocation, forgets everything that may be made of it, so that the next prompt begins with buffers of its own. */
  #forgetFailed(error: unknown): void {
    if (!(error instanceof MinferenceError && (error.code === 'out-of-memory' || error.code === 'gpu')) || this.#destroyed)
      return;
    this.#decodeSteps = undefined;
    this.#bindGroups.clear();
    this.#attention.trim();
    this.#pool.trim();
    this.#decodePool.trim();
  }

  #race<T>(promise: Promise<T>): Promise<T> {
    return Promise.race([promise, this.#lost]);
  }
}

// Models on one device share kernels.
const caches = new WeakMap<GPUDevice, PipelineCache>();

function pipelinesOf(device: GPUDevice): PipelineCache {
  const cache = caches.get(device) ?? new PipelineCache(device);
  caches.set(device, cache);
  return cache;
}

/** Options with every default filled in and everything checked. */
interface Settings {
  readonly kernels: ModelKernels;
  readonly contextLength: number;
  readonly chunkSize: number;
  readonly denseBelow: number;
  readonly patterns: LayerPatterns;
}

function resolveOptions(profile: DeviceProfile, { config, weights }: LoadedModel, options: LanguageModelOptions): Settings {
  const { contextLength = Math.min(config.contextLength, DEFAULT_CONTEXT), denseBelow = 4096 } = options;
  let weightBytes = 0;
  for (const { byteLength } of weights.values()) weightBytes += byteLength;
  const matrix = matrixTiling(profile, options.matrixProducts);
  const { chunkSize = defaultChunk(profile, config, weightBytes, matrix !== undefined) } = options;
  checkInteger('options.contextLength', contextLength, 1, 2 ** 26);
  checkInteger('options.chunkSize', chunkSize, 1, 65535);
  checkInteger('options.denseBelow', denseBelow, 0, Number.MAX_SAFE_INTEGER);
  const activation = profile.tier === 'portable' ? 'f32' : 'f16';
  // The widest activation of a chunk must fit one binding.
  const { hiddenSize, intermediateSize, numHeads, numKvHeads, headDim } = config;
  const width = Math.max(
    4 * hiddenSize,
    BYTES[activation] * Math.max(2 * intermediateSize, (numHeads + 2 * numKvHeads) * headDim),
  );
  const limit = Math.min(profile.limits.maxStorageBufferBindingSize, profile.limits.maxBufferSize);
  const most = Math.floor(limit / width / 64) * 64;
  if (most < 64) {
    throw new MinferenceError(
      'limit',
      `64 rows of activations need ${64 * width} bytes, more than a buffer of this device (${limit})`,
    );
  }
  return {
    kernels: { profile, activation, matrix, ...(matrix ? { dequantizeFrom: DEQUANTIZE_ROWS } : {}) },
    contextLength,
    chunkSize: Math.min(chunkSize, most),
    denseBelow,
    patterns: modelPatterns(config, options.patterns, options.patternOptions),
  };
}

/**
 * Tokens of a prompt that run through the layers together unless the caller says: see {@link LanguageModelOptions.chunkSize}.
 *
 * @param fused - whether gate and up are multiplied before they reach memory
 */
export function defaultChunk(
  { software, tier }: Pick<DeviceProfile, 'software' | 'tier'>,
  config: ModelConfig,
  weightBytes: number,
  fused: boolean,
): number {
  const row = activationBytes(config, BYTES[tier === 'portable' ? 'f32' : 'f16'], fused);
  const [least, most] = [2048, software ? 2048 : 8192];
  const room = Math.max(ACTIVATION_BYTES, weightBytes * ACTIVATION_SHARE);
  return Math.min(most, Math.max(least, Math.floor(room / row / 64) * 64));
}

function matrixTiling(
  profile: DeviceProfile,
  wanted: LanguageModelOptions['matrixProducts'] = true,
): MatrixGemmTiling | undefined {
  const shapes = profile.matrix?.shapes ?? [];
  if (typeof wanted === 'boolean') return wanted ? chooseGemmTiling(shapes, profile.limits) : undefined;
  const { m, n, k } = wanted.shape;
  const known = shapes.some((s) => s.m === m && s.n === n && s.k === k);
  if (!known || !blockFits(wanted, profile.limits)) {
    throw invalidArgument('options.matrixProducts', wanted, 'a tiling that this device can run in the matrix tier, true, false');
  }
  return wanted;
}

function modelPatterns(
  config: ModelConfig,
  patterns: ModelPatterns = { kind: 'dense' },
  options: LayerPatternOptions = {},
): LayerPatterns {
  const { layers, numHeads } = config;
  const all = (pattern: HeadPattern): HeadPattern[] =>
    new Array<HeadPattern>(numHeads).fill(resolvePattern('options.patterns', pattern));
  return Array.from({ length: layers }, (_, layer) => {
    if (typeof patterns === 'function') {
      const own = patterns(layer);
      if (!Array.isArray(own)) return all(own as HeadPattern);
      if (own.length !== numHeads) {
        throw invalidArgument(`options.patterns(${layer})`, own, `one pattern, or ${numHeads} (config.numHeads)`);
      }
      return own.map((pattern: HeadPattern, head) => resolvePattern(`options.patterns(${layer})[${head}]`, pattern));
    }
    return 'kind' in patterns ? all(patterns) : patternsForLayer(patterns, layer, { ...options, numHeads });
  });
}

function contextOverflow(argument: string, value: number, room: number): MinferenceError {
  return new MinferenceError('limit', `${argument} is ${value}, but the context has room for ${room} more tokens`, {
    argument,
    value,
    allowed: `at most ${room}; load the model with a larger contextLength, or reset() it`,
  });
}

function busy(): MinferenceError {
  return new MinferenceError('invalid-argument', 'the model is busy: wait for its prefill or generation to end');
}
