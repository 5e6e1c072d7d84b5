/**
 * The float64 reference of the methods beyond MInference's three patterns. Same conventions as `oracle.ts`:
 * slow, readable, one function per step.
 */
import type { HeadIndex } from '../scheduler/types.js';
import {
  type AttentionInput,
  type AttentionShape,
  BLOCK,
  blockPositions,
  blockScores,
  ESTIMATE_ROWS,
  keysOfVerticalSlash,
  kvHeadOf,
  type Numbers,
  poolBlocks,
  queryOffsetOf,
  scaleOf,
  topK,
  type Visibility,
  verticalSlashScores,
} from './oracle.js';

/** Tri-shape (SCBench, arXiv 2412.10319): A-shape, and the last `lastSize` query rows of the call see every key. */
export function keysOfTriShape(shape: AttentionShape, initSize: number, localSize: number, lastSize: number): Visibility {
  const offset = queryOffsetOf(shape);
  return (row, key) => {
    const position = offset + row;
    return key <= position && (key < initSize || position - key < localSize || row >= shape.queries - lastSize);
  };
}

/** Vertical-slash over given columns and runs of diagonals (`lo, hi` pairs, both ends kept); diagonal 0 is always kept. */
export function keysOfStatic(shape: AttentionShape, columns: ArrayLike<number>, runs: ArrayLike<number>): Visibility {
  const slashes = [0];
  for (let i = 0; i < runs.length; i += 2) {
    for (let s = runs[i] as number; s <= (runs[i + 1] as number) && s < shape.keys + BLOCK; s++) slashes.push(s);
  }
  return keysOfVerticalSlash(
    shape,
    Array.from(columns).filter((c) => c < shape.keys),
    slashes,
  );
}

/** XAttention's estimate of one head: attention of row blocks to key blocks, `[row blocks, key blocks]`. */
export interface XAttentionScores {
  readonly rowBlocks: number;
  readonly keyBlocks: number;
  /** Sums of the probabilities of a row block's groups; a row of it adds up to the number of its groups. */
  readonly scores: Float64Array;
}

/**
 * XAttention's block scores (arXiv 2503.16428, section 2.1): queries and keys in groups of `stride`; the score of a
 * group pair is the sum over the antidiagonal of its square; softmax over the key groups that start at or
 * before the row group's last row; sums over blocks of 64 by 64. Rows and keys that do not exist count as zero.
 */
export function xAttentionScores(input: AttentionInput, head: number, stride: number): XAttentionScores {
  const { q, k, queries, keys, headDim } = input;
  const offset = queryOffsetOf(input);
  const end = offset + queries;
  const kv = kvHeadOf(input, head);
  const scale = scaleOf(input) / stride;
  const rowBlocks = Math.ceil(queries / BLOCK);
  const keyBlocks = Math.ceil(end / BLOCK);
  const scores = new Float64Array(rowBlocks * keyBlocks);
  for (let group = 0; group * stride < queries; group++) {
    const last = offset + Math.min((group + 1) * stride, queries) - 1;
    const x: number[] = [];
    for (let j = 0; j * stride <= last; j++) {
      let sum = 0;
      for (let t = 0; t < stride; t++) {
        const row = group * stride + stride - 1 - t;
        const key = j * stride + t;
        if (row >= queries || key >= end) continue;
        for (let d = 0; d < headDim; d++) {
          sum += (q[(head * queries + row) * headDim + d] as number) * (k[(kv * keys + key) * headDim + d] as number);
        }
      }
      x.push(sum * scale);
    }
    const max = x.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
    const total = x.reduce((a, b) => a + Math.exp(b - max), 0);
    x.forEach((value, j) => {
      const at = Math.floor((group * stride) / BLOCK) * keyBlocks + Math.floor((j * stride) / BLOCK);
      scores[at] = (scores[at] as number) + Math.exp(value - max) / total;
    });
  }
  return { rowBlocks, keyBlocks, scores };
}

/** What FlexPrefill goes by. */
export interface FlexPrefillBudgets {
  readonly gamma: number;
  readonly tau: number;
  readonly minBudget: number;
}

/** Softmax of `scale * x` over a list. */
function softmax(x: readonly number[], scale: number): number[] {
  const max = x.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  const e = x.map((b) => Math.exp(scale * (b - max)));
  const sum = e.reduce((a, b) => a + b, 0);
  return e.map((b) => b / sum);
}

