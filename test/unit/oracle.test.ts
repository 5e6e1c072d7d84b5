import fc from 'fast-check';
import { describe, expect, inject, test } from 'vitest';
import {
  attentionRows,
  BLOCK,
  blockPositions,
  blockSparseIndex,
  blocksPerRow,
  keysOfDense,
  keysOfVerticalSlash,
  poolBlocks,
  queryOffsetOf,
  relativeError,
  slashRuns,
  topK,
  verticalSlashIndex,
  verticalSlashScores,
  worstRowError,
} from '../../src/reference/oracle.js';
import { plantedLayer, randomLayer } from '../../src/reference/random.js';

describe('the oracle itself', () => {
  test('attention over equal keys is the running mean of v', () => {
    const shape = { heads: 1, kvHeads: 1, queries: 5, keys: 5, headDim: 4 };
    const v = Float64Array.from({ length: 20 }, (_, i) => i);
    const { o, lse } = attentionRows({ ...shape, q: new Float64Array(20), k: new Float64Array(20), v }, () => keysOfDense(shape));
    for (let row = 0; row < 5; row++) {
      for (let d = 0; d < 4; d++) expect(o[row * 4 + d]).toBeCloseTo(2 * row + d, 12);
      expect(lse[row]).toBeCloseTo(Math.log(row + 1), 12);
    }
  });

  test('attention with one overwhelming key returns its value', () => {
    const shape = { heads: 2, kvHeads: 1, queries: 3, keys: 8, headDim: 2, scale: 1 };
    const k = new Float64Array(16);
    k[2 * 3] = 1000;
    const v = Float64Array.from({ length: 16 }, (_, i) => i);
    const { o } = attentionRows({ ...shape, q: new Float64Array(12).fill(1), k, v }, () => keysOfDense(shape));
    for (let i = 0; i < 6; i++) expect([...o.subarray(2 * i, 2 * i + 2)]).toEqual([6, 7]);
  });

  test('top-k keeps the largest, ties to the lowest index, in ascending order', () => {
    expect(topK(Float64Array.of(1, 5, 3, 5, 5, 0), 2)).toEqual([1, 3]);
    expect(topK(Float64Array.of(1, 5, 3, 5, 5, 0), 5)).toEqual([0, 1, 2, 3, 4]);
    expect(topK(Float64Array.of(2, 2), 7)).toEqual([0, 1]);
  });

  test('diagonals up to 64 apart form one run', () => {
    const runs = slashRuns([0, 1, 64, 128, 193, 400]);
    expect(runs.map((r) => [r.lo, r.hi])).toEqual([
      [0, 128],
      [193, 193],
      [400, 400],
    ]);
    expect(runs.map((r) => r.prefix)).toEqual([0, 192, 256]);
  });

  test('a slash covers 64 keys per block of rows, and no key ahead of the row', () => {
    const shape = { heads: 1, kvHeads: 1, queries: 256, keys: 256, headDim: 4 };
    const sees = keysOfVerticalSlash(shape, [3], [100]);
    const keys = (row: number) => Array.from({ length: 256 }, (_, key) => key).filter((key) => sees(row, key));
    expect(keys(0)).toEqual([]); // diagonal 0 is the builder's to keep
    expect(keys(130)).toEqual([3, ...Array.from({ length: 64 }, (_, i) => 28 + i)]);
  });

  test('relative error is never passed by NaN', () => {
    expect(relativeError([1, Number.NaN], [1, 2]) < 1).toBe(false);
    expect(relativeError([1, 2.2], [1, 2])).toBeCloseTo(0.2 / Math.sqrt(5), 12);
  });
});

