import { Float16Array, setFloat16 } from '@petamoriken/float16';
import { invalidArgument } from '../src/errors.js';
import { ropeFrequencies } from '../src/model/rope.js';
import {
  BLOCK_LAYOUT,
  type LoadedModel,
  type ModelConfig,
  type WeightTensor,
  type WeightType,
  weightShapes,
} from '../src/model/types.js';
import { isQuantizable, quantize } from '../src/reference/quant.js';
import { deriveSeed, Random } from '../src/reference/random.js';

/** All have biases of queries and keys, for the sake of {@link syntheticModel}. */
const SHARED = { rmsEps: 1e-5, qkvBias: true, qkNorm: false, contextLength: 2 ** 20, stopIds: [] } as const;

/** Shapes of published models. */
export const SHAPES: Readonly<Record<string, ModelConfig>> = {
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
    rope: { theta: 1e6, rotaryDim: 128 },
  },
  'smollm2-135m': {
    ...SHARED,
    architecture: 'llama',
    layers: 30,
    hiddenSize: 576,
    intermediateSize: 1536,
    numHeads: 9,
    numKvHeads: 3,
    headDim: 64,
    vocabSize: 49152,
    tieEmbeddings: true,
    rope: { theta: 100000, rotaryDim: 64 },
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

/** The shape and the type of weights that a command line names. */
export function namedShape({ shape, type }: { readonly shape: string; readonly type: string }): {
  readonly config: ModelConfig;
  readonly type: WeightType;
} {
  const config = SHAPES[shape];
  if (!config) throw invalidArgument('--shape', shape, Object.keys(SHAPES).join(', '));
  if (!(type in BLOCK_LAYOUT)) throw invalidArgument('--type', type, Object.keys(BLOCK_LAYOUT).join(', '));
  return { config, type: type as WeightType };
}

/** Bytes of a weight: vectors are always f32. */
function bytesOf(shape: readonly number[], type: WeightType): number {
  const { elements, bytes } = BLOCK_LAYOUT[shape.length === 1 ? 'f32' : type];
  return (shape.reduce((a, b) => a * b) / elements) * bytes;
}

/** Bytes of a model's weights: of each layer, and of the rest. */
export function weightBytes(config: ModelConfig, type: WeightType): { readonly layer: number; readonly rest: number } {
  const sum = (layers: number): number =>
    [...weightShapes({ ...config, layers })].reduce((total, [, shape]) => total + bytesOf(shape, type), 0);
  return { layer: sum(1) - sum(0), rest: sum(0) };
}

/** Biases of queries and keys, where keys have noise of 1. */
const QUERY_BIAS = 1;
const KEY_BIAS = 0.45;
/** Shortest wavelength, in tokens, of the rotary pairs with a bias: shorter ones would make combs of single diagonals. */
const WAVELENGTH = 512;
/** What query and output projections are smaller by than others. */
const SMALL = 0.04;

/** Numbers in a block of random weights: rows of any model start at many places, as 4106 is twice a prime. */
const BLOCK = 4106 * 256;

/**
 * Bytes of random weights with mean 0 and this standard deviation. Where encoding is a search, the stored integers are
 * random.
 */
export function randomBlock(random: Random, type: WeightType, deviation: number): Uint8Array<ArrayBuffer> {
  if (type === 'f32') return new Uint8Array(random.normals(BLOCK, deviation).buffer);
  if (type === 'f16') return new Uint8Array(new Float16Array(random.normals(BLOCK, deviation)).buffer); // quantize() takes seconds
  if (isQuantizable(type)) return quantize(type, random.normals(BLOCK, deviation));
  const { elements, bytes } = BLOCK_LAYOUT[type];
  const block = Uint8Array.from({ length: (BLOCK / elements) * bytes }, () => random.integer(0, 255));
  const view = new DataView(block.buffer);
  for (let at = 0; at < block.length; at += bytes) {
    if (type === 'q2_k') {
      // Minima equal to the scales.
      for (let i = 0; i < 16; i++) block[at + i] = 17 * random.integer(0, 15);
      const d = deviation / Math.sqrt(77.5 * 1.25); // mean squares of scale and q - 1.5
      setFloat16(view, at + 80, d, true);
      setFloat16(view, at + 82, 1.5 * d, true);
    } else if (type === 'q3_k') {
      // Levels from -3 to 3: from -4 on they would have a mean.
      block.fill(0, at, at + 96);
      for (let i = 0; i < 256; i++) {
        const level = random.integer(1, 7);
        const [low, high] = [at + 32 + 32 * (i >> 7) + (i & 31), at + (i & 31)];
        block[low] = (block[low] as number) | ((level & 3) << (2 * ((i >> 5) & 3)));
        block[high] = (block[high] as number) | ((level >> 2) << (i >> 5));
      }
      setFloat16(view, at + 108, deviation / Math.sqrt(341.5 * 4), true); // mean squares of scale - 32 and level
    } else if (type !== 'q6_k') {
      // Scales from 0 to 15, and minima equal to them: with dmin = 7.5 d, an element is d scale (q - 7.5); of 5 bits, with 15.5.
      const middle = type === 'q4_k' ? 7.5 : 15.5;
      for (let i = 4; i < 8; i++) {
        block[at + i] = random.integer(0, 15);
        block[at + 4 + i] = block[at + i] as number;
        block[at + 8 + i] = 17 * random.integer(0, 15);
      }
      const d = deviation / Math.sqrt(77.5 * ((middle * (middle + 1)) / 3)); // mean squares of scale and q - middle
      setFloat16(view, at, d, true);
      setFloat16(view, at + 2, middle * d, true);
    } else {
      for (let i = 192; i < 208; i++) view.setInt8(at + i, random.integer(-8, 8));
      setFloat16(view, at + 208, deviation / Math.sqrt(24 * 341.5), true); // mean squares of scale and q - 32
    }
  }
  return block;
}

/**
 * A model of random weights, for timing only, in which vertical-slash finds about what it finds in the generated input of
 * bench/ours.ts: there, 1000 columns and 6096 diagonals (40 runs beside the local ones) stand for 9,600 keys a row.
 *
 * Random queries and keys alone have nothing to find: the chosen diagonals scatter, each brings 64 keys along, and the index is all
 * but dense. Here a score is the sum of two parts:
 *
 * - b_q . R b_k falls with the distance, as in local heads of trained models: biases of the first elements of rotary pairs d with
 *   long wavelengths make it QUERY_BIAS KEY_BIAS / sqrt(D) sum_d cos(distance f_d), 0.19 less for each factor e of distance;
 * - b_q . R noise_k is each key's own, with a standard deviation of 0.57: keys that stand out become columns, near and far.
 *
 * A diagonal is a sum over 64 keys, so its noise is an eighth of a column's: nearly all of the 6096 lie within the next 10,000, in
 * some 30 to 40 runs. Scores stay within a few units of each other, so none of a million keys underflows.
 *
 * That takes queries that are alike (else every query has noise of its own; their projections are small), and tokens that stay
 * different from layer to layer: attention adds little to the residual stream (its output projections are small, too), and each
 * kind of weight has a block of random numbers of its own, repeated. With one block for all, rows of the projections are
 * rows of the embedding: products of a row with itself outdo everything in the first layer.
 *
 * A simulation of llama-3.1-8b at 131,072 tokens, chunks of 4,096, 1000 columns and 6096 diagonals: 8,800 to 10,700 keys a row of the
 * last chunk with weights of f16, q4_k and q6_k, 14% of all pairs; 5.6% for the mix of patterns that MInference has for that model.
 * At 524,288 tokens 9,700 keys, at 1,048,576 9,600. With one block for all kinds and biases of 6: 46,000 to 71,000 in the first layer.
 */
export function syntheticModel(config: ModelConfig, type: WeightType): LoadedModel {
  const blocks = new Map<string, Uint8Array<ArrayBuffer>>();
  const blockOf = (name: string, own: WeightType, columns: number): Uint8Array<ArrayBuffer> => {
    const kind = name.replace(/^layers\.\d+\./, '');
    let block = blocks.get(kind);
    if (!block) {
      const scale = /^attn\.[qo]\./.test(kind) ? SMALL : 1;
      block = randomBlock(new Random(deriveSeed(1, kind)), own, scale / Math.sqrt(columns));
      blocks.set(kind, block);
    }
    return block;
  };
  const vector = (name: string, length: number): Uint8Array<ArrayBuffer> => {
    const { headDim, rope } = config;
    const { frequencies } = ropeFrequencies(rope, config.contextLength);
    const valueAt = (i: number): number => {
      if (name.endsWith('norm.weight')) return 1;
      // Of a rotary pair the first element alone.
      const long = (2 * Math.PI) / (frequencies[i % headDim] ?? Number.POSITIVE_INFINITY) >= WAVELENGTH;
      if (!long) return 0;
      return name.endsWith('.q.bias') ? QUERY_BIAS : name.endsWith('.k.bias') ? KEY_BIAS : 0;
    };
    return new Uint8Array(Float32Array.from({ length }, (_, i) => valueAt(i)).buffer);
  };
  const weights = new Map<string, WeightTensor>();
  for (const [name, shape] of weightShapes(config)) {
    const [rows = 0, columns] = shape;
    const own = columns === undefined ? 'f32' : type;
    const byteLength = bytesOf(shape, type);
    weights.set(name, {
      name,
      shape,
      type: own,
      byteLength,
      read: async function* () {
        const block = columns === undefined ? vector(name, rows) : blockOf(name, own, columns);
        for (let at = 0; at < byteLength; at += block.byteLength) yield block.subarray(0, byteLength - at);
      },
    });
  }
  return { config, weights, close: async () => {} };
}
