import { expect, test } from 'vitest';
import { type BenchFile, type BenchRow, merge } from '../../bench/results.js';

const row = (change: Partial<BenchRow>): BenchRow =>
  ({
    impl: 'ours',
    pattern: 'dense',
    tier: 'f16',
    seqLen: 4096,
    heads: 8,
    headDim: 64,
    dtype: 'f16',
    ms: 1,
    ...change,
  }) as BenchRow;

const file = (change: Partial<BenchFile>): BenchFile => ({
  device: 'a GPU',
  date: '2026-01-01',
  software: { node: 'v20' },
  ceilings: { fmaF32: 10 },
  rows: [],
  absent: [],
  ...change,
});

test('what is measured again takes the place of what was, and nothing else does', () => {
  const earlier = file({
    rows: [row({ ms: 1 }), row({ seqLen: 8192, ms: 2 }), row({ impl: 'torch', ms: 3 })],
    ceilings: { fmaF32: 10, matrix: 20 },
    note: 'of two runs',
    absent: [
      { impl: 'ours', reason: 'f16 dense at 8192: too long' },
      { impl: 'ours', reason: 'portable dense at 4096: too long' },
      { impl: 'ort', reason: 'not there' },
      { impl: 'minference', reason: 'not there' },
    ],
  });
  const fresh = file({
    rows: [row({ seqLen: 8192, ms: 4 }), row({ impl: 'ort', ms: 5 })],
    ceilings: { fmaF32: 11 },
    absent: [{ impl: 'minference', reason: 'still not there' }],
  });
  const merged = merge(earlier, fresh);
  expect(merged.rows.map((r) => r.ms)).toEqual([1, 3, 4, 5]);
  expect(merged.absent).toEqual([
    { impl: 'ours', reason: 'portable dense at 4096: too long' },
    { impl: 'minference', reason: 'still not there' },
  ]);
  expect(merged.note).toBe('of two runs');
  expect(merged.ceilings).toEqual({ fmaF32: 11, matrix: 20 });
  expect(merge(undefined, fresh)).toBe(fresh);
});

test('a prompt of a model that failed is measured anew', () => {
  const earlier = file({ absent: [{ impl: 'ours', reason: 'dense at 4096: out of memory' }] });
  expect(merge(earlier, file({ rows: [row({})] })).absent).toEqual([]);
  expect(merge(earlier, file({ rows: [row({ seqLen: 8192 })] })).absent).toEqual(earlier.absent);
});
