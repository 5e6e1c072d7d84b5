import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { afterAll, expect, test } from 'vitest';
import { MinferenceError } from '../../src/errors.js';
import { pathSource } from '../../src/model/load/node.js';
import { readSafetensors } from '../../src/model/load/safetensors.js';
import { run } from './run_cli.js';

const layer9 = fileURLToPath(new URL('../../assets/configs/smollm2-135m-layer9.json', import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'minference-'));
afterAll(() => rmSync(folder, { recursive: true }));

test('prefill --json prints one object with everything that the table shows', async () => {
  const { code, stdout } = await run('--json', 'prefill', '--seq-len', '200', '--pattern', 'vertical_slash:40,60+a_shape:16,64');
  expect(code).toBe(0);
  const result = JSON.parse(stdout);
  expect(result.input).toMatchObject({ seqLen: 200 });
  expect(result.dense.ms).toBeGreaterThan(0);
  expect(result.sparse.density).toBeGreaterThan(0.1);
  expect(result.sparse.density).toBeLessThan(1);
  expect(result.sparse.relError).toBeGreaterThan(0);
  expect(result.sparse.indexBytes).toBeGreaterThan(0);
  expect(result.heads).toHaveLength(9);
});

test('prefill on generated input keeps the planted structure', async () => {
  const { code, stdout } = await run(
    '--json',
    'prefill',
    '--seq-len',
    '512',
    '--heads',
    '2',
    '--head-dim',
    '64',
    '--pattern',
    'block_sparse:4',
    '--seed',
    '3',
  );
  expect(code).toBe(0);
  const result = JSON.parse(stdout);
  expect(result.sparse.density).toBeLessThan(0.9);
  expect(result.sparse.relError).toBeLessThan(0.5);
});

test('the default prefill computes a third of the pairs of the sample, with a small error', async () => {
  const { code, stdout } = await run('--json', 'prefill');
  expect(code).toBe(0);
  const { sparse, heads } = JSON.parse(stdout);
  expect(heads[0]).toMatchObject({ pattern: 'vertical_slash:512,192', index: 'vertical_slash' });
  expect(sparse.density).toBeLessThan(0.4);
  expect(sparse.relError).toBeLessThan(0.05);
});

test('prefill runs every pattern by name, and says what FlexPrefill chose', async () => {
  const names = ['dense', 'tri_shape:8,40,16', 'x_attention:8,0.9', 'flex_prefill:0.9,0,20', 'flex_prefill:0.9,1,20'];
  const { code, stdout } = await run(
    '--json',
    'prefill',
    '--seq-len',
    '300',
    '--pattern',
    [...names, 'strided:100,50,4'].join('+'),
  );
  expect(code).toBe(0);
  const { heads } = JSON.parse(stdout);
  expect(heads.slice(0, 5).map((h: { pattern: string }) => h.pattern)).toEqual(names);
  expect(heads.slice(0, 6).map((h: { index: string }) => h.index)).toEqual([
    'dense',
    'tri_shape',
    'block_sparse',
    'vertical_slash',
    'block_sparse',
    'vertical_slash',
  ]);
  expect(heads[5].pattern).toMatch(/^static \(4 columns, \d+ runs\)$/);
});

test("prefill takes MInference's options", async () => {
  const common = ['--json', 'prefill', '--seq-len', '200'];
  const patterns = async (...args: string[]): Promise<string[]> => {
    const { code, stdout } = await run(...common, ...args);
    expect(code).toBe(0);
    return JSON.parse(stdout).heads.map((h: { pattern: string }) => h.pattern);
  };
  expect((await patterns('--pattern', 'a_shape:16,64+vertical_slash:80,120', '--budget-ratio', '0.5')).slice(0, 2)).toEqual([
    'a_shape:8,32',
    'vertical_slash:40,60',
  ]);
  expect((await patterns('--pattern', 'a_shape:40,64+block_sparse:2', '--vs-only')).slice(0, 2)).toEqual([
    'vertical_slash:40,64',
    'vertical_slash:1000,6096',
  ]);
  expect(new Set(await patterns('--config', layer9, '--vs-only', '70,80'))).toEqual(new Set(['vertical_slash:70,80']));
  expect((await patterns('--config', layer9, '--budget-ratio', '0.1'))[0]).toBe('vertical_slash:134,50');
  expect(new Set(await patterns('--starting-layer', '3', '--layer', '2'))).toEqual(new Set(['dense']));
});

