import { setFloat16 } from '@petamoriken/float16';
import { describe, expect, inject, test } from 'vitest';
import { BLOCK_LAYOUT, type WeightType } from '../../src/model/types.js';
import { dequantize, type QuantizableType, quantize } from '../../src/reference/quant.js';
import { deriveSeed, Random } from '../../src/reference/random.js';
// Random blocks, and what the dequantisers of the Python package gguf 0.19 give for them.
import blocks from './model_load_blocks.json' with { type: 'json' };
import { rejection } from './model_load_make.js';

const fromBase64 = (s: string): Uint8Array<ArrayBuffer> => Uint8Array.from(atob(s), (c) => c.charCodeAt(0));

/** A block with these f16 numbers and bytes at these offsets, zero elsewhere. */
function block(type: WeightType, halves: Record<number, number>, bytes: Record<number, number>): Uint8Array {
  const view = new DataView(new ArrayBuffer(BLOCK_LAYOUT[type].bytes));
  for (const [at, x] of Object.entries(halves)) setFloat16(view, Number(at), x, true);
  for (const [at, x] of Object.entries(bytes)) view.setUint8(Number(at), x);
  return new Uint8Array(view.buffer);
}

describe('blocks computed by hand', () => {
  test('q8_0', () => {
    const x = dequantize('q8_0', block('q8_0', { 0: 0.5 }, { 2: 3, 3: 0xff, 33: 0x80 }));
    expect([x[0], x[1], x[2], x[31]]).toEqual([1.5, -0.5, 0, -64]);
  });

  test('q4_0: byte j has elements j and j + 16, both less 8', () => {
    const x = dequantize('q4_0', block('q4_0', { 0: 2 }, { 2: 0xf1, 17: 0x08 }));
    expect([x[0], x[16], x[15], x[31], x[1]]).toEqual([-14, 14, 0, -16, -16]);
  });

  test('q4_1', () => {
    const x = dequantize('q4_1', block('q4_1', { 0: 0.25, 2: -1 }, { 4: 0xf4 }));
    expect([x[0], x[16], x[1]]).toEqual([0, 2.75, -1]);
  });

  test('q5_0: bit i stands above the nibble of element i', () => {
    // Bits 0 and 31 of four bytes: elements 0 and 31.
    const x = dequantize('q5_0', block('q5_0', { 0: 2 }, { 2: 0x01, 5: 0x80, 6: 0xf1, 21: 0x40 }));
    expect([x[0], x[16], x[15], x[31], x[1]]).toEqual([2, -2, -32, 8, -32]);
  });

  test('q5_1', () => {
    const x = dequantize('q5_1', block('q5_1', { 0: 0.25, 2: -1 }, { 6: 0x01, 8: 0xf4 }));
    expect([x[0], x[16], x[1]]).toEqual([0, 0.25 * 31 - 1, -1]);
  });

  test('q5_k', () => {
    // As q4_k below, with bit 0 of byte 0 and bit 5 of byte 1 above elements 0 and 161.
    const scales = { 4: 5, 8: 3, 5: 0x80, 9: 0x40, 13: 0xba };
    const x = dequantize('q5_k', block('q5_k', { 0: 1, 2: 0.5 }, { ...scales, 16: 0x01, 17: 0x20, 48: 0x07, 113: 0xc0 }));
    expect([x[0], x[1]]).toEqual([5 * 23 - 1.5, -1.5]);
    expect([x[160], x[161]]).toEqual([-13.5, 42 * 28 - 13.5]);
  });

  test('q2_k', () => {
    // Elements 0 and 128 + 64 + 3: bits 0 of byte 0, and bits 4 of byte 32 + 3; groups 0 and 12.
    const x = dequantize('q2_k', block('q2_k', { 80: 2, 82: 0.5 }, { 0: 0x35, 12: 0x07, 16: 0x03, 51: 0x20 }));
    expect([x[0], x[1], x[16]]).toEqual([2 * 5 * 3 - 1.5, -1.5, 0]);
    expect([x[195], x[196]]).toEqual([2 * 7 * 2, 0]);
  });

  test('q3_k', () => {
    // Scale 0: low nibble of byte 96 and bits 0 of byte 104, 9 + 16 * 2. Scale 13: high nibble of byte 101 and bits 6 of byte 105, 4 + 48.
    const scales = { 96: 0x09, 104: 0x02, 101: 0x40, 105: 0xc0 };
    // Element 0: bits 0 of byte 32, and bit 0 of byte 0. Element 128 + 64 + 16 + 2: bits 4 of byte 64 + 18, and bit 6 of byte 18.
    const x = dequantize('q3_k', block('q3_k', { 108: 0.5 }, { ...scales, 0: 0x01, 32: 0x03, 18: 0x40, 82: 0x10 }));
    expect([x[0], x[1]]).toEqual([0.5 * 9 * 3, 0.5 * 9 * -4]);
    expect([x[210], x[211]]).toEqual([0.5 * 20 * 1, 0.5 * 20 * -4]);
  });

  test('q4_k', () => {
    // Sub-block 0: scale 5, min 3. Sub-block 5: scale 0x2a = 10 + 2 * 16, min 0x1b = 11 + 1 * 16.
    const scales = { 4: 5, 8: 3, 5: 0x80, 9: 0x40, 13: 0xba };
    const x = dequantize('q4_k', block('q4_k', { 0: 1, 2: 0.5 }, { ...scales, 16: 0x07, 81: 0xc0 }));
    expect([x[0], x[1]]).toEqual([5 * 7 - 1.5, -1.5]);
    expect([x[160], x[161]]).toEqual([-13.5, 42 * 12 - 13.5]);
  });

  test('q6_k', () => {
    // Element 0: low nibble 9, high bits 2. Element 128 + 64 + 3: high nibble of byte 64 + 3, bits 4-5 of byte 128 + 32 + 3.
    const q = { 0: 9, 128: 2, 192: 0xfe, 67: 0x50, 163: 0x30, 204: 3 };
    const x = dequantize('q6_k', block('q6_k', { 208: 0.5 }, q));
    expect([x[0], x[1]]).toEqual([0.5 * -2 * (9 + 32 - 32), 0.5 * -2 * -32]);
    expect(x[195]).toBe(0.5 * 3 * (5 + 48 - 32));
  });
});