/** `sqrt(KL(p, m) / 2 + KL(q, m) / 2)` with `m = (p + q) / 2`, in natural logarithms: 0 to 0.83. */
export function jensenShannonDistance(p: readonly number[], q: readonly number[]): number {
  const divergence = (a: number, m: number): number => (a > 0 ? a * Math.log(a / m) : 0);
  const sum = p.reduce((total, a, i) => {
    const b = q[i] as number;
    return total + divergence(a, (a + b) / 2) / 2 + divergence(b, (a + b) / 2) / 2;
  }, 0);
  return Math.sqrt(Math.max(0, sum));
}

/**
 * Distance between what the last min(64, N) query rows attend to, pooled over the key blocks that they see, and the softmax of
 * pooled q and k (FlexPrefill, arXiv 2502.20766, algorithm 2).
 */
export function flexPrefillDistance(input: AttentionInput, head: number): number {
  const { q, k, queries, keys, headDim } = input;
  const rows = Math.min(ESTIMATE_ROWS, queries);
  const blocks = Math.ceil((queryOffsetOf(input) + queries) / BLOCK);
  const kv = kvHeadOf(input, head);
  const kMean = poolBlocks(k.subarray(kv * keys * headDim, (kv + 1) * keys * headDim), keys, headDim);
  const last = q.subarray(((head + 1) * queries - rows) * headDim, (head + 1) * queries * headDim);
  const qMean = poolBlocks(last, rows, headDim);
  const scores = Array.from({ length: blocks }, (_, c) =>
    qMean.reduce((sum, x, d) => sum + x * (kMean[c * headDim + d] as number), 0),
  );
  const real = new Array<number>(blocks).fill(0);
  verticalSlashScores(input, head).vertical.forEach((x, key) => {
    const c = Math.floor(key / BLOCK);
    if (c < blocks) real[c] = (real[c] as number) + x / rows;
  });
  return jensenShannonDistance(real, softmax(scores, scaleOf(input)));
}

/** Pooled attention of all row blocks to the key blocks that they see, `[row blocks, key blocks]`; each row sums to 1. */
export function flexPrefillBlockScores(input: AttentionInput, head: number): Float64Array {
  const scores = blockScores(input, head);
  const keyBlocks = Math.ceil(input.keys / BLOCK);
  for (let b = 0; b * BLOCK < input.queries; b++) {
    const row = scores.subarray(b * keyBlocks, (b + 1) * keyBlocks);
    const visible = Math.floor(blockPositions(input, b).last / BLOCK) + 1;
    const p = softmax([...row.subarray(0, visible)], scaleOf(input));
    row.forEach((_x, c) => {
      row[c] = p[c] ?? 0;
    });
  }
  return scores;
}

/** The fewest scores, the largest first, whose sum reaches `share` of the total, `forced` and at least `least` of them; ascending. */
export function cumulativeSelection(scores: Numbers, share: number, forced: ReadonlySet<number>, least = 0): number[] {
  const total = Array.from(scores).reduce((a, x) => a + x, 0);
  const kept = new Set(forced);
  let sum = [...kept].reduce((a, i) => a + (scores[i] as number), 0);
  const others = Array.from(scores, (_x, i) => i).filter((i) => !kept.has(i));
  for (const i of others.sort((a, b) => (scores[b] as number) - (scores[a] as number) || a - b)) {
    if (kept.size >= least && (sum >= share * total || (scores[i] as number) === 0)) break;
    kept.add(i);
    sum += scores[i] as number;
  }
  return [...kept].sort((a, b) => a - b);
}

/** Scores and sums as close as this (relative) count as equal when a kept set is compared with the oracle's. */
const TIE = 1e-4;

/**
 * What a cumulative selection in less exact arithmetic must keep and what it may keep: sums and scores that rounding may decide
 * leave the choice open.
 */
function selectionBounds(
  scores: Numbers,
  share: number,
  forced: ReadonlySet<number>,
  least = 0,
): { readonly must: ReadonlySet<number>; readonly may: ReadonlySet<number> } {
  const lowest = (kept: readonly number[]): number =>
    kept.reduce((a, i) => (forced.has(i) ? a : Math.min(a, scores[i] as number)), Number.POSITIVE_INFINITY);
  const few = cumulativeSelection(scores, share - TIE, forced, least);
  const many = cumulativeSelection(scores, share + TIE, forced, least);
  const must = few.filter((i) => forced.has(i) || (scores[i] as number) > lowest(few) * (1 + TIE) + 1e-30);
  const may = Array.from(scores, (_x, i) => i).filter(
    (i) => forced.has(i) || (scores[i] as number) >= lowest(many) * (1 - TIE) - 1e-30,
  );
  return { must: new Set(must), may: new Set(may) };
}