describe('properties of the oracle', () => {
  const shapes = fc.record({
    queries: fc.integer({ min: 1, max: 200 }),
    queryOffset: fc.integer({ min: 0, max: 150 }),
    extra: fc.integer({ min: 0, max: 80 }),
  });
  const shapeOf = (s: { queries: number; queryOffset: number; extra: number }) => ({
    heads: 1,
    kvHeads: 1,
    headDim: 4,
    queries: s.queries,
    queryOffset: s.queryOffset,
    keys: s.queryOffset + s.queries + s.extra,
  });
  const options = { seed: inject('seed'), numRuns: 40 };

  test('the windows of the runs hold exactly the keys that the slashes cover, and never overlap', () => {
    const slashSets = fc.uniqueArray(fc.integer({ min: 0, max: 400 }), { minLength: 1, maxLength: 20 });
    fc.assert(
      fc.property(shapes, slashSets, (s, set) => {
        const shape = shapeOf(s);
        const slashes = set.filter((x) => x < shape.keys).sort((a, b) => a - b);
        const runs = slashRuns(slashes);
        const sees = keysOfVerticalSlash(shape, [], slashes);
        for (const row of [0, Math.floor(shape.queries / 2), shape.queries - 1]) {
          const p0 = queryOffsetOf(shape) + BLOCK * Math.floor(row / BLOCK);
          for (let key = 0; key <= queryOffsetOf(shape) + row; key++) {
            const covering = runs.filter((run) => p0 - run.hi <= key && key <= p0 + BLOCK - 1 - run.lo).length;
            expect(covering).toBe(sees(row, key) ? 1 : 0);
          }
        }
        runs.forEach((run, i) => {
          expect(run.prefix).toBe(runs.slice(0, i).reduce((sum, r) => sum + r.hi - r.lo + BLOCK, 0));
        });
      }),
      options,
    );
  });

  test('every estimated row spreads a probability of one over columns, and one over diagonals', () => {
    fc.assert(
      fc.property(shapes, fc.integer(), (s, seed) => {
        const shape = shapeOf(s);
        const { vertical, slash } = verticalSlashScores(randomLayer(shape, seed), 0);
        const rows = Math.min(64, shape.queries);
        const sum = (x: Float64Array) => x.reduce((a, b) => a + b, 0);
        expect(sum(vertical)).toBeCloseTo(rows, 9);
        expect(sum(slash)).toBeCloseTo(rows, 9);
        expect(sum(slash.subarray(shape.queryOffset + shape.queries))).toBe(0);
      }),
      options,
    );
  });

  test('every row block keeps its diagonal, in causal ascending blocks, as many as asked for', () => {
    fc.assert(
      fc.property(shapes, fc.integer({ min: 1, max: 9 }), fc.integer(), (s, keep, seed) => {
        const shape = shapeOf(s);
        blockSparseIndex(randomLayer(shape, seed), 0, keep).forEach((blocks, b) => {
          const { first, last } = blockPositions(shape, b);
          expect(blocks).toContain(Math.floor(first / BLOCK));
          expect(blocks).toContain(Math.floor(last / BLOCK));
          expect(blocks).toEqual([...new Set(blocks)].sort((x, y) => x - y));
          expect(Math.max(...blocks) * BLOCK).toBeLessThanOrEqual(last);
          expect(blocks.length).toBe(Math.min(blocksPerRow(shape, keep), Math.floor(last / BLOCK) + 1));
        });
      }),
      options,
    );
  });

  test('a partial block averages its real rows only', () => {
    const rows = BLOCK + 2;
    const mean = poolBlocks(
      Float64Array.from({ length: rows }, (_, i) => i),
      rows,
      1,
    );
    expect([...mean]).toEqual([(BLOCK - 1) / 2, BLOCK + 0.5]);
  });

  test('one bad row cannot hide among good ones', () => {
    const expected = new Float64Array(4000).fill(1);
    const actual = expected.slice();
    actual[2000] = 2;
    expect(worstRowError(actual, expected, 4)).toEqual({ error: 0.5, row: 500 });
  });
});

describe('planted structure is found by the index that should find it', () => {
  const shape = { heads: 1, kvHeads: 1, queries: 640, keys: 640, headDim: 64 };
  const columns = [77, 201, 333];

  test.each([1, 2, 3])('columns and diagonals, seed %i', (seed) => {
    const slashes = [150, 410];
    const input = plantedLayer(shape, [{ columns, slashes }], seed);
    const index = verticalSlashIndex(input, 0, 30 + columns.length, 100 + slashes.length);
    for (const column of columns) expect(index.columns).toContain(column);
    for (const slash of slashes) expect(index.slashes).toContain(slash);
  });

  test.each([1, 2, 3])('blocks, seed %i', (seed) => {
    const blocks = Array.from({ length: 10 }, (_, b) => [...new Set([Math.floor(b / 3), b])]);
    const index = blockSparseIndex(plantedLayer(shape, [{ blocks }], seed), 0, 2);
    blocks.forEach((wanted, b) => {
      for (const block of wanted) expect(index[b]).toContain(block);
    });
  });

  test('random input has nothing planted', () => {
    const index = verticalSlashIndex(randomLayer(shape, 5), 0, 33, 102);
    expect(columns.every((c) => index.columns.includes(c))).toBe(false);
  });
});
