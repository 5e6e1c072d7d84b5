import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { createNodeGpu } from '../../src/device/node.js';
import { parsePatternConfig } from '../../src/patterns/config.js';
import type { CandidateResult, LayerResult, SearchState } from '../../src/patterns/search.js';
import { runUntil as cli } from './run_cli.js';

const adapter = await createNodeGpu().requestAdapter();
const folder = mkdtempSync(join(tmpdir(), 'minference-search-'));
afterAll(() => rmSync(folder, { recursive: true }));
const at = (name: string): string => join(folder, name);
const SEARCH = [
  'search',
  '--seq-len',
  '256',
  '--density',
  '0.6',
  '--pattern',
  'a_shape:16,64+vertical_slash:30,100+block_sparse:2',
];

/** What does not depend on the clock. */
const withoutTimes = (layers: readonly LayerResult[]): unknown =>
  layers.map((l) => l.heads.map((h) => ({ best: h.best, candidates: h.candidates.map(({ ms, ...rest }) => rest) })));

test.skipIf(!adapter)(
  "search writes MInference's JSON and a report with recall, error and time of every head, and goes on after an interruption",
  { timeout: 300_000 },
  async () => {
    const files = ['--output', at('patterns.json'), '--report', at('report.json')];
    const whole = await cli([...SEARCH, ...files, '--json']);
    expect(whole.stderr).toContain('search ...');
    expect(whole.code).toBe(0);
    const report = JSON.parse(readFileSync(at('report.json'), 'utf8'));
    expect(JSON.parse(whole.stdout)).toEqual(report);
    expect(report).toMatchObject({ version: 1, target: { density: 0.6 }, criterion: 'error', files: ['sample'] });
    expect(report.device).toBeTruthy();
    const layers = report.layers as LayerResult[];
    expect(layers.map((l) => l.heads.map((h) => h.candidates.length))).toEqual([new Array(9).fill(3)]);
    for (const candidate of layers.flatMap((l) => l.heads.flatMap((h) => h.candidates))) {
      expect(candidate.recall).toBeGreaterThan(0);
      expect(candidate.recall).toBeLessThanOrEqual(1);
      expect(candidate.error).toBeGreaterThan(0);
      if (adapter?.features.has('timestamp-query')) expect(candidate.ms).toBeGreaterThan(0);
    }
    // Heads share the time of a candidate by what they compute.
    for (const c of adapter?.features.has('timestamp-query') ? [0, 1, 2] : []) {
      const heads = layers[0]?.heads.map((h) => h.candidates[c] as CandidateResult) ?? [];
      const byCost = [...heads].sort((a, b) => a.cost - b.cost);
      byCost.slice(1).forEach((h, i) => expect(h.ms).toBeGreaterThanOrEqual((byCost[i]?.ms ?? 0) - 1e-9));
    }
    const config = parsePatternConfig(readFileSync(at('patterns.json'), 'utf8'), 'patterns.json');
    const chosen = layers[0]?.heads.map((h) => h.candidates[h.best] as CandidateResult) ?? [];
    expect(config.layers[0]?.map((h) => h.score)).toEqual(chosen.map((c) => c.recall));
    const kinds = { a_shape: 'stream_llm', vertical_slash: 'vertical_and_slash', block_sparse: 'block_sparse' } as const;
    expect(config.layers[0]?.map((h) => h.pattern)).toEqual(chosen.map((c) => kinds[c.pattern.kind]));

    const state = at('state.json');
    const controller = new AbortController();
    const waiting = setInterval(() => {
      if (existsSync(state)) controller.abort();
    }, 1);
    const stopped = await cli([...SEARCH, '--state', state, '--json'], controller.signal);
    clearInterval(waiting);
    expect(stopped.code).toBe(130);
    expect(JSON.parse(stopped.stdout)).toEqual({ error: { code: 'aborted', message: 'interrupted' } });
    const saved = JSON.parse(readFileSync(state, 'utf8')) as SearchState;
    expect(saved.layers).toHaveLength(0);
    expect(saved.partial.length).toBeGreaterThan(0);
    expect(saved.partial.length).toBeLessThanOrEqual(3);
    const rest = await cli([...SEARCH, '--state', state, '--json']);
    expect(rest.code).toBe(0);
    expect(withoutTimes(JSON.parse(rest.stdout).layers)).toEqual(withoutTimes(layers));
    expect((JSON.parse(readFileSync(state, 'utf8')) as SearchState).layers).toHaveLength(1);

    // The chosen patterns, as other commands read them.
    const recall = await cli(['recall', '--seq-len', '256', '--config', at('patterns.json'), '--json']);
    const { heads } = JSON.parse(recall.stdout) as { readonly heads: readonly { readonly recall: number }[] };
    heads.forEach((h, i) => expect(h.recall).toBeCloseTo((chosen[i] as CandidateResult).recall, 3));
  },
);

test.skipIf(!adapter)('search refuses states that are damaged or belong to another search', async () => {
  const good = JSON.parse(readFileSync(at('state.json'), 'utf8')) as SearchState;
  const damaged: readonly (readonly [unknown, string])[] = [
    [null, 'resume'],
    [7, 'resume'],
    [[], 'resume'],
    [{ ...good, version: 2 }, 'resume'],
    [{ ...good, fingerprint: 'another' }, 'resume'],
    [{ ...good, layers: undefined }, 'resume.layers'],
    [{ ...good, layers: [...good.layers, ...good.layers] }, 'resume.layers'],
    [{ ...good, layers: [null] }, 'resume.layers'],
    [{ ...good, layers: [{ ...good.layers[0], heads: [{ best: 9, candidates: [] }] }] }, 'resume.layers'],
    [{ ...good, partial: undefined }, 'resume.partial'],
    [{ ...good, partial: new Array(4).fill([]) }, 'resume.partial'],
    [{ ...good, partial: [[{ recall: '1' }]] }, 'resume.partial'],
  ];
  for (const [state, argument] of damaged) {
    const text = JSON.stringify(state);
    writeFileSync(at('damaged.json'), text);
    const { code, stdout: out } = await cli([...SEARCH, '--state', at('damaged.json'), '--json']);
    expect([code, JSON.parse(out).error.argument], text.slice(0, 80)).toEqual([1, argument]);
    expect(readFileSync(at('damaged.json'), 'utf8')).toBe(text);
  }
  writeFileSync(at('damaged.json'), '{"version":1,');
  const cut = await cli([...SEARCH, '--state', at('damaged.json'), '--json']);
  expect(JSON.parse(cut.stdout).error).toMatchObject({ code: 'file', argument: at('damaged.json') });
});
