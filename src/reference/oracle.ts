/**
 * The float64 reference of everything that the GPU computes: slow, readable, one function per step.
 * Tests and `minference verify` compare the kernels and the index builders with it.
 *
 * Tensors are row-major `[heads, rows, headDim]`. The definitions follow MInference 1.0 (arXiv 2407.02490,
 * section 3) and, for A-shape, StreamingLLM (arXiv 2309.17453).
 */

/** Rows of a block that shares one sparse index, and keys of a block of the block-sparse pattern. */
export const BLOCK = 64;

/** Query rows that the vertical-slash estimate looks at. */
export const ESTIMATE_ROWS = 64;

/** Columns that the vertical-slash pattern always keeps (the first ones). */
export const FORCED_COLUMNS = 30;

/** Diagonals that the vertical-slash pattern always keeps (the nearest ones). */
export const FORCED_SLASHES = 100;

/** Two kept diagonals at most this far apart belong to one run. */
export const RUN_GAP = 64;

/** Numbers of a tensor, in float32 or float64. */
export type Numbers = Float32Array | Float64Array;

/** Sizes of one attention call. */
export interface AttentionShape {
  /** Query heads H. */
  readonly heads: number;
  /** Key/value heads; H is a multiple of it, and query head h reads key/value head floor(h * kvHeads / H). */
  readonly kvHeads: number;
  /** Query rows N. */
  readonly queries: number;
  /** Keys Nk. */
  readonly keys: number;
  readonly headDim: number;
  /** Absolute position of query row 0: row i sees keys up to `queryOffset + i`. Default: `keys - queries`. */
  readonly queryOffset?: number;
  /** Softmax scale; default `1 / sqrt(headDim)`. */
  readonly scale?: number;
}

/** One attention call: q is `[heads, queries, headDim]`, k and v are `[kvHeads, keys, headDim]`. */
export interface AttentionInput extends AttentionShape {
  readonly q: Numbers;
  readonly k: Numbers;
  readonly v: Numbers;
}

/** Tells whether a query row (of this call) sees a key (by absolute position). */
export type Visibility = (row: number, key: number) => boolean;

/** Absolute position of query row 0. */
export function queryOffsetOf(shape: AttentionShape): number {
  return shape.queryOffset ?? shape.keys - shape.queries;
}

/** Softmax scale of a call. */
export function scaleOf(shape: AttentionShape): number {
  return shape.scale ?? 1 / Math.sqrt(shape.headDim);
}

/** The key/value head that a query head reads (grouped-query attention). */
export function kvHeadOf(shape: AttentionShape, head: number): number {
  return Math.floor((head * shape.kvHeads) / shape.heads);
}

/** Absolute position of the first row of a row's 64-row block. */
function blockStart(shape: AttentionShape, row: number): number {
  return queryOffsetOf(shape) + BLOCK * Math.floor(row / BLOCK);
}

/** Dense causal attention: every key up to the row's own position. */
export function keysOfDense(shape: AttentionShape): Visibility {
  const offset = queryOffsetOf(shape);
  return (row, key) => key <= offset + row;
}

/** A-shape: the first `initSize` keys and the row's own last `localSize` keys. */
export function keysOfAShape(shape: AttentionShape, initSize: number, localSize: number): Visibility {
  const offset = queryOffsetOf(shape);
  return (row, key) => {
    const position = offset + row;
    return key <= position && (key < initSize || position - key < localSize);
  };
}

/**
 * Vertical-slash: the given columns, and for every given slash (distance between row and key) the 64 keys
 * `[p0 - s, p0 + 63 - s]`, where p0 is the position of the first row of the row's 64-row block.
 */
