import type { AttentionInput, AttentionShape } from './oracle.js';
import { kvHeadOf, queryOffsetOf } from './oracle.js';

/** A small seeded generator (mulberry32): the same seed gives the same numbers everywhere. */
export class Random {
  #state: number;
  #spare: number | undefined;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** Uniform in [0, 1). */
  uniform(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  /** Uniform integer in [min, max]. */
  integer(min: number, max: number): number {
    return min + Math.floor(this.uniform() * (max - min + 1));
  }

  /** Standard normal (Box-Muller). */
  normal(): number {
    if (this.#spare !== undefined) {
      const x = this.#spare;
      this.#spare = undefined;
      return x;
    }
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    const angle = 2 * Math.PI * this.uniform();
    this.#spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }

  /** `count` normal values of this standard deviation. */
  normals(count: number, deviation = 1): Float32Array<ArrayBuffer> {
    const out = new Float32Array(count);
    for (let i = 0; i < count; i++) out[i] = deviation * this.normal();
    return out;
  }

  /** One of the options. */
  pick<T>(options: readonly T[]): T {
    return options[this.integer(0, options.length - 1)] as T;
  }

  /** `count` different integers of [min, max] (all of them when there are fewer), ascending. */
  distinct(count: number, min: number, max: number): number[] {
    const chosen = new Set<number>();
    const wanted = Math.min(count, Math.max(0, max - min + 1));
    while (chosen.size < wanted) chosen.add(this.integer(min, max));
    return [...chosen].sort((a, b) => a - b);
  }
}

/** A seed made from another seed and a name, so that every named case draws its own numbers. */
export function deriveSeed(seed: number, name: string): number {
  let hash = (seed ^ 0x811c9dc5) >>> 0;
  for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193) >>> 0;
  return hash;
}

/** Random q, k and v with independent normal elements. */
export function randomLayer(shape: AttentionShape, seed: number): AttentionInput {
  const random = new Random(seed);
  return {
    ...shape,
    q: random.normals(shape.heads * shape.queries * shape.headDim),
    k: random.normals(shape.kvHeads * shape.keys * shape.headDim),
    v: random.normals(shape.kvHeads * shape.keys * shape.headDim),
  };
}

/** What one query head of {@link plantedLayer} attends to; every part may be missing. */
export interface PlantedHead {
  /** Keys that all rows attend to. They are the same for all query heads that share a key/value head. */
  readonly columns?: readonly number[];
  /** Distances between row and key that all rows attend along. */
  readonly slashes?: readonly number[];
  /** Per row block (64 rows of this call): the key blocks that its rows attend to. */
  readonly blocks?: readonly (readonly number[])[];
}

/**
 * Random q, k and v whose heads really have the named patterns, so that an index builder must find them.
 *
 * Every key, every block of keys, and all planted columns of a key/value head together own a random code
 * that is part of the key; a query is the sum of the codes of what it shall attend to. The planted logits are
 * about `strength`, the others spread around 0.
 *
 * @param planted one entry per query head
 * @param strength planted logit; default 12
 */
export function plantedLayer(
  shape: AttentionShape,
  planted: readonly PlantedHead[],
  seed: number,
  strength = 12,
): AttentionInput {
  const { heads, kvHeads, queries, keys, headDim } = shape;
  const random = new Random(seed);
  const offset = queryOffsetOf(shape);
  const scale = shape.scale ?? 1 / Math.sqrt(headDim);
  // Codes have squared norm headDim * amplitude^2 = strength / scale.
  const amplitude = Math.sqrt(strength / scale / headDim);
  const keyBlocks = Math.ceil(keys / 64);
  // Of exactly that norm: a code that is short by chance would hide all columns that share it.
  const codes = (count: number): Float32Array => {
    const list = random.normals(count * headDim);
    for (let at = 0; at < list.length; at += headDim) {
      const code = list.subarray(at, at + headDim);
      const norm = Math.sqrt(code.reduce((sum, x) => sum + x * x, 0));
      code.forEach((x, d) => {
        code[d] = (x * amplitude * Math.sqrt(headDim)) / norm;
      });
    }
    return list;
  };
  const keyCodes = codes(kvHeads * keys);
  const blockCodes = codes(kvHeads * keyBlocks);
  const columnCodes = codes(kvHeads);
  const q = random.normals(heads * queries * headDim, 0.1);
  const k = random.normals(kvHeads * keys * headDim, 0.1);
  const v = random.normals(kvHeads * keys * headDim);
  const add = (to: Float32Array, at: number, from: Float32Array, fromAt: number): void => {
    for (let d = 0; d < headDim; d++) to[at + d] = (to[at + d] as number) + (from[fromAt + d] as number);
  };
  const columns = Array.from({ length: kvHeads }, () => new Set<number>());
  const usesBlocks = new Set<number>();
  planted.forEach((plan, head) => {
    for (const column of plan.columns ?? []) columns[kvHeadOf(shape, head)]?.add(column);
    if (plan.blocks) usesBlocks.add(kvHeadOf(shape, head));
  });
  for (let kvHead = 0; kvHead < kvHeads; kvHead++) {
    for (let key = 0; key < keys; key++) {
      const at = (kvHead * keys + key) * headDim;
      if (columns[kvHead]?.has(key)) add(k, at, columnCodes, kvHead * headDim);
      else if (usesBlocks.has(kvHead)) add(k, at, blockCodes, (kvHead * keyBlocks + Math.floor(key / 64)) * headDim);
      else add(k, at, keyCodes, at);
    }
  }
  for (let head = 0; head < heads; head++) {
    const plan = planted[head] ?? {};
    const kvHead = kvHeadOf(shape, head);
    for (let row = 0; row < queries; row++) {
      const at = (head * queries + row) * headDim;
      const position = offset + row;
      if (plan.columns?.length) add(q, at, columnCodes, kvHead * headDim);
      for (const slash of plan.slashes ?? []) {
        if (slash <= position) add(q, at, keyCodes, (kvHead * keys + position - slash) * headDim);
      }
      for (const block of plan.blocks?.[Math.floor(row / 64)] ?? []) {
        add(q, at, blockCodes, (kvHead * keyBlocks + block) * headDim);
      }
    }
  }
  return { ...shape, q, k, v };
}
