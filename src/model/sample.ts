import { checkInteger, invalidArgument } from '../errors.js';
import { Random } from '../reference/random.js';

/** How the next token is drawn. */
export interface SamplingOptions {
  /** 0 (default): always the most probable token. Logits are divided by it otherwise. */
  readonly temperature?: number;
  /** Only the k most probable tokens. Default: all. */
  readonly topK?: number;
  /** Only the most probable tokens that together reach this probability, above 0, up to 1. Default 1: all. */
  readonly topP?: number;
  /** Seed of the random numbers; default: from the clock. */
  readonly seed?: number;
}

/** Draws tokens from logits. */
export class Sampler {
  /** Always the most probable token. */
  readonly greedy: boolean;
  readonly #temperature: number;
  readonly #topK: number;
  readonly #topP: number;
  readonly #random: Random;
  #weights = new Float32Array(0);

  /** @throws {@link MinferenceError} `invalid-argument` for options out of range. */
  constructor(options: SamplingOptions = {}) {
    const { temperature = 0, topK, topP = 1, seed = Date.now() >>> 0 } = options;
    if (typeof temperature !== 'number' || !(temperature >= 0) || !Number.isFinite(temperature)) {
      throw invalidArgument('temperature', temperature, 'a finite number of at least 0');
    }
    if (topK !== undefined) checkInteger('topK', topK, 1, 2 ** 31);
    if (typeof topP !== 'number' || !(topP > 0 && topP <= 1)) throw invalidArgument('topP', topP, 'a number above 0, up to 1');
    checkInteger('seed', seed, 0, 2 ** 32 - 1);
    this.greedy = temperature === 0 || topK === 1;
    this.#temperature = temperature;
    this.#topK = topK ?? Number.POSITIVE_INFINITY;
    this.#topP = topP;
    this.#random = new Random(seed);
  }

  /** One token. */
  sample(logits: Float32Array): number {
    if (this.greedy) return argmax(logits);
    const best = argmax(logits);
    const max = logits[best] as number;
    if (this.#topK < logits.length) {
      const weight = (i: number): number => Math.exp(((logits[i] as number) - max) / this.#temperature);
      const kept = largest(logits, this.#topK);
      return this.#draw(kept, weight, this.#topP * kept.reduce((sum, i) => sum + weight(i), 0));
    }
    // A vocabulary may have 150,000 tokens: no lists of them, and exponentials once.
    if (this.#weights.length !== logits.length) this.#weights = new Float32Array(logits.length);
    const weights = this.#weights;
    let total = 0;
    for (let i = 0; i < logits.length; i++) {
      const weight = Math.exp(((logits[i] as number) - max) / this.#temperature);
      weights[i] = Number.isNaN(weight) ? 0 : weight;
      total += weights[i] as number;
    }
    if (this.#topP < 1) total = keepNucleus(weights, this.#topP * total);
    let rest = this.#random.uniform() * total;
    for (let i = 0; i < weights.length; i++) {
      rest -= weights[i] as number;
      if (rest < 0) return i;
    }
    return best; // Rounding left something over.
  }

  /** Draws from the candidates, in order, until their weights reach `enough`. */
  #draw(candidates: readonly number[], weight: (i: number) => number, enough: number): number {
    let total = 0;
    let count = 0;
    while (count < candidates.length && total < enough) total += weight(candidates[count++] as number);
    let rest = this.#random.uniform() * total;
    for (let i = 0; i < count; i++) {
      rest -= weight(candidates[i] as number);
      if (rest < 0) return candidates[i] as number;
    }
    return candidates[count - 1] as number;
  }
}

/** The bits of an f32 1, and how many of the last ones do not count to a weight's size: what is left are 32 sizes an octave. */
const ONE_BITS = 0x3f800000;
const SIZE_SHIFT = 18;

/**
 * Keeps the greatest of the weights, each in (0, 1] or 0, that together reach `enough`, the lowest index first among equals, and
 * makes all others 0. Returns the sum of those it kept.
 *
 * They are summed by size first, so that only those of about the size where the sum reaches `enough` need an order.
 */
export function keepNucleus(weights: Float32Array, enough: number): number {
  const bits = new Uint32Array(weights.buffer, weights.byteOffset, weights.length);
  const sizeOf = (i: number): number => (ONE_BITS - (bits[i] as number)) >>> SIZE_SHIFT; // 0 for 1, and the more the smaller
  const sums = new Float64Array((ONE_BITS >>> SIZE_SHIFT) + 1);
  for (let i = 0; i < weights.length; i++) sums[sizeOf(i)] = (sums[sizeOf(i)] as number) + (weights[i] as number);
  let kept = 0;
  let last = 0;
  while (last < sums.length - 1 && kept + (sums[last] as number) < enough) kept += sums[last++] as number;
  const border: number[] = [];
  for (let i = 0; i < weights.length; i++) {
    if (sizeOf(i) === last) border.push(i);
    else if (sizeOf(i) > last) weights[i] = 0;
  }
  border.sort((a, b) => (weights[b] as number) - (weights[a] as number) || a - b);
  for (const i of border) {
    if (kept < enough) kept += weights[i] as number;
    else weights[i] = 0;
  }
  return kept;
}

/** Index of the greatest number, the lowest among equals; NaN counts as less than anything. */
export function argmax(x: Float32Array): number {
  let best = 0;
  for (let i = 1; i < x.length; i++) if (!((x[i] as number) <= (x[best] as number)) && !Number.isNaN(x[i])) best = i;
  return best;
}

/** Indices of the `k` greatest numbers, greatest first, the lowest index first among equals. */
export function largest(x: Float32Array, k: number): number[] {
  const before = (a: number, b: number): number => (x[b] as number) - (x[a] as number) || a - b;
  if (4 * k >= x.length) {
    return Array.from(x, (_, i) => i)
      .sort(before)
      .slice(0, k);
  }
  // Keeps up to 2 k candidates above a bound that rises whenever they are cut to k.
  let kept: number[] = [];
  let bound = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < x.length; i++) {
    if (!((x[i] as number) > bound)) continue;
    kept.push(i);
    if (kept.length === 2 * k) {
      kept = kept.sort(before).slice(0, k);
      bound = x[kept[k - 1] as number] as number;
    }
  }
  return kept.sort(before).slice(0, k);
}
