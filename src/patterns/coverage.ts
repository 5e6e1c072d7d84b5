import { INDEX_BLOCK } from '../kernels/attention.js';
import { type IndexShape, keyRanges, pairsInRange } from '../scheduler/inspect.js';
import type { HeadIndex, HeadPattern } from '../scheduler/types.js';

/** A grid of square cells over rows and keys, as an `AttentionMap` has it. */
export interface CellGrid {
  /** Rows and keys of a cell; a power of two from 8 on. */
  readonly cell: number;
  readonly rows: number;
  readonly keys: number;
}

/**
 * What an index keeps, at the resolution of a picture: for each cell the share of its causal pairs that the
 * head computes, `[rows, keys]`, 0 to 1. To be drawn over an attention map of the same grid.
 */
export function indexCoverage(pattern: HeadPattern, index: HeadIndex, shape: IndexShape, grid: CellGrid): Float32Array {
  const { seqLen, queryOffset } = shape;
  const { cell } = grid;
  const kept = new Float64Array(grid.rows * grid.keys);
  const causal = new Float64Array(grid.rows * grid.keys);
  const add = (to: Float64Array, row: number, a: number, b: number, first: number, last: number): void => {
    const at = Math.floor(row / cell) * grid.keys;
    for (let c = Math.floor(a / cell); c * cell <= Math.min(b, last); c++) {
      to[at + c] = (to[at + c] ?? 0) + pairsInRange(Math.max(a, c * cell), Math.min(b, (c + 1) * cell - 1), first, last);
    }
  };
  const step = Math.min(cell, INDEX_BLOCK);
  for (let row0 = 0; row0 < seqLen; row0 += step) {
    const first = queryOffset + row0;
    const last = queryOffset + Math.min(row0 + step, seqLen) - 1;
    add(causal, row0, 0, last, first, last);
    if (pattern.kind === 'a_shape' || pattern.kind === 'tri_shape') {
      const denseFrom = seqLen - (pattern.kind === 'tri_shape' ? pattern.lastSize : 0);
      for (let row = row0; row <= last - queryOffset; row++) {
        const p = queryOffset + row;
        const window = row >= denseFrom ? 0 : Math.max(0, p - pattern.localSize + 1);
        if (window > 0) add(kept, row, 0, Math.min(pattern.initSize, window) - 1, p, p);
        add(kept, row, window, p, p, p);
      }
      continue;
    }
    const block = Math.floor(row0 / INDEX_BLOCK);
    const blockFirst = queryOffset + block * INDEX_BLOCK;
    const blockLast = queryOffset + Math.min((block + 1) * INDEX_BLOCK, seqLen) - 1;
    for (const [a, b] of keyRanges(index, block, blockFirst, blockLast)) add(kept, row0, a, b, first, last);
  }
  return Float32Array.from(kept, (pairs, i) => (causal[i] ? pairs / (causal[i] as number) : 0));
}
