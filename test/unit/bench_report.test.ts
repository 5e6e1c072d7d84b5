import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import type { ModelFile } from '../../bench/model_report.js';
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
