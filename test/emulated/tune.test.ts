import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Command } from 'commander';
import { expect, test, vi } from 'vitest';
import { addTuneCommand } from '../../bench/tune/matrix_tune.js';
import { MATRIX_TILINGS } from '../../src/kernels/matrix_config.js';

test('the tuner checks and times a tiling on every pattern', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'tune-'));
  const json = join(folder, 'tune.json');
  for (const stream of ['log', 'error'] as const) vi.spyOn(console, stream).mockImplementation(() => {});
  // The smallest one that every pattern can have.
  const tiling = MATRIX_TILINGS.findIndex((t) => t.subgroups === 2 && t.strips === 1 && t.keys === 16);
  const options = {
    heads: 2,
    'head-dim': 64,
    lengths: 70,
    sparse: 1300,
    sizes: '16,40,12,600,2',
    tilings: tiling,
    shapes: '16x8x16',
    syncs: 'workgroup',
    passes: 1,
    rows: 2,
    'warm-ms': 0,
    json,
  };
  const program = new Command();
  addTuneCommand(program);
  const flags = Object.entries(options).flatMap(([name, value]) => [`--${name}`, `${value}`]);
  await program.parseAsync(['tune', '--emulate', '--no-check', ...flags], { from: 'user' });
  const { rows } = JSON.parse(readFileSync(json, 'utf8')) as {
    rows: { workload: string; error?: number; ms?: number; failure?: string }[];
  };
  expect(rows.map((r) => r.workload)).toEqual([
    'dense 70',
    'a_shape 1300',
    'slash_band 1300',
    'vertical_slash 1300',
    'block_sparse 1300',
  ]);
  for (const row of rows) {
    expect(row.failure).toBeUndefined();
    expect(row.error).toBeLessThan(2e-3);
    expect(row.ms).toBeGreaterThan(0);
  }
  rmSync(folder, { recursive: true });
  vi.restoreAllMocks();
});
