import type { MatrixKernel } from '../../src/kernels/matrix_config.js';
import {
  type AttentionShape,
  BLOCK,
  keysOfAShape,
  keysOfBlockSparse,
  keysOfDense,
  keysOfVerticalSlash,
  slashRuns,
  type Visibility,
} from '../../src/reference/oracle.js';
import { Random } from '../../src/reference/random.js';

/** A pattern over `seqLen` rows with a synthetic index: what all variants are timed on. */
export interface Workload {
  readonly name: string;
  readonly kernel: MatrixKernel;
  readonly seqLen: number;
  readonly heads: number;
  readonly index: Uint32Array<ArrayBuffer>;
  /** index_offset, arg0, arg1, ... of each head. */
  readonly entries: readonly (readonly number[])[];
  /** Query-key pairs over all heads. */
  readonly pairs: number;
  /** What a head's rows see. */
  readonly visible: (head: number) => Visibility;
}

/** Sizes of the sparse patterns; MInference's defaults for `unit` 1, less for tests. */
export interface PatternSizes {
  readonly init: number;
  readonly local: number;
  readonly columns: number;
  readonly slashes: number;
  readonly blocks: number;
}

export const SIZES: PatternSizes = { init: 1024, local: 4096, columns: 1000, slashes: 6096, blocks: 100 };

/**
 * Makes a workload. The index is random, and as MInference's would be: near diagonals, which are the band, then short runs of far
 * ones. Vertical-slash is what is left when the band has been done.
 */
export function makeWorkload(
  kernel: MatrixKernel,
  seqLen: number,
  heads: number,
  headDim: number,
  sizes: PatternSizes,
): Workload {
  const random = new Random(7 * seqLen + heads);
  const shape: AttentionShape = { heads: 1, kvHeads: 1, queries: seqLen, keys: seqLen, headDim };
  const base = { name: `${kernel} ${seqLen}`, kernel, seqLen, heads };
  const rowBlocks = Math.ceil(seqLen / BLOCK);
  const words: number[] = [];
  const entries: number[][] = [];
  const visible: Visibility[] = [];
  let pairs = 0;
  for (let head = 0; head < heads; head++) {
    switch (kernel) {
      case 'dense':
        entries.push([0, 0, 0]);
        visible.push(keysOfDense(shape));
        pairs += (seqLen * (seqLen + 1)) / 2;
        break;
      case 'a_shape':
        entries.push([0, sizes.init, sizes.local]);
        visible.push(keysOfAShape(shape, sizes.init, sizes.local));
        for (let row = 0; row < seqLen; row++) pairs += Math.min(row + 1, sizes.init + sizes.local);
        break;
      case 'slash_band':
      case 'vertical_slash': {
        const columns = random.distinct(Math.min(sizes.columns, seqLen), 0, seqLen - 1);
        const near = Math.floor((sizes.slashes * 2) / 3);
        const slashes = new Set<number>();
        for (let s = 0; s < Math.min(near, seqLen); s++) slashes.add(s);
        while (slashes.size < Math.min(sizes.slashes, Math.floor(seqLen / 2))) {
          const start = random.integer(near, seqLen - 1);
          for (let s = start; s < Math.min(start + 50, seqLen); s++) slashes.add(s);
        }
        const sorted = [...slashes].sort((a, b) => a - b);
        const runs = slashRuns(sorted);
        entries.push([words.length, columns.length, runs.length, Math.min(near, seqLen)]);
        words.push(columns.length, runs.length, 0, 0, ...columns, ...runs.flatMap((run) => [run.lo, run.hi, run.prefix]));
        const hi = (runs[0] as { hi: number }).hi;
        const all = keysOfVerticalSlash(shape, columns, sorted);
        const band = keysOfVerticalSlash(
          shape,
          [],
          sorted.filter((s) => s <= hi),
        );
        const bandPairs = verticalSlashPairs(seqLen, [], runs.slice(0, 1));
        visible.push(kernel === 'slash_band' ? band : (row, key) => all(row, key) && !band(row, key));
        pairs += kernel === 'slash_band' ? bandPairs : verticalSlashPairs(seqLen, columns, runs) - bandPairs;
        break;
      }
      case 'block_sparse': {
        const room = Math.min(sizes.blocks, rowBlocks);
        const lists = Array.from({ length: rowBlocks }, (_, b) => [...random.distinct(Math.min(room - 1, b), 0, b - 1), b]);
        entries.push([words.length, room, 0]);
        for (const list of lists) {
          for (let i = 0; i < room; i++) words.push(list[i] ?? 0);
          pairs += (list.length - 0.5) * BLOCK * BLOCK;
        }
        visible.push(keysOfBlockSparse(shape, lists));
        break;
      }
    }
  }
  const index = new Uint32Array(Math.max(4, words.length));
  index.set(words);
  return { ...base, index, entries, pairs, visible: (head) => visible[head] as Visibility };
}

/** Pairs of one head, with the triangle of the diagonal run taken off. */
function verticalSlashPairs(
  seqLen: number,
  columns: readonly number[],
  runs: readonly { readonly lo: number; readonly hi: number }[],
): number {
  let pairs = 0;
  for (let p0 = 0; p0 < seqLen; p0 += BLOCK) {
    const rows = Math.min(BLOCK, seqLen - p0);
    const end = p0 + BLOCK - 1;
    let keys = 0;
    const covered: [number, number][] = [];
    for (const { lo, hi } of runs) {
      if (lo > end) break;
      const window: [number, number] = [Math.max(0, p0 - hi), end - lo];
      keys += window[1] - window[0] + 1;
      covered.push(window);
    }
    for (const column of columns) {
      if (column >= p0 + rows) break;
      if (!covered.some(([a, b]) => column >= a && column <= b)) keys++;
    }
    pairs += rows * keys - (BLOCK * (BLOCK - 1)) / 2;
  }
  return pairs;
}
