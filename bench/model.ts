import { readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { type Command, Option } from 'commander';
import { openNodeDevice } from '../src/device/node.js';
import { type DeviceProfile, profileDevice, type Tier } from '../src/device/profile.js';
import { invalidArgument, MinferenceError } from '../src/errors.js';
import { BYTES } from '../src/kernels/tensor.js';
import { openNodeModel } from '../src/model/load/node.js';
import type { MatrixGemmTiling } from '../src/model/matrix_gemm.js';
import { LanguageModel, type ModelPatterns } from '../src/model/runtime.js';
import {
  activationBytes,
  BLOCK_LAYOUT,
  type LoadedModel,
  layerMatrixElements,
  type ModelConfig,
  type WeightType,
} from '../src/model/types.js';
import { parsePatternConfig, patternsForLayer } from '../src/patterns/config.js';
import { Random } from '../src/reference/random.js';
import type { HeadPattern, SparsePrefillOptions } from '../src/scheduler/types.js';
import { measureCeilings } from './ceilings.js';
import { msPerToken } from './decode.js';
import { deviceModel, deviceSlug, freeMemory } from './device_model.js';
import { type KernelTimes, KernelWatch, PARTS, type Part } from './kernel_times.js';
import { median } from './measure.js';
import { type ModelFile, type ModelRow, toMarkdown } from './model_report.js';
import { runProgram } from './peers.js';
import { writeModelReport } from './report.js';
import { merge, readEarlier, write } from './results.js';
import { namedShape, SHAPES, syntheticModel, weightBytes } from './synthetic_model.js';

/** Patterns of all heads; `mix` is each head's own of a pattern file. */
const PATTERNS: Readonly<Record<string, HeadPattern>> = {
  dense: { kind: 'dense' },
  a_shape: { kind: 'a_shape', initSize: 1024, localSize: 4096 },
  vertical_slash: { kind: 'vertical_slash', verticalSize: 1000, slashSize: 6096 },
  block_sparse: { kind: 'block_sparse', topK: 100 },
};

/** GPU memory for everything but weights, cache and activations: sparse indices, and what the driver takes. */
const RESERVE = 4 * 2 ** 30;

/**
 * Tokens that run through the layers at a time: the whole prompt, as in MInference, up to 32,768, halved until the activations take at
 * most a sixteenth of the memory. Sparse heads read all keys once per chunk, to build its index, and products of few rows leave
 * multiprocessors idle.
 *
 * @param rowBytes - activations of a token.
 */
export function defaultChunk(tokens: number, rowBytes: number, memory: number): number {
  let chunk = 32_768;
  while (chunk > 4096 && 16 * rowBytes * chunk > memory) chunk /= 2;
  return Math.min(chunk, Math.ceil(tokens / 64) * 64);
}

/** What a real model reads. */
const TEXT = 'assets/text/austen-persuasion-ch1-2.txt';

interface Options {
  readonly shape: string;
  readonly type: string;
  readonly weights?: string;
  readonly tier: Tier | 'auto';
  readonly lengths?: readonly number[];
  readonly patterns?: readonly string[];
  readonly config?: string;
  readonly chunk?: number;
  readonly layers?: number;
  readonly memory?: number;
  readonly budgetSeconds: number;
  readonly repetitions: number;
  readonly warmMs: number;
  readonly density: boolean;
  readonly decode: number;
  readonly matrixProducts: boolean;
  readonly gemmTiling?: string;
  readonly tilings?: string;
  readonly scale?: number;
  readonly peers?: string;
  readonly peerBackend: string;
  readonly partSeconds: number;
  readonly out: string;
  readonly merge: boolean;
}

/** The model that is measured. */
interface Subject {
  readonly name: string;
  readonly config: ModelConfig;
  /** Type of its largest weights. */
  readonly type: WeightType;
  open(layers: number): Promise<LoadedModel>;
  prompt(tokens: number): number[];
}

/** One prompt with one pattern. */
interface Case {
  readonly pattern: string;
  readonly tokens: number;
}

interface Pass {
  readonly wallMs: number;
  readonly nextToken: number;
  /** Tokens of the first chunk: devices with small bindings take smaller ones than asked for. */
  readonly chunk: number;
  readonly times?: KernelTimes;
}

/** Random weights of a shape, and random prompts. */
function syntheticSubject(options: Options): Subject {
  const { config, type } = namedShape(options);
  const random = new Random(2);
  return {
    name: options.shape,
    config,
    type,
    open: async (layers) => syntheticModel({ ...config, layers }, type),
    prompt: (tokens) => Array.from({ length: tokens }, () => random.integer(0, config.vocabSize - 1)),
  };
}

/** A model's own weights, and a text of that many tokens. */
async function fileSubject(path: string): Promise<Subject> {
  const loaded = await openNodeModel(path);
  const { config, weights, tokenizer } = loaded;
  await loaded.close();
  if (!tokenizer) throw invalidArgument('--weights', path, 'a model with a tokenizer');
  const text = tokenizer.encode(readFileSync(TEXT, 'utf8'), false);
  return {
    name: basename(path).replace(/\.gguf$/i, ''),
    config,
    type: weights.get('layers.0.mlp.up.weight')?.type ?? 'f32',
    open: () => openNodeModel(path, { tokenizer: false }),
    prompt: (tokens) => Array.from({ length: tokens }, (_, i) => text[i % text.length] ?? 0),
  };
}

/** Operations of all products with weights: for every token in the layers, for the last one in the head. */
function gemmFlops(config: ModelConfig, tokens: number, layers: number): number {
  return 2 * tokens * layers * layerMatrixElements(config) + 2 * config.vocabSize * config.hiddenSize;
}

/** Measures prompts on one device. */
class ModelBench {
  readonly profile: DeviceProfile;
  readonly #device: GPUDevice;
  readonly #subject: Subject;
  readonly #options: Options;
  readonly #attention: Pick<SparsePrefillOptions, 'tilings'>;
  readonly #memory: number;
  readonly #ceiling: number;
  /** What a layer took at the longest length so far, by pattern. */
  readonly #seen = new Map<
    string,
    { readonly tokens: number; readonly chunk: number; readonly parts: Readonly<Record<Part, number>> }
  >();
  #model: LanguageModel | undefined;
  /** Of {@link ModelBench.#model}. */
  #chunkSize = 0;

  constructor(
    device: GPUDevice,
    subject: Subject,
    options: Options,
    attention: Pick<SparsePrefillOptions, 'tilings'>,
    ceiling: number,
  ) {
    this.#device = device;
    this.#subject = subject;
    this.#options = options;
    this.#attention = attention;
    this.#ceiling = ceiling;
    this.profile = profileDevice(device, options.tier);
    const { memory } = options;
    this.#memory = memory ? memory * 2 ** 30 : (freeMemory(this.profile) ?? Number.POSITIVE_INFINITY);
  }

  /** Measures one prompt in as many layers as memory and time allow. */
  async measure({ pattern, tokens }: Case): Promise<ModelRow> {
    const { config } = this.#subject;
    const { layers: wanted = config.layers, budgetSeconds } = this.#options;
    let most = Math.min(config.layers, wanted);
    if (!this.#options.weights) most = Math.min(most, this.#layersThatFit(tokens));
    if (most < 1) throw new MinferenceError('limit', `a layer with ${tokens} tokens does not fit the GPU's memory`);
    if (this.#options.weights) return this.#measureLayers(pattern, tokens, most);
    if (!this.#seen.has(pattern) && !this.profile.software) {
      // A guess of the time from one layer of a short prompt.
      const short = Math.min(tokens, 2 * this.#chunk(tokens));
      const model = await this.#load(1, short);
      const prompt = this.#subject.prompt(short);
      await this.#pass(model, prompt, pattern, false); // compiles
      this.#remember(pattern, short, 1, await this.#pass(model, prompt, pattern, true));
    }
    const seconds = this.#guess(pattern, tokens);
    let layers = Math.max(1, Math.min(most, Math.floor(budgetSeconds / seconds)));
    for (;;) {
      try {
        return await this.#measureLayers(pattern, tokens, layers);
      } catch (error) {
        if (!(error instanceof MinferenceError && error.code === 'out-of-memory') || layers === 1) throw error;
        console.error(`${layers} layers with ${tokens} tokens do not fit: ${error.message}`);
        this.destroy();
        layers = Math.max(1, Math.floor(layers * 0.9));
      }
    }
  }

  /** Frees the model. */
  destroy(): void {
    this.#model?.destroy();
    this.#model = undefined;
  }

  async #measureLayers(pattern: string, tokens: number, layers: number): Promise<ModelRow> {
    const { config, type } = this.#subject;
    const { repetitions: most, budgetSeconds, density: wanted, decode } = this.#options;
    const model = await this.#load(layers, tokens);
    const prompt = this.#subject.prompt(tokens);
    await model.prepare(this.#patterns(pattern, layers));
    await this.#warm(model, prompt, pattern);
    // Runs with timestamps tell the wall time too where there is no time for others.
    const plain: Pass[] = [];
    const timed: Pass[] = [];
    const known = this.#seen.has(pattern) ? this.#guess(pattern, tokens) * layers : 0;
    if (known < budgetSeconds / 4) plain.push(await this.#pass(model, prompt, pattern, false));
    const decodeMs = plain.length > 0 && layers === config.layers ? await this.#decode(model, decode) : undefined;
    timed.push(await this.#pass(model, prompt, pattern, true));
    const seconds = (plain[0]?.wallMs ?? timed[0]?.wallMs ?? 0) / 1000;
    const repetitions = Math.max(1, Math.min(most, Math.floor(budgetSeconds / 2 / seconds)));
    while (plain.length > 0 && plain.length < repetitions) plain.push(await this.#pass(model, prompt, pattern, false));
    while (timed.length < repetitions && plain.length > 0) timed.push(await this.#pass(model, prompt, pattern, true));
    const looks = wanted && pattern !== 'dense' && seconds < budgetSeconds / 2;
    const density = pattern === 'dense' ? 1 : looks ? await this.#density(model, prompt, pattern) : undefined;

    const { numHeads, headDim } = config;
    const row: ModelRow = {
      impl: 'ours',
      pattern,
      tier: this.profile.tier,
      seqLen: tokens,
      heads: numHeads,
      headDim,
      dtype: type,
      params: {},
      layers,
      ofLayers: config.layers,
      ...(timed[0] ? { chunk: timed[0].chunk } : {}),
      wallMs: median((plain.length > 0 ? plain : timed).map((p) => p.wallMs)),
      repetitions: timed.length,
      ...(decodeMs === undefined ? {} : { decodeMs }),
      ...(density === undefined ? {} : { density }),
      ...(this.#options.weights ? { nextToken: timed[0]?.nextToken ?? -1 } : {}),
    };
    const times = timed.flatMap((p) => p.times ?? []);
    if (times.length === 0) return row;
    const parts = Object.fromEntries(PARTS.map((part) => [part, median(times.map((t) => t.parts[part]))])) as Record<
      Part,
      number
    >;
    this.#remember(pattern, tokens, layers, timed[0]);
    const gemmTflops = gemmFlops(config, tokens, layers) / parts.gemm / 1e9;
    const pairs = ((density ?? 0) * layers * numHeads * tokens * (tokens + 1)) / 2;
    const products = [...(times[0]?.kernels ?? [])].filter(([kernel]) => kernel.startsWith('gemm ')).sort((a, b) => b[1] - a[1]);
    return {
      ...row,
      ms: median(times.map((t) => PARTS.reduce((sum, part) => sum + t.parts[part], 0))),
      parts,
      idleMs: median(times.map((t) => t.idle)),
      gaps: Object.fromEntries([...(times[0]?.gaps ?? [])].sort((a, b) => b[1] - a[1]).slice(0, 6)),
      gemmTflops,
      gemmShare: gemmTflops / this.#ceiling,
      ...(products[0] ? { gemmKernel: products[0][0] } : {}),
      ...(density === undefined ? {} : { attentionTflops: (4 * headDim * pairs) / parts.attention / 1e9 }),
    };
  }

  /** Layers whose weights and cache fit the memory. */
  #layersThatFit(tokens: number): number {
    const { config, type } = this.#subject;
    const weights = weightBytes(config, type);
    const cache = 2 * config.numKvHeads * config.headDim * this.#activation * this.#context(tokens);
    const rest = weights.rest + activationBytes(config, this.#activation) * Math.min(tokens, this.#chunk(tokens)) + RESERVE;
    return Math.min(config.layers, Math.floor((this.#memory - rest) / (weights.layer + cache)));
  }

  /** Bytes of an element of the cache and of most activations. */
  get #activation(): number {
    return BYTES[this.profile.tier === 'portable' ? 'f32' : 'f16'];
  }

  #chunk(tokens: number): number {
    return this.#options.chunk ?? defaultChunk(tokens, activationBytes(this.#subject.config, this.#activation), this.#memory);
  }

  #context(tokens: number): number {
    return tokens + this.#options.decode;
  }

  /** Seconds that a layer may take: dense attention grows with the square of the length; each chunk's index with the length. */
  #guess(pattern: string, tokens: number): number {
    const seen = this.#seen.get(pattern);
    if (!seen) return 0;
    const ratio = tokens / seen.tokens;
    const chunks = Math.ceil(tokens / this.#chunk(tokens)) / Math.ceil(seen.tokens / seen.chunk);
    const { gemm, attention, index, rest } = seen.parts;
    return ((gemm + rest) * ratio + attention * ratio ** (pattern === 'dense' ? 2 : 1) + index * ratio * chunks) / 1000;
  }

  #remember(pattern: string, tokens: number, layers: number, { times, chunk }: Partial<Pass> = {}): void {
    if (!times || !chunk || (this.#seen.get(pattern)?.tokens ?? 0) > tokens) return;
    const parts = Object.fromEntries(PARTS.map((part) => [part, times.parts[part] / layers])) as Record<Part, number>;
    this.#seen.set(pattern, { tokens, chunk, parts });
  }

  /** The model with so many layers, and room and chunks for so many tokens; the one before is freed. */
  async #load(layers: number, tokens: number): Promise<LanguageModel> {
    const contextLength = this.#context(tokens);
    const chunkSize = this.#chunk(tokens);
    const { config, contextLength: room } = this.#model ?? {};
    if (this.#model && config?.layers === layers && room === contextLength && this.#chunkSize === chunkSize) return this.#model;
    this.destroy();
    await this.#device.queue.onSubmittedWorkDone();
    const { tier, gemmTiling, matrixProducts } = this.#options;
    const tiling = gemmTiling ? (JSON.parse(readFileSync(gemmTiling, 'utf8')) as MatrixGemmTiling) : undefined;
    const loaded = await this.#subject.open(layers);
    try {
      this.#model = await LanguageModel.load(this.#device, loaded, {
        tier,
        contextLength,
        chunkSize,
        denseBelow: 0,
        matrixProducts: matrixProducts && (tiling ?? true),
        attention: { dispatchMs: this.profile.software ? 100 : 2000, workspaceLimit: 2 ** 30, ...this.#attention },
      });
      this.#chunkSize = chunkSize;
    } finally {
      await loaded.close();
    }
    return this.#model;
  }

  /** What the heads of a model of so many layers attend to: those layers are spread over the pattern file. */
  #patterns(pattern: string, layers: number): ModelPatterns {
    const { config } = this.#options;
    if (pattern !== 'mix') return PATTERNS[pattern] as HeadPattern;
    if (!config) throw invalidArgument('--config', config, 'a pattern file, for the pattern mix');
    const { layers: ofLayers, numHeads } = this.#subject.config;
    const file = parsePatternConfig(readFileSync(config, 'utf8'), basename(config));
    return (layer) => patternsForLayer(file, Math.floor((layer * ofLayers) / layers), { numHeads });
  }

  /** Runs a whole prompt, with timestamps or without. */
  async #pass(model: LanguageModel, prompt: readonly number[], pattern: string, timed: boolean): Promise<Pass> {
    model.reset();
    const watch = timed && this.#device.features.has('timestamp-query') ? new KernelWatch(this.#device) : undefined;
    const start = performance.now();
    let times: KernelTimes | undefined;
    let wallMs = 0;
    let chunk = 0;
    let logits: Float32Array;
    try {
      ({ logits } = await model.prefill(prompt, {
        patterns: this.#patterns(pattern, model.config.layers),
        onProgress: ({ tokens }) => {
          chunk ||= tokens;
        },
      }));
      wallMs = performance.now() - start;
    } finally {
      times = await watch?.stop();
    }
    if (!logits.every(Number.isFinite)) {
      throw new MinferenceError('gpu', `${pattern}, ${prompt.length} tokens: logits that are no numbers`);
    }
    const nextToken = logits.reduce((best, value, i) => (value > (logits[best] ?? 0) ? i : best), 0);
    return { wallMs, nextToken, chunk, ...(times ? { times } : {}) };
  }

  /** Runs the first chunk until the GPU's clock is up; once on software adapters. */
  async #warm(model: LanguageModel, prompt: readonly number[], pattern: string): Promise<void> {
    const warmMs = this.profile.software ? 0 : this.#options.warmMs;
    const first = prompt.slice(0, this.#chunk(prompt.length));
    const start = performance.now();
    do await this.#pass(model, first, pattern, false);
    while (performance.now() - start < warmMs);
  }

  async #density(model: LanguageModel, prompt: readonly number[], pattern: string): Promise<number | undefined> {
    model.reset();
    const patterns = this.#patterns(pattern, model.config.layers);
    return (await model.prefill(prompt, { patterns, inspect: true })).density;
  }

  /** Milliseconds of a token after the prompt. */
  async #decode(model: LanguageModel, tokens: number): Promise<number | undefined> {
    if (tokens <= 2) return undefined;
    const { length } = model;
    const times: number[] = [];
    while (times.length < (this.profile.software ? 1 : 5)) {
      times.push(await msPerToken(model, tokens - 1));
      model.truncate(length);
    }
    return median(times);
  }
}

/** Measures the prompts that the options ask for, and writes JSON, CSV, Markdown and SVG after each. */
async function run(options: Options, attention: Pick<SparsePrefillOptions, 'tilings'>): Promise<void> {
  const { weights, config, peers } = options;
  if (peers && !weights) throw invalidArgument('--peers', peers, 'only with --weights: peers read the same file');
  const lengths = options.lengths ?? (weights ? [8192] : [8192, 32_768, 131_072, 262_144, 524_288, 1_048_576]);
  const patterns = options.patterns ?? ['dense', config ? 'mix' : 'vertical_slash'];
  const unknown = patterns.find((p) => p !== 'mix' && !(p in PATTERNS));
  if (unknown) throw invalidArgument('--patterns', unknown, ['mix', ...Object.keys(PATTERNS)].join(', '));
  const subject = weights ? await fileSubject(weights) : syntheticSubject(options);

  const device = await openNodeDevice();
  const profile = profileDevice(device, options.tier);
  const gpu = deviceModel(profile);
  const date = new Date().toISOString().slice(0, 10);
  const path = `${options.out}/${deviceSlug(gpu)}-model-${subject.name.toLowerCase()}`;
  const earlier = options.merge ? readEarlier<ModelRow>(`${path}.json`, gpu, date) : undefined;
  const software = { node: process.version, adapter: profile.name, 'minference-webgpu': '0.1.0' };
  const about = {
    model: subject.name,
    synthetic: !weights,
    ...(config ? { config: basename(config) } : {}),
  };
  let fresh: ModelFile = { ...about, device: gpu, date, software, ceilings: {}, rows: [], absent: [] };
  const add = async ({ rows = [], absent = [], ...part }: Partial<ModelFile>): Promise<void> => {
    fresh = {
      ...fresh,
      software: { ...fresh.software, ...part.software },
      ceilings: { ...fresh.ceilings, ...part.ceilings },
      rows: [...fresh.rows, ...rows],
      absent: [...fresh.absent, ...absent],
    };
    for (const row of rows) console.error(toMarkdown([row]).trimEnd().split('\n').at(-1));
    for (const { impl, reason } of absent) console.error(`absent: ${impl}, ${reason}`);
    const file: ModelFile = { ...merge(earlier, fresh), ...about };
    write(`${path}.json`, `${JSON.stringify(file, null, 1)}\n`);
    await writeModelReport(path, file);
  };

  console.error(`${gpu}: ${subject.name}, tier ${profile.tier}`);
  const ceilings = await measureCeilings(device, options.scale ?? (profile.software ? 1e-3 : 1));
  await add({ ceilings: { ...ceilings } });
  const bench = new ModelBench(device, subject, options, attention, ceilings.matrix ?? ceilings.fmaF32);
  for (const tokens of lengths) {
    for (const pattern of patterns) {
      try {
        await add({ rows: [await bench.measure({ pattern, tokens })] });
      } catch (error) {
        bench.destroy();
        await add({ absent: [{ impl: 'ours', reason: `${pattern} at ${tokens}: ${String(error)}` }] });
      }
    }
  }
  bench.destroy();
  // Once more when all of this has warmed the device up, and for as long as clocks need to fall to what its power allows.
  const { matrixSustained } = profile.software ? {} : await measureCeilings(device, options.scale ?? 1, true);
  if (matrixSustained !== undefined) await add({ ceilings: { matrixSustained } });
  device.destroy();
  if (peers && weights) await add(await runLlama(weights, subject, lengths, peers, options));

  const file: ModelFile = { ...merge(earlier, fresh), ...about };
  console.log(await writeModelReport(path, file));
}

/** llama.cpp on the same file and the same prompts. */
async function runLlama(
  weights: string,
  subject: Subject,
  lengths: readonly number[],
  folder: string,
  options: Options,
): Promise<Partial<ModelFile>> {
  const { peerBackend: backend, partSeconds: seconds, warmMs, decode } = options;
  const { config, type } = subject;
  const { rows, ...rest } = await runProgram<
    Pick<ModelRow, 'impl' | 'pattern' | 'tier' | 'seqLen' | 'params' | 'wallMs' | 'repetitions' | 'decodeMs'>
  >('llama.cpp', [process.execPath, 'bench/peers/llama.mjs'], {
    folder,
    seconds,
    weights,
    backend,
    budgetMs: 1500,
    warmMs: backend === 'cpu' ? 0 : warmMs,
    decode,
    prompts: lengths.map((tokens) => subject.prompt(tokens)),
  });
  const shape = { heads: config.numHeads, headDim: config.headDim, dtype: type, layers: config.layers, ofLayers: config.layers };
  return { ...rest, rows: rows.map((row) => ({ ...row, ...shape })) };
}

/** Adds the command `model`: times whole prefills and decoding. */
export function addModelCommand(
  program: Command,
  tilingsOf: (options: { readonly tilings?: string }) => Pick<SparsePrefillOptions, 'tilings'>,
): void {
  const list = (text: string): string[] => text.split(',').map((entry) => entry.trim());
  program
    .command('model')
    .description('prefill of a whole model, dense against sparse, by part: of random weights, or of a file beside llama.cpp')
    .option('--shape <name>', `random weights: ${Object.keys(SHAPES).join(', ')}`, 'llama-3.1-8b')
    .option('--type <type>', `of the random weights: ${Object.keys(BLOCK_LAYOUT).join()}`, 'f16')
    .option('--weights <file>', 'a GGUF file instead; prompts are then text')
    .option('--tier <tier>', 'portable, f16, matrix or auto', 'auto')
    .option('--lengths <list>', 'tokens of the prompts (default: 8K to 1M, 8K with --weights)', (text) => list(text).map(Number))
    .option('--patterns <list>', `${Object.keys(PATTERNS).join()},mix (default: dense, and mix or vertical_slash)`, list)
    .option('--config <file>', 'pattern file of the pattern mix')
    .option('--chunk <n>', 'tokens that run through the layers at a time (default: the prompt, at most 32768)', Number)
    .option('--layers <n>', 'layers at most, of random weights (default: all that fit)', Number)
    .option('--memory <gib>', 'GPU memory to fill (default: what nvidia-smi says is free)', Number)
    .option('--budget-seconds <s>', 'fewer layers run when a prompt would take longer', Number, 40)
    .option('--repetitions <n>', 'runs at most, the median counts', Number, 5)
    .option('--warm-ms <ms>', 'work before each measurement on hardware', Number, 700)
    .option('--no-density', 'leave out the extra run that counts the kept pairs')
    .option('--decode <n>', 'tokens to generate after each prompt, if more than 2', Number, 32)
    .option('--no-matrix-products', 'leave subgroup matrices to attention')
    .option('--gemm-tiling <file>', 'tiling of the products on subgroup matrices, as JSON')
    .option('--tilings <file>', 'tilings of the matrix tier that `tune --best` wrote')
    .option('--scale <x>', 'size of the ceiling measurements (default: 1 on a GPU)', Number)
    .addOption(
      new Option('--peers [folder]', 'measure llama.cpp too, from this folder of scripts/fetch_peers.sh').preset('.gpu/peers'),
    )
    .addOption(new Option('--peer-backend <name>', 'of llama.cpp').choices(['vulkan', 'cpu']).default('vulkan'))
    .option('--part-seconds <s>', 'seconds after which llama.cpp begins no new prompt', Number, 200)
    .option('--out <folder>', 'where results go', 'bench/results')
    .option('--merge', 'keep what this does not measure again of a file of today', false)
    .action((options: Options) => run(options, tilingsOf(options)));
}