/** What is wrong with an ascending list of what a cumulative selection kept; nothing when it is right up to rounding. */
function selectionProblem(
  what: string,
  kept: readonly number[],
  { must, may }: { readonly must: ReadonlySet<number>; readonly may: ReadonlySet<number> },
): string | undefined {
  const has = new Set(kept);
  const missing = [...must].find((i) => !has.has(i));
  const extra = kept.find((i) => !may.has(i));
  if (kept.some((x, i) => i > 0 && x <= (kept[i - 1] as number))) return `${what}: not ascending`;
  if (missing !== undefined) return `${what}: ${missing} is left out (${kept.length} kept, ${must.size} needed)`;
  return extra === undefined ? undefined : `${what}: ${extra} is kept (${kept.length} kept, at most ${may.size} allowed)`;
}

/** What is wrong with XAttention's blocks of a head; nothing when they are right up to rounding. */
export function xAttentionProblem(
  input: AttentionInput,
  head: number,
  { stride, threshold }: { readonly stride: number; readonly threshold: number },
  blocks: readonly Uint32Array[],
): string | undefined {
  const { rowBlocks, keyBlocks, scores } = xAttentionScores(input, head, stride);
  if (blocks.length !== rowBlocks) return `blocks of ${blocks.length} row blocks, expected ${rowBlocks}`;
  for (let b = 0; b < rowBlocks; b++) {
    const bounds = selectionBounds(scores.subarray(b * keyBlocks, (b + 1) * keyBlocks), threshold, forcedBlocks(input, b));
    const problem = selectionProblem(`blocks of row block ${b}`, [...(blocks[b] ?? [])], bounds);
    if (problem) return problem;
  }
  return undefined;
}

/** What is wrong with FlexPrefill's choice of pattern or index for a head; nothing when it is right up to rounding. */
export function flexPrefillProblem(
  input: AttentionInput,
  head: number,
  { gamma, tau, minBudget }: FlexPrefillBudgets,
  index: HeadIndex,
): string | undefined {
  const distance = flexPrefillDistance(input, head);
  if (index.kind === 'vertical_slash') {
    if (distance < tau - 1e-3) return `vertical-slash, although the distance is ${distance}, below ${tau}`;
    const visible = queryOffsetOf(input) + input.queries;
    const forced = new Set(Array.from({ length: Math.min(BLOCK, visible) }, (_, i) => i));
    const { vertical, slash } = verticalSlashScores(input, head);
    const least = Math.min(minBudget, visible);
    const columns = selectionBounds(vertical.subarray(0, visible), gamma, forced, least);
    const slashes = slash.subarray(0, visible);
    const count = (share: number): number => cumulativeSelection(slashes, share, forced, least).length;
    return (
      selectionProblem('columns', [...index.columns], columns) ??
      slashBlocksProblem(index.runs, slashes, count(gamma - TIE), count(gamma + TIE))
    );
  }
  if (index.kind !== 'block_sparse') return `an index of kind ${index.kind}`;
  if (distance > tau + 1e-3) return `query-aware, although the distance is ${distance}, above ${tau}`;
  const keyBlocks = Math.ceil(input.keys / BLOCK);
  const forced = index.blocks.flatMap((_list, b) =>
    [...flexPrefillForcedBlocks(input, b, minBudget)].map((c) => b * keyBlocks + c),
  );
  const kept = index.blocks.flatMap((list, b) => [...list].map((c) => b * keyBlocks + c));
  const bounds = selectionBounds(flexPrefillBlockScores(input, head), gamma, new Set(forced));
  return selectionProblem('blocks (row block * key blocks + key block)', kept, bounds);
}

/** What is wrong with runs of whole blocks of diagonals, of which there may be as many as hold from `few` to `many`. */
function slashBlocksProblem(runs: Uint32Array, slash: Float64Array, few: number, many: number): string | undefined {
  const kept: number[] = [];
  for (let r = 0; r < runs.length; r += 2) {
    const lo = runs[r] as number;
    const hi = runs[r + 1] as number;
    if (lo % BLOCK !== 0 || hi < lo || ((hi + 1) % BLOCK !== 0 && hi + 1 !== slash.length))
      return `run ${lo}..${hi} is not whole blocks`;
    if (r > 0 && lo <= (runs[r - 1] as number) + 1) return `run ${lo}..${hi} is out of order or joins the one before`;
    for (let b = lo / BLOCK; b * BLOCK <= hi; b++) kept.push(b);
  }
  const sums = blockSums(slash);
  const least = (blocks: readonly number[]): number =>
    blocks.reduce((a, b) => (b === 0 ? a : Math.min(a, sums[b] as number)), Number.POSITIVE_INFINITY);
  const lowest = bestSlashBlocks(slash, few);
  const highest = bestSlashBlocks(slash, many);
  const must = lowest.filter((b) => b === 0 || (sums[b] as number) > least(lowest) * (1 + TIE) + 1e-30);
  const may = Array.from(sums, (_x, b) => b).filter((b) => b === 0 || (sums[b] as number) >= least(highest) * (1 - TIE) - 1e-30);
  if (kept.length < lowest.length || kept.length > highest.length)
    return `${kept.length} blocks of diagonals, expected ${lowest.length} to ${highest.length}`;
  return selectionProblem('blocks of diagonals', kept, { must: new Set(must), may: new Set(may) });
}

