/**
 * The float64 reference of the methods beyond MInference's three patterns. Same conventions as `oracle.ts`:
 * slow, readable, one function per step.
 */
import {
  type AttentionInput,
  type AttentionShape,
  BLOCK,
  blockPositions,
  keysOfVerticalSlash,
  kvHeadOf,
  queryOffsetOf,
  scaleOf,
  type Visibility,
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

/** Key blocks that a row block keeps whatever they score: block 0 and those that hold a row of the block. */
export function forcedBlocks(shape: AttentionShape, block: number): Set<number> {
  const { first, last } = blockPositions(shape, block);
  return new Set([0, Math.floor(first / BLOCK), Math.floor(last / BLOCK)]);
}

/** The fewest key blocks, ascending, that hold `threshold` of each row block's score, the forced ones among them. */
export function xAttentionIndex(
  shape: AttentionShape,
  { rowBlocks, keyBlocks, scores }: XAttentionScores,
  threshold: number,
): number[][] {
  return Array.from({ length: rowBlocks }, (_, b) => {
    const row = scores.subarray(b * keyBlocks, (b + 1) * keyBlocks);
    const kept = forcedBlocks(shape, b);
    const total = row.reduce((a, x) => a + x, 0);
    let sum = [...kept].reduce((a, c) => a + (row[c] as number), 0);
    const others = Array.from(row, (_x, c) => c).filter((c) => !kept.has(c) && (row[c] as number) > 0);
    for (const c of others.sort((a, d) => (row[d] as number) - (row[a] as number) || a - d)) {
      if (sum >= threshold * total) break;
      kept.add(c);
      sum += row[c] as number;
    }
    return [...kept].sort((a, d) => a - d);
  });
}
