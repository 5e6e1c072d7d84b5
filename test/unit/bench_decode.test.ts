import { expect, test } from 'vitest';
import { bytesRead, measureDecoding } from '../../bench/decode.js';
import { SHAPES } from '../../bench/synthetic_model.js';
import { openNodeDevice } from '../../src/device/node.js';
import type { ModelConfig } from '../../src/model/types.js';

const tiny = SHAPES['tiny'] as ModelConfig;

test('what a token reads: matrices and norms once, keys and values of every token', () => {
  // 2 layers of q, k, v, o, gate, up and down, in f16; their norms, the last one's and biases of q and k in f32; the embedding is the head.
  const [hidden, heads, kv, inner] = [256, 4 * 64, 2 * 64, 512];
  const matrices = hidden * (heads + 2 * kv) + heads * hidden + 3 * hidden * inner;
  const vectors = 2 * hidden + (tiny.qkvBias ? heads + 2 * kv : 0);
  const expected = 2 * (2 * matrices + 4 * vectors + 2 * kv * 100 * 2) + 2 * 1000 * hidden + 4 * hidden;
  expect(bytesRead(tiny, 'f16', 100, 2)).toBe(expected);
  expect(bytesRead(tiny, 'f16', 101, 2) - bytesRead(tiny, 'f16', 100, 2)).toBe(2 * 2 * kv * 2);
});

test('decoding is timed by the clock and by kernel, without what belongs to the prompt', async () => {
  const device = await openNodeDevice();
  const { createCommandEncoder } = device;
  const row = await measureDecoding(device, { ...tiny, layers: 1 }, 'q8_0', 70, {
    tier: 'auto',
    tokens: 3,
    runs: 1,
    question: 7,
  });
  expect(row).toMatchObject({ context: 70, layers: 1 });
  expect(row.wallMs).toBeGreaterThan(0);
  expect(row.recordMs).toBeGreaterThan(0);
  expect(row.question).toMatchObject({ tokens: 7 });
  expect(row.question.wallMs).toBeGreaterThan(0);
  expect(device.createCommandEncoder).toBe(createCommandEncoder);
  if (device.features.has('timestamp-query')) {
    expect(row.gpuMs).toBeGreaterThan(0);
    const kernels = Object.keys(row.kernels ?? {}).join('\n');
    for (const name of ['decode_attention', 'decode_combine', 'gemv q8_0', 'rope', 'argmax', 'embed'])
      expect(kernels).toContain(name);
    expect(row.question.gpuMs).toBeGreaterThan(0);
    expect(Object.keys(row.question.kernels ?? {}).join('\n')).toContain('dense');
  }
  device.destroy();
});
