import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Float16Array } from '@petamoriken/float16';
import { afterAll, describe, expect, test } from 'vitest';
import { createNodeGpu } from '../../src/device/node.js';
import { Random } from '../../src/reference/random.js';
import { run as cli } from './run_cli.js';

const adapter = await createNodeGpu().requestAdapter();
const folder = mkdtempSync(join(tmpdir(), 'minference-input-'));
afterAll(() => rmSync(folder, { recursive: true }));

interface Entry {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data: Uint8Array;
}

function safetensors(name: string, tensors: Readonly<Record<string, Entry>>): string {
  let end = 0;
  const header: Record<string, object> = {};
  for (const [key, { dtype, shape, data }] of Object.entries(tensors)) {
    header[key] = { dtype, shape, data_offsets: [end, end + data.length] };
    end += data.length;
  }
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  const path = join(folder, name);
  writeFileSync(path, Buffer.concat([length, text, ...Object.values(tensors).map((t) => t.data)]));
  return path;
}

const bytes = (x: ArrayBufferView): Uint8Array => new Uint8Array(x.buffer, x.byteOffset, x.byteLength);

/** Numbers that every element type holds exactly. */
function exact(count: number, seed: number): Float32Array {
  const random = new Random(seed);
  return Float32Array.from({ length: count }, () => random.integer(-64, 64) / 32);
}

const ENCODE: Readonly<Record<string, (x: Float32Array) => Uint8Array>> = {
  F32: (x) => bytes(x),
  F16: (x) => bytes(new Float16Array(x)),
  BF16: (x) => bytes(Uint16Array.from(new Uint32Array(x.buffer), (word) => word >>> 16)),
};

const TOKENS = 150;

function qkv(dtype: string): Record<'q' | 'k' | 'v', Entry> {
  const tensor = (heads: number, seed: number): Entry => ({
    dtype,
    shape: [heads, TOKENS, 32],
    data: (ENCODE[dtype] as (x: Float32Array) => Uint8Array)(exact(heads * TOKENS * 32, seed)),
  });
  return { q: tensor(4, 1), k: tensor(2, 2), v: tensor(2, 3) };
}

describe('prefill --qkv', () => {
  test.skipIf(!adapter)('reads f32, f16 and bf16 alike, whole and cut', async () => {
    const results = new Map<string, { readonly sparse: { readonly relError: number; readonly density: number } }>();
    for (const dtype of ['F32', 'F16', 'BF16']) {
      const path = safetensors(`${dtype}.safetensors`, qkv(dtype));
      for (const cut of [TOKENS, 100]) {
        const {
          code,
          stdout: out,
          stderr: err,
        } = await cli(
          ...['prefill', '--qkv', path, '--seq-len', String(cut), '--dtype', 'f32', '--pattern', 'a_shape:8,40', '--json'],
        );
        expect(err).not.toContain('error');
        expect(code).toBe(0);
        const result = JSON.parse(out);
        expect(result.input).toEqual({
          source: 'file',
          name: `${dtype}.safetensors`,
          numHeads: 4,
          numKvHeads: 2,
          headDim: 32,
          seqLen: cut,
          dtype: 'f32',
        });
        expect(result.memory.peakBytes).toBe(result.memory.tensorBytes + result.memory.workspaceBytes);
        expect(result.memory.tensorBytes).toBe((4 + 2 + 2 + 4) * cut * 32 * 4);
        results.set(`${dtype} ${cut}`, result);
      }
    }
    for (const cut of [TOKENS, 100]) {
      const [f32, ...others] = ['F32', 'F16', 'BF16'].map((dtype) => results.get(`${dtype} ${cut}`)?.sparse);
      expect(f32?.relError).toBeGreaterThan(0);
      for (const other of others) expect(other?.relError).toBe(f32?.relError);
    }
    // Rows below 48 see everything: the share of pairs is that of the formula.
    let kept = 0;
    for (let row = 0; row < 100; row++) kept += Math.min(row + 1, 48);
    expect(results.get('F32 100')?.sparse.density).toBeCloseTo(kept / (50 * 101), 9);
  });

  const good = qkv('F32');
  const { v: _, ...withoutV } = good;
  test.each<[string, Readonly<Record<string, Entry>>, RegExp]>([
    ['lacks a tensor', withoutV, /no tensor "v"; it has q, k/],
    [
      'has integers',
      { ...good, k: { dtype: 'I32', shape: [2, TOKENS, 32], data: good.k.data } },
      /"k" is I32; allowed: F16, BF16, F32/,
    ],
    [
      'has two dimensions',
      { ...good, q: { ...good.q, shape: [4 * TOKENS, 32] } },
      /"q" has the shape \[600, 32\]; allowed: \[heads/,
    ],
    ['has other heads in k and v', { ...good, v: good.q }, /do not belong together/],
    [
      'has no multiple of heads',
      { ...good, q: { ...good.q, shape: [3, TOKENS, 32], data: good.q.data.slice(0, 3 * TOKENS * 128) } },
      /3 query heads are no multiple of 2/,
    ],
    [
      'has an odd head size',
      Object.fromEntries(Object.entries(good).map(([name, t]) => [name, { ...t, shape: [t.shape[0] as number, 100, 48] }])),
      /head size 48 is not one of 32, 64, 80, 96, 128, 256/,
    ],
  ])('a file that %s', async (_what, tensors, message) => {
    const path = safetensors('bad.safetensors', tensors);
    const { code, stdout: out } = await cli('prefill', '--qkv', path, '--json');
    expect(code).toBe(1);
    const { error } = JSON.parse(out);
    expect(error).toMatchObject({ code: 'file', argument: path });
    expect(error.message).toMatch(message);
  });

  test('options that do not go with a file are refused', async () => {
    const path = safetensors('good.safetensors', good);
    for (const args of [
      ['--heads', '4'],
      ['--head-dim', '64'],
      ['--seq-len', String(TOKENS + 1)],
    ]) {
      const { code, stdout: out } = await cli('prefill', '--qkv', path, ...args, '--json');
      expect(code).toBe(1);
      expect(JSON.parse(out).error.code).toBe('invalid-argument');
    }
  });

  test.skipIf(!adapter)('numbers that f16 cannot hold are refused, not made infinite', async () => {
    const large = exact(2 * TOKENS * 32, 5);
    large[77] = 1e6;
    const path = safetensors('large.safetensors', { ...good, k: { ...good.k, data: ENCODE['F32']?.(large) as Uint8Array } });
    const { code, stderr: err } = await cli('prefill', '--qkv', path, '--dtype', 'f16');
    expect(code).toBe(1);
    expect(err).toContain('1000000 in tensor "k" does not fit f16; use --dtype f32');
  });
});
