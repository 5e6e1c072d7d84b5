import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import type { ModelFile } from '../../bench/model_report.js';
import { bars, costCurve } from '../../bench/plot.js';
import { writeModelReport, writeReport } from '../../bench/report.js';
import type { BenchFile } from '../../bench/results.js';

const folder = mkdtempSync(join(tmpdir(), 'report-'));
afterAll(() => rmSync(folder, { recursive: true }));

test.each(['h100-suite', 'h100-suite-d64'])('the published tables and plots of %s are those of its raw data', async (name) => {
  const published = (end: string) => readFileSync(`bench/results/${name}${end}`, 'utf8');
  await writeReport(join(folder, name), JSON.parse(published('.json')) as BenchFile);
  for (const end of ['.md', '.csv', '-curve.svg', '-bars.svg'])
    expect(readFileSync(join(folder, `${name}${end}`), 'utf8')).toBe(published(end));
});

test.each(['h100-model-llama-3.1-8b'])('the published tables and plots of %s are those of its raw data', async (name) => {
  const published = (end: string) => readFileSync(`bench/results/${name}${end}`, 'utf8');
  await writeModelReport(join(folder, name), JSON.parse(published('.json')) as ModelFile);
  for (const end of ['.md', '.csv', '-curve.svg', '-parts.svg'])
    expect(readFileSync(join(folder, `${name}${end}`), 'utf8')).toBe(published(end));
});

test('plots show ours in the best tier, whatever the order of the rows', async () => {
  const suite = JSON.parse(readFileSync('bench/results/h100-suite.json', 'utf8')) as BenchFile;
  const shown = async (rows: BenchFile['rows']) => (await costCurve({ ...suite, rows })).match(/ours, \w+/g);
  for (const rows of [suite.rows, [...suite.rows].reverse()])
    expect(new Set(await shown(rows))).toEqual(new Set(['ours, matrix']));
  const plain = suite.rows.filter((r) => r.tier !== 'matrix');
  expect(new Set(await shown(plain))).toEqual(new Set(['ours, f16']));
  const names = [...new Set((await bars(suite)).match(/(?<=>)(ours, \w+|torch-flash|minference)(?=<)/g))];
  expect(names).toEqual(['ours, matrix', 'ours, f16', 'ours, portable', 'torch-flash', 'minference']);
});
