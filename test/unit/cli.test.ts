import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, expect, test } from 'vitest';
import { runCli } from '../../src/cli/app.js';
import { SafetensorsFile } from '../../src/cli/safetensors.js';
import { MinferenceError } from '../../src/errors.js';

const folder = mkdtempSync(join(tmpdir(), 'minference-'));
afterAll(() => rmSync(folder, { recursive: true }));

async function run(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  let stdout = '';
  let stderr = '';
  const code = await runCli(args, {
    stdout: (text) => {
      stdout += text;
    },
    stderr: (text) => {
      stderr += text;
    },
  });
  return { code, stdout, stderr };
}

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

test('info --json tells the adapter and its tiers', async () => {
  const { code, stdout } = await run('--json', 'info');
  expect(code).toBe(0);
  expect(JSON.stringify(JSON.parse(stdout))).toContain('portable');
});

test.each<[string[], number]>([
  [['prefill', '--pattern', 'stripes:3'], 2],
  [['prefill', '--pattern', 'block_sparse:0'], 2],
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
      try {
        const file = await SafetensorsFile.open(path);
        await file.close();
        return !cut; // The flipped bit was in the data, or in a name.
      } catch (error) {
        return error instanceof MinferenceError && error.code === 'file' && error.message.includes(path);
      }
    }),
    { numRuns: 60 },
  );
});