export function keysOfVerticalSlash(shape: AttentionShape, columns: readonly number[], slashes: readonly number[]): Visibility {
  const offset = queryOffsetOf(shape);
  const isColumn = new Uint8Array(shape.keys);
  for (const column of columns) isColumn[column] = 1;
  const sorted = [...slashes].sort((a, b) => a - b);
  return (row, key) => {
    if (key > offset + row) return false;
    if (isColumn[key]) return true;
    const p0 = blockStart(shape, row);
    // Is any slash in [p0 - key, p0 + 63 - key]? Binary search for the first one from p0 - key on.
    let low = 0;
    let high = sorted.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((sorted[middle] as number) < p0 - key) low = middle + 1;
      else high = middle;
    }
    return low < sorted.length && (sorted[low] as number) <= p0 + BLOCK - 1 - key;
  };
}

/** Block-sparse: the keys of the 64-key blocks that are listed for the row's 64-row block. */
export function keysOfBlockSparse(shape: AttentionShape, blocks: readonly (readonly number[])[]): Visibility {
  const offset = queryOffsetOf(shape);
  const kept = blocks.map((list) => new Set(list));
  return (row, key) => key <= offset + row && kept[Math.floor(row / BLOCK)]?.has(Math.floor(key / BLOCK)) === true;
}

/** Output of {@link attentionRows}. */
export interface AttentionRows {
  /** The rows that were computed, as asked for. */
  readonly rows: readonly number[];
  /** `[heads, rows.length, headDim]` */
  readonly o: Float64Array;
  /** Natural logarithm of the sum of `exp(scale * q.k)` over the visible keys, `[heads, rows.length]`. */
  readonly lse: Float64Array;
}

/** `scale * q[head, row] . k[kvHead, key]` for keys `[0, count)`. */
function logits(input: AttentionInput, head: number, row: number, count: number): Float64Array {
  const { q, k, headDim, keys, queries } = input;
  const scale = scaleOf(input);
  const qAt = (head * queries + row) * headDim;
  const kHead = kvHeadOf(input, head) * keys * headDim;
  const out = new Float64Array(count);
  for (let key = 0; key < count; key++) {
    const kAt = kHead + key * headDim;
    let sum = 0;
    for (let d = 0; d < headDim; d++) sum += (q[qAt + d] as number) * (k[kAt + d] as number);
    out[key] = scale * sum;
  }
  return out;
}

/**
 * Exact softmax attention over the visible keys of each row.
 *
 * @param visibilityOf visibility per query head
 * @param rows query rows to compute; all unless given (a sample makes very long inputs checkable)
 */
export function attentionRows(
  input: AttentionInput,
  visibilityOf: (head: number) => Visibility,
  rows: readonly number[] = Array.from({ length: input.queries }, (_, i) => i),
): AttentionRows {
  const { headDim, heads, keys, v } = input;
  const offset = queryOffsetOf(input);
  const o = new Float64Array(heads * rows.length * headDim);
  const lse = new Float64Array(heads * rows.length);
  for (let head = 0; head < heads; head++) {
    const visible = visibilityOf(head);
    const vHead = kvHeadOf(input, head) * keys * headDim;
    rows.forEach((row, at) => {
      const count = offset + row + 1;
      const x = logits(input, head, row, count);
      let max = Number.NEGATIVE_INFINITY;
      for (let key = 0; key < count; key++) {
        if (!visible(row, key)) x[key] = Number.NEGATIVE_INFINITY;
        max = Math.max(max, x[key] as number);
      }
      let sum = 0;
      const out = o.subarray((head * rows.length + at) * headDim, (head * rows.length + at + 1) * headDim);
      for (let key = 0; key < count; key++) {
        if (x[key] === Number.NEGATIVE_INFINITY) continue;
        const p = Math.exp((x[key] as number) - max);
        sum += p;
        const vAt = vHead + key * headDim;
        for (let d = 0; d < headDim; d++) out[d] = (out[d] as number) + p * (v[vAt + d] as number);
      }
      for (let d = 0; d < headDim; d++) out[d] = (out[d] as number) / sum;
      lse[head * rows.length + at] = max + Math.log(sum);
    });
  }
  return { rows, o, lse };
}

/** Importance of columns and diagonals, as the vertical-slash estimate sees them. */
export interface VerticalSlashScores {
  /** `vertical[j]`: probability that the last rows give to key j, summed over the rows. */
  readonly vertical: Float64Array;
  /** `slash[d]`: probability that the last rows give to the key at distance d, summed over the rows. */
  readonly slash: Float64Array;
}

