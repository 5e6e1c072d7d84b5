import type { Command } from 'commander';
import { openNodeDevice } from '../src/device/node.js';
import type { Tier } from '../src/device/profile.js';
import { MinferenceError } from '../src/errors.js';
import { LanguageModel, type ModelPrefillResult } from '../src/model/runtime.js';
import {
  BLOCK_LAYOUT,
  type LoadedModel,
  type ModelConfig,
  type WeightTensor,
  type WeightType,
  weightShapes,
} from '../src/model/types.js';
import { quantize } from '../src/reference/quant.js';
import { Random } from '../src/reference/random.js';
import type { HeadPattern } from '../src/scheduler/types.js';
import { write } from './results.js';

const SHARED = { rmsEps: 1e-5, qkvBias: false, qkNorm: false, contextLength: 2 ** 20, stopIds: [] } as const;

/** Shapes of published models. */
const SHAPES: Readonly<Record<string, ModelConfig>> = {
  'llama-3.1-8b': {
    ...SHARED,
    architecture: 'llama',
    layers: 32,
    hiddenSize: 4096,
    intermediateSize: 14336,
    numHeads: 32,
    numKvHeads: 8,
    headDim: 128,
    vocabSize: 128256,
    tieEmbeddings: false,
    rope: { theta: 500000, rotaryDim: 128 },
  },
  'qwen2.5-1.5b': {
    ...SHARED,
    architecture: 'qwen2',
    layers: 28,
    hiddenSize: 1536,
    intermediateSize: 8960,
    numHeads: 12,
    numKvHeads: 2,
    headDim: 128,
    vocabSize: 151936,
    tieEmbeddings: true,
    qkvBias: true,
    rope: { theta: 1e6, rotaryDim: 128 },
  },
  tiny: {
    ...SHARED,
    architecture: 'llama',
    layers: 2,
    hiddenSize: 256,
    intermediateSize: 512,
    numHeads: 4,
    numKvHeads: 2,
    headDim: 64,
    vocabSize: 1000,
    tieEmbeddings: true,
    rope: { theta: 1e4, rotaryDim: 64 },
  },
};

const PATTERNS: Readonly<Record<string, HeadPattern>> = {
  dense: { kind: 'dense' },
  a_shape: { kind: 'a_shape', initSize: 1024, localSize: 4096 },
  vertical_slash: { kind: 'vertical_slash', verticalSize: 1000, slashSize: 6096 },
  block_sparse: { kind: 'block_sparse', topK: 100 },
};

/** A model of a shape whose weights repeat a few random blocks: for timing only. */
function syntheticModel(config: ModelConfig, type: WeightType): LoadedModel {
  const random = new Random(1);
  const bytesOf = new Map<WeightType, Uint8Array<ArrayBuffer>>();
  const chunkOf = (wanted: WeightType): Uint8Array<ArrayBuffer> => {
    const known = bytesOf.get(wanted);
    if (known) return known;
    const { elements, bytes } = BLOCK_LAYOUT[wanted];
    const blocks = 2 ** 20 / elements;
    let chunk: Uint8Array<ArrayBuffer>;
    if (wanted === 'q4_k' || wanted === 'q6_k') {
      chunk = Uint8Array.from({ length: blocks * bytes }, () => random.integer(0, 255));
      const view = new DataView(chunk.buffer);
      // f16 scales of about 5e-5.
      const scales = wanted === 'q4_k' ? [0, 2] : [208];
      for (let b = 0; b < blocks; b++) for (const at of scales) view.setUint16(b * bytes + at, 0x0300, true);
    } else {
      chunk = quantize(wanted, random.normals(2 ** 20, 0.02));
    }
    bytesOf.set(wanted, chunk);
    return chunk;
  };
  const weights = new Map<string, WeightTensor>();
  for (const [name, shape] of weightShapes(config)) {
    const own = shape.length === 1 ? 'f32' : type;
    const { elements, bytes } = BLOCK_LAYOUT[own];
    const byteLength = (shape.reduce((a, b) => a * b) / elements) * bytes;
    weights.set(name, {
      name,
      shape,
      type: own,
      byteLength,
      read: async function* () {
        const chunk = name.endsWith('norm.weight')
          ? new Uint8Array(new Float32Array(byteLength / 4).fill(1).buffer)
          : chunkOf(own);
        for (let at = 0; at < byteLength; at += chunk.byteLength) yield chunk.subarray(0, byteLength - at);
      },
    });
  }
  return { config, weights, close: async () => {} };
}

interface Options {
  readonly shape: string;
  readonly type: string;
  readonly tier: string;
  readonly lengths: string;
  readonly patterns: string;
  readonly chunk: string;
  readonly decode: string;
  readonly matrixProducts: boolean;
  readonly json?: string;
}

