import type { Command } from 'commander';
import { openNodeDevice } from '../src/device/node.js';
import { profileDevice, type Tier } from '../src/device/profile.js';
import { invalidArgument } from '../src/errors.js';
import { BYTES } from '../src/kernels/tensor.js';
import { LanguageModel } from '../src/model/runtime.js';
import { BLOCK_LAYOUT, type ModelConfig, type WeightType } from '../src/model/types.js';
import { Random } from '../src/reference/random.js';
import { measureCeilings } from './ceilings.js';
import { deviceModel, deviceSlug } from './device_model.js';
import { KernelWatch } from './kernel_times.js';
import { median } from './measure.js';
import { write } from './results.js';
import { namedShape, SHAPES, syntheticModel, weightBytes } from './synthetic_model.js';

interface Options {
  readonly shape: string;
  readonly type: string;
  readonly tier: Tier | 'auto';
  readonly contexts: readonly number[];
  readonly layers?: number;
  readonly tokens: number;
  readonly runs: number;
  readonly question: number;
  readonly out: string;
}

/** A question behind the prompt, of so many tokens, that attends densely: milliseconds to its logits. */
interface QuestionRow {
  readonly tokens: number;
  readonly wallMs: number;
  readonly gpuMs?: number;
  /** Each kernel measured for itself, which takes longer. */
  readonly kernels?: Readonly<Record<string, number>>;
}

/** Decoding behind one prompt. Milliseconds are those of a token. */
interface DecodeRow {
  /** Tokens before the first one that is generated. */
  readonly context: number;
  readonly layers: number;
  /** From token to token, by the program's clock: the median of runs. */
  readonly wallMs: number;
  /** Of that, from the making of a command encoder to its end, and in the submission. */
  readonly recordMs: number;
  readonly submitMs: number;
  /** From the first kernel's beginning to the last one's end. */
  readonly gpuMs?: number;
  /** Weights and cache that a token reads, by count, over `gpuMs`. */
  readonly gbPerSecond?: number;
  /** Each kernel measured for itself, which takes longer. */
  readonly kernels?: Readonly<Record<string, number>>;
  readonly question: QuestionRow;
}

type HostTimes = Pick<DecodeRow, 'wallMs' | 'recordMs' | 'submitMs'>;

/** Times what the program does for a command buffer, on the average of those that it submits. */
class HostWatch {
  readonly #device: GPUDevice;
  readonly #createCommandEncoder: GPUDevice['createCommandEncoder'];
  readonly #submit: GPUQueue['submit'];
  #begun = 0;
  #record = 0;
  #submitted = 0;
  #count = 0;

  constructor(device: GPUDevice) {
    this.#device = device;
    this.#createCommandEncoder = device.createCommandEncoder;
    this.#submit = device.queue.submit;
    device.createCommandEncoder = (descriptor) => {
      this.#begun = performance.now();
      return this.#createCommandEncoder.call(device, descriptor);
    };
    device.queue.submit = (buffers) => {
      const recorded = performance.now();
      this.#submit.call(device.queue, buffers);
      this.#record += recorded - this.#begun;
      this.#submitted += performance.now() - recorded;
      this.#count++;
      return undefined;
    };
  }