/**
 * Vertical-slash estimate of one head: softmax attention of the last min(64, N) query rows over all keys
 * that they may see, summed along columns and along diagonals. Nothing is forced yet.
 */
export function verticalSlashScores(input: AttentionInput, head: number): VerticalSlashScores {
  const offset = queryOffsetOf(input);
  const vertical = new Float64Array(input.keys);
  const slash = new Float64Array(input.keys);
  for (let row = Math.max(0, input.queries - ESTIMATE_ROWS); row < input.queries; row++) {
    const position = offset + row;
    const x = logits(input, head, row, position + 1);
    const max = x.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
    const sum = x.reduce((a, b) => a + Math.exp(b - max), 0);
    for (let key = 0; key <= position; key++) {
      const p = Math.exp((x[key] as number) - max) / sum;
      vertical[key] = (vertical[key] as number) + p;
      slash[position - key] = (slash[position - key] as number) + p;
    }
  }
  return { vertical, slash };
}

/** Gives the first 30 columns and the nearest 100 diagonals infinite scores, so that they are always kept. */
export function forceVerticalSlash(scores: VerticalSlashScores): VerticalSlashScores {
  return {
    vertical: scores.vertical.slice().fill(Number.POSITIVE_INFINITY, 0, FORCED_COLUMNS),
    slash: scores.slash.slice().fill(Number.POSITIVE_INFINITY, 0, FORCED_SLASHES),
  };
}

/** Indices of the `k` largest scores, ascending; among equal scores the lowest index wins. */
export function topK(scores: Numbers, k: number): number[] {
  const order = Array.from(scores, (_, i) => i);
  const less = (a: number, b: number): number => {
    const x = scores[a] as number;
    const y = scores[b] as number;
    return x === y ? a - b : y > x ? 1 : -1;
  };
  return order
    .sort(less)
    .slice(0, k)
    .sort((a, b) => a - b);
}

/** A run of diagonals whose neighbours lie at most 64 apart. */
export interface SlashRun {
  /** Smallest distance. */
  readonly lo: number;
  /** Largest distance. */
  readonly hi: number;
  /** Keys in the windows of all runs before this one: the sum of their `hi - lo + 64`. */
  readonly prefix: number;
}

/** Joins ascending diagonals into runs. */
export function slashRuns(slashes: readonly number[]): SlashRun[] {
  const runs: SlashRun[] = [];
  for (const s of slashes) {
    const last = runs.at(-1);
    if (last && s - last.hi <= RUN_GAP) runs[runs.length - 1] = { ...last, hi: s };
    else runs.push({ lo: s, hi: s, prefix: last ? last.prefix + last.hi - last.lo + BLOCK : 0 });
  }
  return runs;
}

/** What the vertical-slash pattern keeps of one head. */
export interface VerticalSlashIndex {
  /** Kept columns, ascending. */
  readonly columns: readonly number[];
  /** Kept diagonals, ascending; 0 is always among them. */
  readonly slashes: readonly number[];
  /** The diagonals as runs. */
  readonly runs: readonly SlashRun[];
}

/** The columns and diagonals that vertical-slash attention of one head keeps. */
export function verticalSlashIndex(
  input: AttentionInput,
  head: number,
  verticalSize: number,
  slashSize: number,
): VerticalSlashIndex {
  const { vertical, slash } = forceVerticalSlash(verticalSlashScores(input, head));
  const columns = topK(vertical, Math.min(verticalSize, input.keys));
  const slashes = topK(slash, Math.min(Math.max(slashSize, 1), input.keys));
  return { columns, slashes, runs: slashRuns(slashes) };
}

