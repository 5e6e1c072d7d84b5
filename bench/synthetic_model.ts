import { ropeFrequencies } from '../src/model/rope.js';
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

/** What the biases of queries and keys are: diagonals are then far enough above the noise of the other weights. */
const BIAS = 6;
/** Shortest wavelength, in tokens, of the rotary pairs that have it: shorter ones would make combs of single diagonals. */
const WAVELENGTH = 512;

/**
 * A model of random weights, for timing only: one seeded block of normal numbers, repeated.
 *
 * Random weights alone would give heads no diagonals worth finding, and vertical-slash, which keeps a number of diagonals, an
 * index that is all but dense. So queries and keys have a bias that makes their product fall with the distance, as in local heads
 * of trained models: b_q . R b_k = BIAS^2 sum_d cos(distance f_d), over the pairs d of long wavelengths. The diagonals that are
 * kept then form some hundred runs: 1000 columns and 6096 diagonals keep about as many keys as in bench/ours.ts.
 */
export function syntheticModel(config: ModelConfig, type: WeightType): LoadedModel {
  const random = new Random(1);
  const chunks = new Map<WeightType, Uint8Array<ArrayBuffer>>();
  const chunkOf = (wanted: WeightType): Uint8Array<ArrayBuffer> => {
    const known = chunks.get(wanted);
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
    chunks.set(wanted, chunk);
    return chunk;
  };
  const vector = (name: string, length: number): Uint8Array<ArrayBuffer> => {
    const { headDim, rope } = config;
    const { frequencies } = ropeFrequencies(rope, config.contextLength);
    const valueAt = (i: number): number => {
      if (name.endsWith('norm.weight')) return 1;
      // Of a rotary pair the first element alone.
      const long = (2 * Math.PI) / (frequencies[i % headDim] ?? Number.POSITIVE_INFINITY) >= WAVELENGTH;
      return long && /\.[qk]\.bias$/.test(name) ? BIAS : 0;
    };
    return new Uint8Array(Float32Array.from({ length }, (_, i) => valueAt(i)).buffer);
  };
  const weights = new Map<string, WeightTensor>();
  for (const [name, shape] of weightShapes(config)) {
    const own = shape.length === 1 ? 'f32' : type;
    const byteLength = bytesOf(shape, type);
    weights.set(name, {
      name,
      shape,
      type: own,
      byteLength,
      read: async function* () {
        const chunk = shape.length === 1 ? vector(name, shape[0] ?? 0) : chunkOf(own);
        for (let at = 0; at < byteLength; at += chunk.byteLength) yield chunk.subarray(0, byteLength - at);
      },
    });
  }
  return { config, weights, close: async () => {} };
}
