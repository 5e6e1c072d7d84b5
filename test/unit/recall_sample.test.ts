import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { createNodeGpu } from '../../src/device/node.js';
import { parsePatternConfig } from '../../src/patterns/config.js';
import type { CandidateResult, LayerResult } from '../../src/patterns/search.js';
import { run } from './run_cli.js';

const file = fileURLToPath(new URL('../../assets/configs/smollm2-135m-layer9.json', import.meta.url));
const adapter = await createNodeGpu().requestAdapter();

/** What `recall --json` prints. */
interface RecallJson {
  readonly seqLen: number;
  readonly heads: readonly { readonly recall: number; readonly density: number; readonly error: number }[];
}

test.skipIf(!adapter)('the searched patterns of the real layer keep what their file says', { timeout: 300_000 }, async () => {
  const { code, stdout } = await run('recall', '--config', file, '--json');
  expect(code).toBe(0);
  const { seqLen, heads } = JSON.parse(stdout) as RecallJson;
  expect(seqLen).toBe(4096);
  const scores = parsePatternConfig(readFileSync(file, 'utf8')).layers[0]?.map((h) => h.score) ?? [];
  expect(heads).toHaveLength(scores.length);
  heads.forEach((h, i) => expect(Math.abs(h.recall - (scores[i] as number))).toBeLessThan(1e-3));
  const mean = (of: (h: RecallJson['heads'][number]) => number): number =>
    heads.reduce((sum, h) => sum + of(h), 0) / heads.length;
  expect(mean((h) => h.recall)).toBeGreaterThan(0.97);
  expect(mean((h) => h.density)).toBeLessThan(0.25);
});

test.skipIf(!adapter)(
  'search --target-density shares one budget among the heads of the real layer',
  { timeout: 300_000 },
  async () => {
    const search = (...options: string[]) => run('search', '--json', '--seq-len', '320', ...options);
    const { code, stdout } = await search('--target-density', '0.6');
    expect(code).toBe(0);
    const { criterion, layers } = JSON.parse(stdout) as { readonly criterion: string; readonly layers: readonly LayerResult[] };
    expect(criterion).toBe('recall');
    const chosen = layers[0]?.heads.map((h) => h.candidates[h.best] as CandidateResult) ?? [];
    expect(chosen).toHaveLength(9);
    expect(chosen.reduce((sum, c) => sum + c.density, 0) / 9).toBeLessThanOrEqual(0.6);
    expect(chosen.reduce((sum, c) => sum + c.recall, 0) / 9).toBeGreaterThan(0.8);
    const both = await search('--target-density', '0.6', '--density', '0.5');
    expect(both.code).not.toBe(0);
    expect(both.stderr).toContain('--density');
  },
);