/** Key blocks that each row block of a query-aware head keeps whatever they score: block 0, the diagonal, the nearest `minBudget` keys. */
export function flexPrefillForcedBlocks(shape: AttentionShape, block: number, minBudget: number): Set<number> {
  const { first, last } = blockPositions(shape, block);
  const nearest = Math.max(0, Math.floor(first / BLOCK) - Math.ceil(minBudget / BLOCK));
  return new Set([0, ...Array.from({ length: Math.floor(last / BLOCK) - nearest + 1 }, (_, i) => nearest + i)]);
}

/** Sums over blocks of 64. */
function blockSums(scores: Numbers): Float64Array {
  const sums = new Float64Array(Math.ceil(scores.length / BLOCK));
  scores.forEach((x: number, i: number) => {
    sums[Math.floor(i / BLOCK)] = (sums[Math.floor(i / BLOCK)] as number) + x;
  });
  return sums;
}

/** The best blocks of 64 neighbouring diagonals that hold as many as `count`, ascending; the nearest always among them. */
export function bestSlashBlocks(slash: Float64Array, count: number): number[] {
  const sums = blockSums(slash);
  sums[0] = Number.POSITIVE_INFINITY;
  return topK(sums, Math.min(Math.ceil(count / BLOCK), sums.length));
}

/** What FlexPrefill keeps of one head. */
export type FlexPrefillIndex = { readonly distance: number } & (
  | { readonly kind: 'vertical_slash'; readonly columns: readonly number[]; readonly slashes: readonly number[] }
  | { readonly kind: 'block_sparse'; readonly blocks: readonly (readonly number[])[] }
);

/**
 * FlexPrefill's index of one head (arXiv 2502.20766, algorithms 1 to 4). Vertical-slash heads keep the first 64 columns, and the
 * fewest others that hold `gamma`; and as many diagonals as that takes, but in whole blocks of 64, as its authors'
 * implementation does; query-aware heads keep the forced blocks of each row block
 * and the fewest others that hold `gamma` of all row blocks together.
 */
export function flexPrefillIndex(input: AttentionInput, head: number, budgets: FlexPrefillBudgets): FlexPrefillIndex {
  const { gamma, tau, minBudget } = budgets;
  const distance = flexPrefillDistance(input, head);
  if (distance >= tau) {
    const visible = queryOffsetOf(input) + input.queries;
    const forced = new Set(Array.from({ length: Math.min(BLOCK, visible) }, (_, i) => i));
    const { vertical, slash } = verticalSlashScores(input, head);
    const least = Math.min(minBudget, visible);
    const slashes = cumulativeSelection(slash.subarray(0, visible), gamma, forced, least);
    return {
      kind: 'vertical_slash',
      distance,
      columns: cumulativeSelection(vertical.subarray(0, visible), gamma, forced, least),
      slashes: bestSlashBlocks(slash.subarray(0, visible), slashes.length).flatMap((b) =>
        Array.from({ length: Math.min(BLOCK, visible - b * BLOCK) }, (_, i) => b * BLOCK + i),
      ),
    };
  }
  const scores = flexPrefillBlockScores(input, head);
  const keyBlocks = Math.ceil(input.keys / BLOCK);
  const rowBlocks = Math.ceil(input.queries / BLOCK);
  const forced = new Set<number>();
  for (let b = 0; b < rowBlocks; b++) for (const c of flexPrefillForcedBlocks(input, b, minBudget)) forced.add(b * keyBlocks + c);
  const kept = cumulativeSelection(scores, gamma, forced);
  const blocks = Array.from({ length: rowBlocks }, (_, b) =>
    kept.filter((i) => Math.floor(i / keyBlocks) === b).map((i) => i % keyBlocks),
  );
  return { kind: 'block_sparse', distance, blocks };
}

/** Key blocks that a row block keeps whatever they score: block 0 and those that hold a row of the block. */
export function forcedBlocks(shape: AttentionShape, block: number): Set<number> {
  const { first, last } = blockPositions(shape, block);
  return new Set([0, Math.floor(first / BLOCK), Math.floor(last / BLOCK)]);
}
