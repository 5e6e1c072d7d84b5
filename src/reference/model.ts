import { ropeFrequencies } from '../model/rope.js';
import type { ModelConfig } from '../model/types.js';
import { type AttentionShape, attentionRows, keysOfDense, type Numbers, type Visibility } from './oracle.js';

/** y[i, j] = sum_k a[i, k] w[j, k] + bias[j], for `rows` rows of a. */
export function product(a: Numbers, w: Numbers, rows: number, columns: number, bias?: Numbers): Float64Array {
  const outputs = w.length / columns;
  const y = new Float64Array(rows * outputs);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < outputs; j++) {
      let sum = bias?.[j] ?? 0;
      for (let k = 0; k < columns; k++) sum += (a[i * columns + k] as number) * (w[j * columns + k] as number);
      y[i * outputs + j] = sum;
    }
  }
  return y;
}

/** y = w x / sqrt(mean(x^2) + eps) for each row of `w.length` values. */
export function rmsNorm(x: Numbers, w: Numbers, eps: number): Float64Array {
  const width = w.length;
  const y = new Float64Array(x.length);
  for (let at = 0; at < x.length; at += width) {
    let squares = 0;
    for (let i = 0; i < width; i++) squares += (x[at + i] as number) ** 2;
    const scale = 1 / Math.sqrt(squares / width + eps);
    for (let i = 0; i < width; i++) y[at + i] = (x[at + i] as number) * scale * (w[i] as number);
  }
  return y;
}

/**
 * Turns one head in place: elements d and d + R/2 by the angle position * f_d, for d < R/2 = `frequencies.length`.
 *
 * @param factor what cos and sin are multiplied by
 */
export function rotate(head: Float64Array, position: number, frequencies: Float64Array, factor: number): void {
  const half = frequencies.length;
  for (let d = 0; d < half; d++) {
    const angle = position * (frequencies[d] as number);
    const [cos, sin] = [factor * Math.cos(angle), factor * Math.sin(angle)];
    const [x, y] = [head[d] as number, head[d + half] as number];
    head[d] = x * cos - y * sin;
    head[d + half] = y * cos + x * sin;
  }
}

/** silu(gate) * up. */
export function swiglu(gate: Numbers, up: Numbers): Float64Array {
  return Float64Array.from(gate, (x, i) => (x / (1 + Math.exp(-x))) * (up[i] as number));
}

/** ln(softmax(logits))[target] */
export function logProbability(logits: Numbers, target: number): number {
  let max = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < logits.length; i++) max = Math.max(max, logits[i] as number);
  let sum = 0;
  for (let i = 0; i < logits.length; i++) sum += Math.exp((logits[i] as number) - max);
  return (logits[target] as number) - max - Math.log(sum);
}

/** Queries, keys and values of one layer, as attention sees them: `[heads, rows, headDim]`. */
interface Heads {
  readonly q: Float64Array;
  readonly k: Float64Array;
  readonly v: Float64Array;
}

/** What {@link modelLogits} needs beside the tokens. */
export interface OracleModel {
  readonly config: ModelConfig;
  /** The numbers of a weight, by canonical name. */
  readonly weight: (name: string) => Numbers;
  /** What each layer's heads see; default: everything before them. */
  readonly visibility?: (shape: AttentionShape, layer: number, head: number) => Visibility;
}

/**
 * The whole model in float64: logits `[tokens, vocabSize]` of every position.
 *
 *   x = embed(tokens);   for each layer:   x += o(attention(rope(norm(q h)), rope(norm(k h)), v h)),   h = norm(x)
 *                                          x += down(silu(gate h) * up h),                             h = norm(x)
 *   logits = head norm(x)
 */
export function modelLogits(model: OracleModel, tokens: readonly number[]): Float64Array {
  const { config, weight } = model;
  const { hiddenSize: hidden, headDim, numHeads, numKvHeads, rmsEps } = config;
  const rows = tokens.length;
  const embed = weight('embed.weight');
  const x = new Float64Array(rows * hidden);
  tokens.forEach((token, i) => x.set(embed.subarray(token * hidden, (token + 1) * hidden), i * hidden));
  const add = (y: Float64Array): void => {
    for (let i = 0; i < x.length; i++) x[i] = (x[i] as number) + (y[i] as number);
  };
  const shape: AttentionShape = { heads: numHeads, kvHeads: numKvHeads, queries: rows, keys: rows, headDim };
  for (let layer = 0; layer < config.layers; layer++) {
    const w = (name: string): Numbers => weight(`layers.${layer}.${name}`);
    const h = rmsNorm(x, w('attn_norm.weight'), rmsEps);
    const heads = attentionInput(config, w, h, rows);
    const visible = (head: number): Visibility => model.visibility?.(shape, layer, head) ?? keysOfDense(shape);
    const { o } = attentionRows({ ...shape, ...heads }, visible);
    add(product(toRows(o, numHeads, rows, headDim), w('attn.o.weight'), rows, numHeads * headDim));
    const m = rmsNorm(x, w('mlp_norm.weight'), rmsEps);
    const inner = swiglu(product(m, w('mlp.gate.weight'), rows, hidden), product(m, w('mlp.up.weight'), rows, hidden));
    add(product(inner, w('mlp.down.weight'), rows, config.intermediateSize));
  }
  const last = rmsNorm(x, weight('norm.weight'), rmsEps);
  return product(last, config.tieEmbeddings ? embed : weight('head.weight'), rows, hidden);
}

/** Projects, norms and turns the heads of one layer. */
function attentionInput(config: ModelConfig, w: (name: string) => Numbers, h: Float64Array, rows: number): Heads {
  const { headDim, hiddenSize, rmsEps } = config;
  const { frequencies, factor } = ropeFrequencies(config.rope, rows);
  const project = (name: 'q' | 'k' | 'v', heads: number): Float64Array => {
    const bias = config.qkvBias ? w(`attn.${name}.bias`) : undefined;
    const y = product(h, w(`attn.${name}.weight`), rows, hiddenSize, bias);
    const out = new Float64Array(y.length);
    for (let row = 0; row < rows; row++) {
      for (let head = 0; head < heads; head++) {
        let x: Float64Array = y.slice((row * heads + head) * headDim, (row * heads + head + 1) * headDim);
        if (name !== 'v') {
          if (config.qkNorm) x = rmsNorm(x, w(`attn.${name}_norm.weight`), rmsEps);
          rotate(x, row, frequencies, factor);
        }
        out.set(x, (head * rows + row) * headDim);
      }
    }
    return out;
  };
  return { q: project('q', config.numHeads), k: project('k', config.numKvHeads), v: project('v', config.numKvHeads) };
}

/** `[heads, rows, headDim]` to `[rows, heads, headDim]`. */
function toRows(o: Float64Array, heads: number, rows: number, headDim: number): Float64Array {
  const out = new Float64Array(o.length);
  for (let head = 0; head < heads; head++) {
    for (let row = 0; row < rows; row++) {
      const at = (head * rows + row) * headDim;
      out.set(o.subarray(at, at + headDim), (row * heads + head) * headDim);
    }
  }
  return out;
}
