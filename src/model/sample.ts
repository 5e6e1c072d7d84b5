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
    const max = logits[argmax(logits)] as number;
    const weight = (i: number): number => Math.exp(((logits[i] as number) - max) / this.#temperature);
    const total = (of: readonly number[]): number => of.reduce((sum, i) => sum + weight(i), 0);
    if (this.#topK < logits.length) {
      const kept = largest(logits, this.#topK);
      return this.#draw(kept, weight, this.#topP * total(kept));
    }
    // Once through a large vocabulary, without a list of it.
    let all = 0;
    for (let i = 0; i < logits.length; i++) all += weight(i);
    if (this.#topP === 1) {
      let rest = this.#random.uniform() * all;
      for (let i = 0; i < logits.length; i++) {
        rest -= weight(i);
        if (rest < 0) return i;
      }
      return argmax(logits); // Rounding left something over.
    }
    // The most probable thousand nearly always reach topP.
    const enough = this.#topP * all;
    const first = largest(logits, 1024);
    return this.#draw(total(first) >= enough ? first : largest(logits, logits.length), weight, enough);
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