/** One prompt. */
interface ModelRow {
  readonly shape: string;
  readonly type: string;
  readonly tier: string;
  readonly pattern: string;
  readonly tokens: number;
  readonly seconds: number;
  readonly times?: ModelPrefillResult['times'];
  /** Milliseconds of a token after the prompt. */
  readonly decodeMs?: number;
}

async function run(options: Options): Promise<void> {
  const config = SHAPES[options.shape];
  if (!config)
    throw new MinferenceError('invalid-argument', `--shape ${options.shape}; allowed: ${Object.keys(SHAPES).join(', ')}`);
  const device = await openNodeDevice();
  const lengths = options.lengths.split(',').map(Number);
  const decode = Number(options.decode);
  const model = await LanguageModel.load(device, syntheticModel(config, options.type as WeightType), {
    tier: options.tier as Tier | 'auto',
    contextLength: Math.max(...lengths) + decode,
    chunkSize: Number(options.chunk),
    denseBelow: 0,
    matrixProducts: options.matrixProducts,
  });
  const { tier } = model.profile;
  console.log(`${options.shape} ${options.type}, tier ${tier}, ${model.profile.name}`);
  const random = new Random(2);
  const ids = (count: number): number[] => Array.from({ length: count }, () => random.integer(0, config.vocabSize - 1));
  // Compiles what load() did not, and wakes the clock.
  await model.prefill(ids(Math.min(lengths[0] ?? 1, Number(options.chunk))));
  const rows: ModelRow[] = [];
  for (const tokens of lengths) {
    for (const pattern of options.patterns.split(',')) {
      const own = PATTERNS[pattern];
      if (!own)
        throw new MinferenceError('invalid-argument', `--patterns ${pattern}; allowed: ${Object.keys(PATTERNS).join(', ')}`);
      model.reset();
      const prompt = ids(tokens);
      // Without timestamps first: they split the work into passes.
      let start = performance.now();
      const { logits } = await model.prefill(prompt, { patterns: own });
      const seconds = (performance.now() - start) / 1000;
      if (!logits.every(Number.isFinite))
        throw new MinferenceError('gpu', `${pattern}, ${tokens} tokens: logits that are no numbers`);
      let decodeMs: number | undefined;
      if (decode > 2) {
        // From the first token on, which belongs to the prompt.
        let made = -1;
        for await (const _ of model.generate([1], { maxTokens: decode - 1, stop: [] }))
          if (++made === 0) start = performance.now();
        decodeMs = (performance.now() - start) / made;
      }
      model.reset();
      const { times } = await model.prefill(prompt, { patterns: own, timestamps: true });
      const row: ModelRow = {
        shape: options.shape,
        type: options.type,
        tier,
        pattern,
        tokens,
        seconds,
        ...(times ? { times } : {}),
        ...(decodeMs ? { decodeMs } : {}),
      };
      rows.push(row);
      console.log(line(row));
    }
  }
  const memory = model.memory();
  console.log(
    `weights ${gib(memory.weights)}, cache ${gib(memory.cache)}, activations ${gib(memory.activations.peakBytes)}, attention ${gib(memory.attention.allocatedBytes)}`,
  );
  if (options.json) write(options.json, `${JSON.stringify({ device: model.profile.name, memory, rows }, null, 1)}\n`);
  model.destroy();
}

const gib = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(2)} GiB`;

function line({ pattern, tokens, seconds, times, decodeMs }: ModelRow): string {
  const attention = times && Object.values(times.attention).reduce((a, b) => a + b);
  return [
    `${tokens.toLocaleString('en').padStart(9)} tokens  ${pattern.padEnd(14)}`,
    `${seconds.toFixed(2).padStart(8)} s ${Math.round(tokens / seconds)
      .toLocaleString('en')
      .padStart(8)} tokens/s`,
    times ? `  linear ${times.linearMs.toFixed(0)} ms, attention ${attention?.toFixed(0)} ms` : '',
    decodeMs ? `, then ${decodeMs.toFixed(2)} ms a token` : '',
  ].join('');
}

/** Adds the command `model`: times whole prefills and decoding on synthetic weights. */
export function addModelCommand(program: Command): void {
  program
    .command('model')
    .description('prefill and decoding of a whole model of random weights')
    .option('--shape <name>', Object.keys(SHAPES).join(', '), 'llama-3.1-8b')
    .option('--type <type>', `type of the weights: ${Object.keys(BLOCK_LAYOUT).join()}`, 'f16')
    .option('--tier <tier>', 'portable, f16, matrix or auto', 'auto')
    .option('--lengths <list>', 'tokens of the prompts', '4096,32768,131072')
    .option('--patterns <list>', Object.keys(PATTERNS).join(), 'dense,vertical_slash')
    .option('--chunk <n>', 'tokens of a chunk', '4096')
    .option('--decode <n>', 'tokens to generate after each prompt, if more than 2', '32')
    .option('--no-matrix-products', 'leave subgroup matrices to attention')
    .option('--json <file>', 'writes all measurements')
    .action(run);
}