for (const [type, { bytes, values }] of Object.entries(blocks)) {
  test(`random ${type} blocks agree with another implementation`, () => {
    const expected = new Float32Array(fromBase64(values).buffer);
    const x = dequantize(type as WeightType, fromBase64(bytes));
    expect(x.length).toBe(2 * BLOCK_LAYOUT[type as WeightType].elements);
    x.forEach((value, i) =>
      expect(Math.abs(value - (expected[i] as number))).toBeLessThanOrEqual(1e-6 * (1 + Math.abs(value)) * 64),
    );
  });
}

describe('quantisers', () => {
  // Largest error, as a share of the block's span: half a step, plus the rounding of the step to f16.
  const bounds: readonly [QuantizableType, number][] = [
    ['f32', 1e-7],
    ['f16', 5e-4],
    ['q8_0', 0.5 / 127 + 1e-3],
    ['q4_0', 1 / 8 + 1e-3],
    ['q4_1', 0.5 / 7.5 + 2e-3],
    ['q5_0', 1 / 16 + 1e-3],
    ['q5_1', 0.5 / 15.5 + 2e-3],
  ];
  for (const [type, bound] of bounds) {
    test(`${type} keeps random numbers within its step`, () => {
      const random = new Random(deriveSeed(inject('seed'), type));
      const values = random.normals(64 * 32);
      const bytes = quantize(type, values);
      expect(bytes.length).toBe((values.length / BLOCK_LAYOUT[type].elements) * BLOCK_LAYOUT[type].bytes);
      const back = dequantize(type, bytes);
      for (let b = 0; b < values.length; b += 32) {
        const span = Math.max(...values.subarray(b, b + 32).map(Math.abs));
        for (let i = b; i < b + 32; i++) {
          expect(Math.abs((back[i] as number) - (values[i] as number))).toBeLessThanOrEqual(bound * span);
        }
      }
      // What is stored already is stored the same again.
      if (type !== 'q4_1' && type !== 'q5_1') expect(dequantize(type, quantize(type, back))).toEqual(back);
    });
  }

  test('zeros stay zeros', () => {
    for (const type of ['q8_0', 'q4_0', 'q4_1', 'q5_0', 'q5_1'] as const) {
      expect(dequantize(type, quantize(type, new Float32Array(32))).every((x) => x === 0)).toBe(true);
    }
  });
});

test('lengths that are no whole blocks are refused', async () => {
  const error = await rejection(Promise.resolve().then(() => dequantize('q4_k', new Uint8Array(143))));
  expect([error.argument, error.value, error.allowed]).toEqual(['bytes.length', 143, 'a multiple of 144 (q4_k)']);
  expect((await rejection(Promise.resolve().then(() => quantize('q8_0', [1, 2])))).argument).toBe('values.length');
});