  /** Stops watching. */
  stop(): Pick<DecodeRow, 'recordMs' | 'submitMs'> {
    this.#device.createCommandEncoder = this.#createCommandEncoder;
    this.#device.queue.submit = this.#submit;
    return { recordMs: this.#record / this.#count, submitMs: this.#submitted / this.#count };
  }
}

/** Bytes that a token reads at least: every weight but the embedding's, and the keys and values of all tokens so far. */
export function bytesRead(config: ModelConfig, type: WeightType, context: number, cacheBytes: number): number {
  const { layer, rest } = weightBytes(config, type);
  const { layers, numKvHeads, headDim, tieEmbeddings } = config;
  return layers * (layer + 2 * numKvHeads * headDim * context * cacheBytes) + rest / (tieEmbeddings ? 1 : 2);
}

async function run(options: Options): Promise<void> {
  const { shape, type, contexts, tokens, runs } = options;
  const known = namedShape(options);
  if (tokens < 2) throw invalidArgument('--tokens', tokens, 'at least 2');
  const config = { ...known.config, layers: options.layers ?? known.config.layers };
  const device = await openNodeDevice();
  const profile = profileDevice(device, options.tier);
  const gpu = deviceModel(profile);
  console.error(`${gpu}: decoding with ${shape}, ${type} weights, tier ${profile.tier}`);
  const rows: DecodeRow[] = [];
  const path = `${options.out}/${deviceSlug(gpu)}-decode-${shape}-${type}.json`;
  for (const context of contexts) {
    const row = await measureDecoding(device, config, known.type, context, options);
    rows.push(row);
    const { wallMs, recordMs, submitMs, gpuMs = 0, gbPerSecond = 0, kernels = {}, question } = row;
    console.log(
      `${context.toLocaleString('en')} tokens, ${config.layers} layers: ${wallMs.toFixed(3)} ms a token (${(1000 / wallMs).toFixed(0)}/s), ` +
        `GPU ${gpuMs.toFixed(3)} ms, ${gbPerSecond.toFixed(0)} GB/s; recording ${recordMs.toFixed(3)} ms, submission ${submitMs.toFixed(3)} ms`,
    );
    const list = (times: Readonly<Record<string, number>>): void => {
      for (const [kernel, ms] of Object.entries(times)) console.log(`  ${ms.toFixed(4)} ms  ${kernel}`);
    };
    list(kernels);
    console.log(
      `a question of ${question.tokens} tokens behind them: ${question.wallMs.toFixed(1)} ms, GPU ${(question.gpuMs ?? 0).toFixed(1)} ms`,
    );
    list(question.kernels ?? {});
  }
  const { copyGBs } = await measureCeilings(device, profile.software ? 1e-3 : 1);
  device.destroy();
  const date = new Date().toISOString().slice(0, 10);
  const about = { device: gpu, date, adapter: profile.name, tier: profile.tier, shape, type, tokens, runs, copyGBs };
  write(path, `${JSON.stringify({ ...about, rows }, null, 1)}\n`);
  console.log(`copies ${copyGBs.toFixed(0)} GB/s; wrote ${path}`);
}

/** Milliseconds from one generated token to the next: from the first one on, which belongs to the prompt. */
export async function msPerToken(model: LanguageModel, maxTokens: number): Promise<number> {
  let start = 0;
  let made = -1;
  for await (const _ of model.generate([1], { maxTokens, stop: [] })) if (++made === 0) start = performance.now();
  return (performance.now() - start) / made;
}

/** Measures tokens behind a prompt of `context` tokens, in a model of random weights. */
export async function measureDecoding(
  device: GPUDevice,
  config: ModelConfig,
  type: WeightType,
  context: number,
  { tier, tokens, runs, question: questionTokens }: Pick<Options, 'tier' | 'tokens' | 'runs' | 'question'>,
): Promise<DecodeRow> {
  const room = Math.max(2 * tokens, questionTokens);
  const { layers } = config;
  const model = await LanguageModel.load(device, syntheticModel(config, type), {
    tier,
    contextLength: context + room,
    denseBelow: 0,
  });
  const timed = device.features.has('timestamp-query');
  try {
    const random = new Random(2);
    const prompt = Array.from({ length: context - 1 }, () => random.integer(0, config.vocabSize - 1));
    await model.prefill(prompt, { patterns: { kind: 'a_shape', initSize: 64, localSize: 64 } });
    const generate = async (maxTokens = tokens + 1): Promise<HostTimes> => {
      model.truncate(prompt.length);
      const host = new HostWatch(device);
      const wallMs = await msPerToken(model, maxTokens);
      return { wallMs, ...host.stop() };
    };
    await generate();
    const plain: HostTimes[] = [];
    for (let i = 0; i < runs; i++) plain.push(await generate());
    const of = (key: keyof HostTimes): number => median(plain.map((times) => times[key]));
    const question = await measureQuestion(model, prompt.length, random, questionTokens, runs, timed ? device : undefined);
    const row = { context, layers, wallMs: of('wallMs'), recordMs: of('recordMs'), submitMs: of('submitMs'), question };
    if (!timed) return row;
    // The step of one more token, of which the prompt's last one is left out.
    const watched = async (whole: boolean): Promise<Map<string, number>> => {
      const many = await kernelsOf(device, whole, () => generate(tokens + 1));
      const one = await kernelsOf(device, whole, () => generate(1));
      // What takes next to nothing may differ by less than nothing.
      return new Map([...many].map(([kernel, ms]) => [kernel, Math.max(0, ms - (one.get(kernel) ?? 0)) / tokens]));
    };
    const { gpuMs, kernels } = await gpuTimes(watched);
    const cacheBytes = BYTES[model.profile.tier === 'portable' ? 'f32' : 'f16'];
    return { ...row, gpuMs, gbPerSecond: bytesRead(config, type, context, cacheBytes) / gpuMs / 1e6, kernels };
  } finally {
    model.destroy();
  }
}

/** Times a question behind `context` tokens that the model has, also by kernel if there is a device to watch. */
async function measureQuestion(
  model: LanguageModel,
  context: number,
  random: Random,
  tokens: number,
  runs: number,
  watched: GPUDevice | undefined,
): Promise<QuestionRow> {
  const question = Array.from({ length: tokens }, () => random.integer(0, model.config.vocabSize - 1));
  const ask = async (): Promise<number> => {
    model.truncate(context);
    const start = performance.now();
    await model.prefill(question, { patterns: { kind: 'dense' } });
    return performance.now() - start;
  };
  await ask();
  const times: number[] = [];
  for (let i = 0; i < runs; i++) times.push(await ask());
  const wallMs = median(times);
  if (!watched) return { tokens, wallMs };
  return { tokens, wallMs, ...(await gpuTimes((whole) => kernelsOf(watched, whole, ask))) };
}

/** Times of the kernels that `run` submits; `whole`: of its passes. */
async function kernelsOf(device: GPUDevice, whole: boolean, run: () => Promise<unknown>): Promise<ReadonlyMap<string, number>> {
  const watch = new KernelWatch(device, whole);
  await run();
  return (await watch.stop()).kernels;
}

/** GPU time of whole passes, and each kernel measured for itself, the longest first. */
async function gpuTimes(watched: (whole: boolean) => Promise<ReadonlyMap<string, number>>) {
  const gpuMs = [...(await watched(true)).values()].reduce((a, b) => a + b, 0);
  const kernels = Object.fromEntries([...(await watched(false))].sort((a, b) => b[1] - a[1]));
  return { gpuMs, kernels };
}

/** Adds the command `decode`: times one token after another. */
export function addDecodeCommand(program: Command): void {
  program
    .command('decode')
    .description('one token after another, greedily, behind prompts of several lengths: by the clock, and by kernel')
    .option('--shape <name>', `random weights: ${Object.keys(SHAPES).join(', ')}`, 'llama-3.1-8b')
    .option('--type <type>', `of the weights: ${Object.keys(BLOCK_LAYOUT).join()}`, 'f16')
    .option('--tier <tier>', 'portable, f16, matrix or auto', 'auto')
    .option('--contexts <list>', 'tokens of the prompts', (text) => text.split(',').map(Number), [1024, 8192, 131_072])
    .option('--layers <n>', 'fewer layers than the model has', Number)
    .option('--tokens <n>', 'tokens to generate in each run', Number, 32)
    .option('--question <n>', 'tokens of a question behind each prompt', Number, 20)
    .option('--runs <n>', 'runs, the median counts', Number, 5)
    .option('--out <folder>', 'where results go', 'bench/results')
    .action(run);
}
