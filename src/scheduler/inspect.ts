import { INDEX_BLOCK } from '../kernels/attention.js';
import type { PlannedHead } from './plan.js';
import { readBuffers } from './submit.js';
import type { HeadIndex, HeadPattern } from './types.js';

/** Rows and keys of the layer that an index belongs to. */
export interface IndexShape {
  readonly seqLen: number;
  readonly kvLen: number;
  readonly queryOffset: number;
}

/** Copies the index buffers of `heads` to the CPU, one readback for all. */
export async function readIndices(device: GPUDevice, heads: readonly PlannedHead[], shape: IndexShape): Promise<HeadIndex[]> {
  const buffers = [...new Set(heads.flatMap((h) => (h.index ? [h.index.buffer] : [])))];
  const copies = await readBuffers(
    device,
    buffers.map((buffer) => ({ buffer, size: buffer.size })),
  );
  const words = new Map(buffers.map((buffer, i) => [buffer, new Uint32Array(copies[i] as ArrayBuffer)]));
  return heads.map(({ pattern, index }) => decodeIndex(pattern, index ? words.get(index.buffer) : undefined, index, shape));
}

// Their budgets do not matter for reading an index.
const VERTICAL_SLASH = { kind: 'vertical_slash', verticalSize: 0, slashSize: 0 } as const;
const BLOCK_SPARSE = { kind: 'block_sparse', topK: 0 } as const;

function decodeIndex(
  pattern: HeadPattern,
  words: Uint32Array | undefined,
  index: PlannedHead['index'],
  shape: IndexShape,
): HeadIndex {
  if (pattern.kind === 'static_vertical_slash') {
    return { kind: 'vertical_slash', columns: Uint32Array.from(pattern.columns), runs: Uint32Array.from(pattern.runs) };
  }
  if (!words || !index) return { kind: pattern.kind as 'dense' | 'a_shape' | 'tri_shape' };
  if (pattern.kind === 'flex_prefill') {
    // The index of the pattern that was not chosen is empty.
    const [columnRoom = 0, runRoom = 0, blocksOffset = 0, ...blockArgs] = index.args;
    const isVerticalSlash = (words[index.offset + 1] ?? 0) > 0;
    return isVerticalSlash
      ? decodeIndex(VERTICAL_SLASH, words, { ...index, args: [columnRoom, runRoom] }, shape)
      : decodeIndex(BLOCK_SPARSE, words, { ...index, offset: blocksOffset, args: blockArgs }, shape);
  }
  if (pattern.kind === 'vertical_slash') {
    const columnRoom = index.args[0] ?? 0;
    const [nColumns = 0, nRuns = 0] = words.subarray(index.offset, index.offset + 2);
    const columnStart = index.offset + 4;
    const runStart = columnStart + columnRoom;
    const runs = new Uint32Array(2 * nRuns);
    for (let i = 0; i < nRuns; i++) runs.set(words.subarray(runStart + 3 * i, runStart + 3 * i + 2), 2 * i);
    return { kind: 'vertical_slash', columns: words.slice(columnStart, columnStart + nColumns), runs };
  }
  const [room = 0, counts = 0] = index.args;
  const blocks: Uint32Array[] = [];
  for (let b = 0; b * INDEX_BLOCK < shape.seqLen; b++) {
    const last = shape.queryOffset + Math.min((b + 1) * INDEX_BLOCK, shape.seqLen) - 1;
    const count = counts > 0 ? (words[index.offset + counts + b] ?? 0) : Math.min(room, Math.floor(last / INDEX_BLOCK) + 1);
    blocks.push(words.slice(index.offset + b * room, index.offset + b * room + count));
  }
  return { kind: 'block_sparse', blocks };
}

/** Query-key pairs that an index keeps, over the causal total (0 to 1). */
export function indexDensity(pattern: HeadPattern, index: HeadIndex, shape: IndexShape): number {
  const { seqLen, queryOffset } = shape;
  const causal = seqLen * queryOffset + (seqLen * (seqLen + 1)) / 2;
  let kept = 0;
  if (index.kind === 'dense') return 1;
  if (pattern.kind === 'a_shape' || pattern.kind === 'tri_shape') {
    const denseFrom = seqLen - (pattern.kind === 'tri_shape' ? pattern.lastSize : 0);
    for (let row = 0; row < seqLen; row++) {
      const visible = queryOffset + row + 1;
      kept += row >= denseFrom ? visible : Math.min(visible, pattern.initSize + pattern.localSize);
    }
    return kept / causal;
  }
  for (let row0 = 0; row0 < seqLen; row0 += INDEX_BLOCK) {
    const first = queryOffset + row0;
    const last = queryOffset + Math.min(row0 + INDEX_BLOCK, seqLen) - 1;
    for (const [a, b] of keyRanges(index, row0 / INDEX_BLOCK, first, last)) kept += pairsInRange(a, b, first, last);
  }
  return kept / causal;
}

/**
 * Ranges `[a, b]` of keys that a row block sees by its index, where it is causal; they do not overlap.
 *
 * @param block - the row block, at positions `[first, last]`.
 */
export function* keyRanges(index: HeadIndex, block: number, first: number, last: number): Generator<[a: number, b: number]> {
  if (index.kind === 'vertical_slash') {
    const blockEnd = first + INDEX_BLOCK - 1;
    for (let r = 0; r + 1 < index.runs.length; r += 2) {
      const lo = index.runs[r] ?? 0;
      const hi = index.runs[r + 1] ?? 0;
      if (lo > blockEnd) break;
      yield [Math.max(0, first - hi), blockEnd - lo];
    }
    let r = index.runs.length - 2;
    for (const column of index.columns) {
      if (column > last) break;
      const distance = blockEnd - column;
      while (r >= 0 && (index.runs[r] ?? 0) > distance) r -= 2;
      const covered = r >= 0 && distance < (index.runs[r + 1] ?? 0) + INDEX_BLOCK;
      if (!covered) yield [column, column];
    }
  } else if (index.kind === 'block_sparse') {
    for (const c of index.blocks[block] ?? []) yield [c * INDEX_BLOCK, c * INDEX_BLOCK + INDEX_BLOCK - 1];
  } else {
    yield [0, last];
  }
}

/** Causal pairs of keys `[a, b]` with rows at positions `[first, last]`. */
export function pairsInRange(a: number, b: number, first: number, last: number): number {
  let pairs = 0;
  const full = Math.min(b, first);
  if (full >= a) pairs += (full - a + 1) * (last - first + 1);
  for (let key = Math.max(a, first + 1); key <= Math.min(b, last); key++) pairs += last - key + 1;
  return pairs;
}