/** Means over blocks of 64 rows of a `[rows, headDim]` matrix; the last block averages its real rows only. */
export function poolBlocks(x: Numbers, rows: number, headDim: number): Float64Array {
  const blocks = Math.ceil(rows / BLOCK);
  const mean = new Float64Array(blocks * headDim);
  for (let block = 0; block < blocks; block++) {
    const end = Math.min(rows, (block + 1) * BLOCK);
    for (let d = 0; d < headDim; d++) {
      let sum = 0;
      for (let row = block * BLOCK; row < end; row++) sum += x[row * headDim + d] as number;
      mean[block * headDim + d] = sum / (end - block * BLOCK);
    }
  }
  return mean;
}

/** Absolute positions of the first and the last real row of a row block. */
export function blockPositions(shape: AttentionShape, block: number): { readonly first: number; readonly last: number } {
  const offset = queryOffsetOf(shape);
  return { first: offset + BLOCK * block, last: offset + Math.min(BLOCK * (block + 1), shape.queries) - 1 };
}

/** Scores `[row blocks, key blocks]` of one head: products of pooled q and pooled k, before the causal mask. */
export function blockScores(input: AttentionInput, head: number): Float64Array {
  const { q, k, queries, keys, headDim } = input;
  const kvHead = kvHeadOf(input, head);
  const qMean = poolBlocks(q.subarray(head * queries * headDim, (head + 1) * queries * headDim), queries, headDim);
  const kMean = poolBlocks(k.subarray(kvHead * keys * headDim, (kvHead + 1) * keys * headDim), keys, headDim);
  const rowBlocks = Math.ceil(queries / BLOCK);
  const keyBlocks = Math.ceil(keys / BLOCK);
  const scores = new Float64Array(rowBlocks * keyBlocks);
  for (let b = 0; b < rowBlocks; b++) {
    for (let c = 0; c < keyBlocks; c++) {
      let sum = 0;
      for (let d = 0; d < headDim; d++) sum += (qMean[b * headDim + d] as number) * (kMean[c * headDim + d] as number);
      scores[b * keyBlocks + c] = sum;
    }
  }
  return scores;
}

/**
 * Blocks that every row block keeps at most: `topK`, but never fewer than its diagonal takes (two blocks when
 * `queryOffset` is not a multiple of 64), and never more than there are.
 */
export function blocksPerRow(shape: AttentionShape, topK: number): number {
  const diagonal = queryOffsetOf(shape) % BLOCK === 0 ? 1 : 2;
  return Math.min(Math.max(topK, diagonal), Math.ceil(shape.keys / BLOCK));
}

/** The key blocks, ascending, that each row block of one head keeps; the blocks on the diagonal always. */
export function blockSparseIndex(input: AttentionInput, head: number, keep: number): number[][] {
  const scores = blockScores(input, head);
  const keyBlocks = Math.ceil(input.keys / BLOCK);
  return Array.from({ length: Math.ceil(input.queries / BLOCK) }, (_, b) => {
    const { first, last } = blockPositions(input, b);
    const allowed = scores.slice(b * keyBlocks, b * keyBlocks + Math.floor(last / BLOCK) + 1);
    allowed.fill(Number.POSITIVE_INFINITY, Math.floor(first / BLOCK));
    return topK(allowed, blocksPerRow(input, keep));
  });
}

/** `||actual - expected|| / ||expected||`; infinite when any value is not a number. */
export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) return Number.POSITIVE_INFINITY;
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < expected.length; i++) {
    const a = actual[i] as number;
    const b = expected[i] as number;
    difference += (a - b) ** 2;
    norm += b ** 2;
  }
  if (difference === 0) return 0;
  const error = Math.sqrt(difference / norm);
  return Number.isNaN(error) ? Number.POSITIVE_INFINITY : error;
}

/** The largest {@link relativeError} of any single row of `width` values, so that one bad row cannot hide. */
export function worstRowError(
  actual: Numbers,
  expected: Numbers,
  width: number,
): { readonly error: number; readonly row: number } {
  let worst = { error: 0, row: 0 };
  for (let row = 0; row * width < expected.length; row++) {
    const error = relativeError(
      actual.subarray(row * width, (row + 1) * width),
      expected.subarray(row * width, (row + 1) * width),
    );
    if (error > worst.error) worst = { error, row };
  }
  return worst;
}