test('prefill --static-index gives the same output without an estimate', async () => {
  const args = ['--json', 'prefill', '--seq-len', '300', '--pattern', 'vertical_slash:40,110'];
  const estimated = JSON.parse((await run(...args)).stdout);
  const fixed = JSON.parse((await run(...args, '--static-index')).stdout);
  expect(fixed.staticIndex).toBe(true);
  expect(fixed.sparse.relError).toBe(estimated.sparse.relError);
  expect(fixed.sparse.density).toBe(estimated.sparse.density);
  expect(fixed.sparse.indexBytes).toBe(0);
  expect(fixed.sparse.stages?.estimate ?? 0).toBe(0);
});

test('recall measures FlexPrefill', async () => {
  const { code, stdout } = await run('--json', 'recall', '--seq-len', '512', '--pattern', 'flex_prefill:0.8,0.1,64');
  expect(code).toBe(0);
  const { heads } = JSON.parse(stdout);
  expect(heads).toHaveLength(9);
  for (const head of heads) {
    expect(['vertical_slash', 'block_sparse']).toContain(head.index);
    expect(head.recall).toBeGreaterThan(0.5);
    expect(head.recall).toBeLessThanOrEqual(1);
  }
});

test('search refuses candidates that its file format cannot say', async () => {
  const { code, stderr } = await run('search', '--pattern', 'a_shape+flex_prefill');
  expect(code).toBe(1);
  expect(stderr).toContain('allowed: a_shape, vertical_slash, block_sparse');
});

test('info --json tells the adapter and its tiers', async () => {
  const { code, stdout } = await run('--json', 'info');
  expect(code).toBe(0);
  expect(JSON.stringify(JSON.parse(stdout))).toContain('portable');
});

test.each<[string[], number]>([
  [['prefill', '--pattern', 'stripes:3'], 2],
  [['prefill', '--pattern', 'block_sparse:0'], 2],
  [['prefill', '--pattern', 'a_shape:3'], 2],
  [['prefill', '--pattern', 'flex_prefill:1.5,0.1,64'], 2],
  [['prefill', '--budget-ratio', '0'], 2],
  [['prefill', '--vs-only', '3'], 2],
  [['recall', '--starting-layer', 'x'], 2],
  [['prefill', '--seq-len', '-4'], 2],
  [['prefill', '--tier', 'f64'], 2],
  [['prefill', '--qkv', '/nowhere/qkv.safetensors'], 1],
  [['sing'], 2],
])('%j is refused with a message and nothing on stdout', async (args, expected) => {
  const { code, stdout, stderr } = await run(...args);
  expect(code).toBe(expected);
  expect(stdout).toBe('');
  expect(stderr).toMatch(/error/i);
});

test('refused patterns are told what is allowed', async () => {
  expect((await run('prefill', '--pattern', 'stripes')).stderr).toContain('Allowed: dense, a_shape, tri_shape, vertical_slash');
  expect((await run('prefill', '--pattern', 'flex_prefill:1')).stderr).toContain('flex_prefill:GAMMA,TAU,LEAST');
  expect((await run('prefill', '--vs-only', '3')).stderr).toContain('COLUMNS,DIAGONALS');
});

test('an error is an object too, with --json', async () => {
  const { code, stdout } = await run('--json', 'prefill', '--qkv', '/nowhere/qkv.safetensors');
  expect(code).toBe(1);
  expect(JSON.parse(stdout).error).toMatchObject({ code: 'file' });
});

test('damaged safetensors files give typed errors', async () => {
  const path = join(folder, 'damaged.safetensors');
  const header = JSON.stringify({ q: { dtype: 'F32', shape: [1, 2, 4], data_offsets: [0, 32] } });
  const good = Buffer.concat([Buffer.alloc(8), Buffer.from(header), Buffer.alloc(32)]);
  good.writeBigUInt64LE(BigInt(header.length));
  await fc.assert(
    fc.asyncProperty(fc.nat(good.length - 1), fc.nat(7), fc.boolean(), async (at, bit, cut) => {
      const bytes = Buffer.from(cut ? good.subarray(0, at) : good);
      if (!cut) bytes[at] = (bytes[at] ?? 0) ^ (1 << bit);
      writeFileSync(path, bytes);
      const source = await pathSource(path);
      try {
        await readSafetensors(source, 'damaged.safetensors');
        return !cut; // The flipped bit was in the data, or in a name.
      } catch (error) {
        return error instanceof MinferenceError && error.code === 'file' && error.message.includes(path);
      } finally {
        await source.close();
      }
    }),
    { numRuns: 60 },
  );
});
