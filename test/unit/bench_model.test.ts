import { expect, inject, test } from 'vitest';
import { idleBetween } from '../../bench/kernel_times.js';
import { defaultChunk } from '../../bench/model.js';
import { type ModelFile, type ModelRow, report, toCsv, toMarkdown } from '../../bench/model_report.js';
import { randomBlock, SHAPES, syntheticModel } from '../../bench/synthetic_model.js';
import { BLOCK_LAYOUT, type ModelConfig, type WeightType } from '../../src/model/types.js';
import { dequantize } from '../../src/reference/quant.js';
import { Random } from '../../src/reference/random.js';

const seed = inject('seed');
const TYPES = Object.keys(BLOCK_LAYOUT) as WeightType[];
const meanSquare = (values: Float64Array): number => values.reduce((sum, x) => sum + x * x, 0) / values.length;

test.each(TYPES)('random weights of %s have no mean, not even in a block, and the deviation asked for', (type) => {
  const deviation = 1 / 64;
  const values = dequantize(type, randomBlock(new Random(seed), type, deviation));
  expect(Math.sqrt(meanSquare(values)) / deviation).toBeGreaterThan(0.97);
  expect(Math.sqrt(meanSquare(values)) / deviation).toBeLessThan(1.03);
  // Blocks that share a scale: products of rows would add up their means.
  const means = Float64Array.from({ length: values.length / 32 }, (_, b) =>
    values.subarray(32 * b, 32 * b + 32).reduce((sum, x) => sum + x / 32, 0),
  );
  expect(means.reduce((sum, x) => sum + x, 0) / means.length / deviation).toBeCloseTo(0, 1);
  expect((32 * meanSquare(means)) / deviation ** 2).toBeLessThan(1.6);
});

test.each(['f16', 'q4_0', 'q6_k'] as const)('a synthetic model of %s comes in pieces that the loader takes', async (type) => {
  const { weights } = syntheticModel(SHAPES['tiny'] as ModelConfig, type);
  for (const { name, byteLength, read } of weights.values()) {
    const sizes: number[] = [];
    for await (const piece of read()) sizes.push(piece.byteLength);
    expect(
      sizes.reduce((sum, size) => sum + size, 0),
      name,
    ).toBe(byteLength);
    expect(
      sizes.slice(0, -1).every((size) => size % 4 === 0),
      name,
    ).toBe(true);
  }
});

test('no row of a synthetic projection is a row of the embedding', async () => {
  const { weights } = syntheticModel(SHAPES['tiny'] as ModelConfig, 'f32');
  const rows = async (name: string): Promise<Set<string>> => {
    const pieces: Uint8Array[] = [];
    for await (const piece of weights.get(name)?.read() ?? []) pieces.push(piece.slice());
    const values = new Float32Array(Buffer.concat(pieces).buffer.slice(0));
    return new Set(Array.from({ length: values.length / 256 }, (_, r) => values.subarray(256 * r, 256 * r + 4).join()));
  };
  const embedding = await rows('embed.weight');
  for (const name of ['q', 'k', 'v']) {
    const own = await rows(`layers.1.attn.${name}.weight`);
    expect([...own].filter((row) => embedding.has(row))).toEqual([]);
    expect(own.size).toBeGreaterThanOrEqual(128);
  }
});

test('time in which no kernel ran, by what it waited for', () => {
  const run = (kernel: string, begin: number, end: number, first = false) => ({
    kernel,
    begin: 1e6 * begin,
    end: 1e6 * end,
    first,
  });
  // In another order, one within another, and two gaps before kernels of one name.
  const runs = [
    run('b', 10, 20),
    run('a', 0, 8, true),
    run('c', 12, 15),
    run('b', 21, 22),
    run('d', 30, 31, true),
    run('a', 31, 33),
  ];
  const { idle, gaps } = idleBetween(runs);
  expect(idle).toBe(2 + 1 + 8);
  expect(gaps.get('b')).toBe(2 + 1);
  expect(gaps.get('submission')).toBe(8);
  expect(gaps.get('c')).toBe(0);
  expect(gaps.get('a')).toBe(0);
  expect(idleBetween([])).toEqual({ idle: 0, gaps: new Map() });
});

test('chunks are whole prompts, as far as memory allows', () => {
  const chunks = [1000, 8192, 32_768, 65_536, 2 ** 20].map((n) => defaultChunk(n, 131_072, 80 * 2 ** 30));
  expect(chunks).toEqual([1024, 8192, 32_768, 32_768, 32_768]);
  expect(defaultChunk(2 ** 20, 131_072, 24 * 2 ** 30)).toBe(8192);
  expect(defaultChunk(2 ** 20, 131_072, 2 ** 30)).toBe(4096);
  expect(defaultChunk(2 ** 20, 131_072, Number.POSITIVE_INFINITY)).toBe(32_768);
});

test('tables tell the chunk of each row', () => {
  const row = (seqLen: number, chunk?: number): ModelRow => ({
    ...{ impl: 'ours', pattern: 'dense', tier: 'f16', seqLen, heads: 4, headDim: 64, dtype: 'f16', params: {} },
    ...{ layers: 2, ofLayers: 2, wallMs: 1000, repetitions: 1, ...(chunk ? { chunk } : {}) },
  });
  const rows = [row(32_768, 4096), row(524_288, 32_768), row(8192)];
  const [head = '', , ...lines] = toMarkdown(rows).trim().split('\n');
  const at = head.split(' | ').indexOf('chunk');
  expect(lines.map((line) => line.split(' | ')[at])).toEqual(['4,096', '32,768', '']);
  const [names = '', ...values] = toCsv(rows).trim().split('\n');
  const column = names.split(',').indexOf('chunk');
  expect(values.map((line) => line.split(',')[column])).toEqual(['4096', '32768', '']);
});

test('a report tells what products reach of the sustained ceiling, where that was measured', () => {
  const row = (gemmTflops: number): ModelRow => ({
    ...{ impl: 'ours', pattern: 'dense', tier: 'matrix', seqLen: 8192, heads: 4, headDim: 64, dtype: 'f16', params: {} },
    ...{ layers: 1, ofLayers: 1, wallMs: 10, repetitions: 1, gemmTflops },
  });
  const file = (ceilings: ModelFile['ceilings']): ModelFile => ({
    ...{ device: 'a GPU', date: '2026-01-01', software: {}, ceilings, absent: [], model: 'a model', synthetic: true },
    rows: [row(300), row(330)],
  });
  expect(report(file({ matrix: 600, matrixSustained: 500 }))).toContain(
    'Of what it sustains, 500.0 TFLOPS after a second and a half, they reach 60.0 to 66.0%.',
  );
  expect(report(file({ matrix: 600 }))).not.toContain('sustains');
});
