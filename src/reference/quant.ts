import { getFloat16, setFloat16 } from '@petamoriken/float16';
import { checkOneOf, invalidArgument } from '../errors.js';
import { BLOCK_LAYOUT, type WeightType } from '../model/types.js';

/** Writes the numbers of the block at byte `at` to `out`, from `first` on. */
type Decode = (view: DataView, at: number, out: Float64Array, first: number) => void;

/** Each weight type's block, spelled out: bytes in the order in which they lie, and the number that they stand for. */
const DECODE: Readonly<Record<WeightType, Decode>> = {
  f32: (view, at, out, first) => {
    out[first] = view.getFloat32(at, true);
  },

  f16: (view, at, out, first) => {
    out[first] = getFloat16(view, at, true);
  },

  /** `f16 d; i8 q[32]`: x_i = d q_i. */
  q8_0: (view, at, out, first) => {
    const d = getFloat16(view, at, true);
    for (let i = 0; i < 32; i++) out[first + i] = d * view.getInt8(at + 2 + i);
  },

  /** `f16 d; u4 q[32]`, byte j holds q_j (low) and q_(j+16) (high): x_i = d (q_i - 8). */
  q4_0: (view, at, out, first) => {
    const d = getFloat16(view, at, true);
    for (let i = 0; i < 32; i++) out[first + i] = d * (nibble(view, at + 2, i, 16) - 8);
  },

  /** `f16 d; f16 m; u4 q[32]` in the order of q4_0: x_i = d q_i + m. */
  q4_1: (view, at, out, first) => {
    const d = getFloat16(view, at, true);
    const m = getFloat16(view, at + 2, true);
    for (let i = 0; i < 32; i++) out[first + i] = d * nibble(view, at + 4, i, 16) + m;
  },

  /** `f16 d; u32 h; u4 q[32]` in the order of q4_0, bit i of h above q_i: x_i = d (q_i - 16). */
  q5_0: (view, at, out, first) => {
    const d = getFloat16(view, at, true);
    const high = view.getUint32(at + 2, true);
    for (let i = 0; i < 32; i++) out[first + i] = d * (nibble(view, at + 6, i, 16) + 16 * bit(high, i) - 16);
  },

  /** `f16 d; f16 m; u32 h; u4 q[32]` in the order of q5_0: x_i = d q_i + m. */
  q5_1: (view, at, out, first) => {
    const d = getFloat16(view, at, true);
    const m = getFloat16(view, at + 2, true);
    const high = view.getUint32(at + 4, true);
    for (let i = 0; i < 32; i++) out[first + i] = d * (nibble(view, at + 8, i, 16) + 16 * bit(high, i)) + m;
  },

  /**
   * `u8 s[16]; u2 q[256]; f16 d; f16 dmin`: x_i = d (s_b & 15) q_i - dmin (s_b >> 4) with b = i / 16. Each half (128 elements) owns 32
   * bytes of q; its quarter g (32 elements) is at bit 2 g of them.
   */
  q2_k: (view, at, out, first) => {
    const d = getFloat16(view, at + 80, true);
    const dmin = getFloat16(view, at + 82, true);
    for (let i = 0; i < 256; i++) {
      const s = view.getUint8(at + (i >> 4));
      out[first + i] = d * (s & 15) * twoBits(view, at + 16, i) - dmin * (s >> 4);
    }
  },

  /**
   * `u8 h[32]; u2 q[256]; u8 s[12]; f16 d`: x_i = d (scale_(i/16) - 32) (q_i - 4), q_i of 3 bits: the two of q2_k's order, and above them
   * bit i / 32 of h_(i mod 32). The low nibbles of s_0 to s_7 are those of scales 0 to 7, the high ones those of 8 to 15; two bits above
   * them are bits 2 (b / 4) of s_(8 + b mod 4).
   */
  q3_k: (view, at, out, first) => {
    const d = getFloat16(view, at + 108, true);
    for (let i = 0; i < 256; i++) {
      const b = i >> 4;
      const low = (view.getUint8(at + 96 + (b & 7)) >> (4 * (b >> 3))) & 15;
      const high = (view.getUint8(at + 104 + (b & 3)) >> (2 * (b >> 2))) & 3;
      const level = twoBits(view, at + 32, i) + 4 * bit(view.getUint8(at + (i & 31)), i >> 5) - 4;
      out[first + i] = d * (low + 16 * high - 32) * level;
    }
  },

  /**
   * `f16 d; f16 dmin; u8 s[12]; u4 q[256]`: x_i = d scale_b q_i - dmin min_b with b = i / 32. Each 32 bytes of q hold two
   * sub-blocks b, the even one in the low nibbles. scale_b and min_b have 6 bits: those of b < 4 are the low bits of s_b and
   * s_(b+4); those of b >= 4 are the nibbles of s_(b+4), topped by the high bits of s_(b-4) and s_b.
   */
  q4_k: (view, at, out, first) => {
    for (let b = 0; b < 8; b++) {
      const { scale, min } = scaleOf(view, at, b);
      const q = at + 16 + 32 * (b >> 1);
      for (let i = 0; i < 32; i++) out[first + 32 * b + i] = scale * nibble(view, q, 32 * (b & 1) + i, 32) - min;
    }
  },

  /** `f16 d; f16 dmin; u8 s[12]; u8 h[32]; u4 q[256]` as q4_k, bit b of h_i above element i of sub-block b. */
  q5_k: (view, at, out, first) => {
    for (let b = 0; b < 8; b++) {
      const { scale, min } = scaleOf(view, at, b);
      const q = at + 48 + 32 * (b >> 1);
      for (let i = 0; i < 32; i++) {
        const level = nibble(view, q, 32 * (b & 1) + i, 32) + 16 * bit(view.getUint8(at + 16 + i), b);
        out[first + 32 * b + i] = scale * level - min;
      }
    }
  },

  /**
   * `u8 low[128]; u8 high[64]; i8 scale[16]; f16 d`: x_i = d scale_(i/16) (q_i - 32), q_i of 6 bits. Each half (128 elements) owns
   * 64 bytes of `low` and 32 of `high`; its quarter g (32 elements) has its low bits in nibble g / 2 of bytes 32 (g mod 2) and on,
   * and its two high bits at bit 2 g.
   */
  q6_k: (view, at, out, first) => {
    const d = getFloat16(view, at + 208, true);
    for (let i = 0; i < 256; i++) {
      const half = i >> 7;
      const quarter = (i >> 5) & 3;
      const lane = i & 31;
      const low = (view.getUint8(at + 64 * half + 32 * (quarter & 1) + lane) >> (4 * (quarter >> 1))) & 15;
      const high = (view.getUint8(at + 128 + 32 * half + lane) >> (2 * quarter)) & 3;
      out[first + i] = d * view.getInt8(at + 192 + (i >> 4)) * (low + 16 * high - 32);
    }
  },
};

/** `d scale_b` and `dmin min_b` of sub-block b of a block of q4_k or q5_k. */
function scaleOf(view: DataView, at: number, b: number): { readonly scale: number; readonly min: number } {
  const s = (j: number): number => view.getUint8(at + 4 + j);
  const scale = b < 4 ? s(b) & 63 : (s(b + 4) & 15) | ((s(b - 4) >> 6) << 4);
  const min = b < 4 ? s(b + 4) & 63 : (s(b + 4) >> 4) | ((s(b) >> 6) << 4);
  return { scale: getFloat16(view, at, true) * scale, min: getFloat16(view, at + 2, true) * min };
}

/** Element i of 256 numbers of 2 bits: quarter g of each half is at bits 2 g of its 32 bytes. */
function twoBits(view: DataView, at: number, i: number): number {
  return (view.getUint8(at + 32 * (i >> 7) + (i & 31)) >> (2 * ((i >> 5) & 3))) & 3;
}

function bit(x: number, i: number): number {
  return (x >>> i) & 1;
}

/** Element i of a run of nibbles of which the first `width` are the low ones of `width` bytes, and the next the high ones. */
function nibble(view: DataView, at: number, i: number, width: number): number {
  const byte = view.getUint8(at + (i % width));
  return i < width ? byte & 15 : byte >> 4;
}

/** The numbers that stored weights stand for, in float64: the reference of what the GPU unpacks. */
export function dequantize(type: WeightType, bytes: Uint8Array): Float64Array {
  checkOneOf('type', type, Object.keys(BLOCK_LAYOUT) as WeightType[]);
  const block = BLOCK_LAYOUT[type];
  if (bytes.length % block.bytes) throw invalidArgument('bytes.length', bytes.length, `a multiple of ${block.bytes} (${type})`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const blocks = bytes.length / block.bytes;
  const out = new Float64Array(blocks * block.elements);
  for (let b = 0; b < blocks; b++) DECODE[type](view, b * block.bytes, out, b * block.elements);
  return out;
}

/** Types that {@link quantize} writes. */
export type QuantizableType = 'f32' | 'f16' | 'q8_0' | 'q4_0' | 'q4_1' | 'q5_0' | 'q5_1';

/** Whether {@link quantize} writes a type: of the others encoding is a search. */
export function isQuantizable(type: WeightType): type is QuantizableType {
  return Object.hasOwn(ENCODE, type);
}

/** Bytes of a block at which its f16 scales and minima lie. */
export const HALVES_AT: Readonly<Record<Exclude<WeightType, 'f32' | 'f16'>, readonly number[]>> = {
  q8_0: [0],
  q4_0: [0],
  q4_1: [0, 2],
  q5_0: [0],
  q5_1: [0, 2],
  q2_k: [80, 82],
  q3_k: [108],
  q4_k: [0, 2],
  q5_k: [0, 2],
  q6_k: [208],
};

/** Writes the block at byte `at` from its numbers `x`. */
type Encode = (view: DataView, at: number, x: Float64Array) => void;

const ENCODE: Readonly<Record<QuantizableType, Encode>> = {
  f32: (view, at, x) => view.setFloat32(at, x[0] as number, true),

  f16: (view, at, x) => setFloat16(view, at, x[0] as number, true),

  /** d = max |x| / 127. */
  q8_0: (view, at, x) => {
    const d = storeHalf(view, at, Math.max(...x.map(Math.abs)) / 127);
    x.forEach((value, i) => view.setInt8(at + 2 + i, level(value, d, 0, -127, 127)));
  },

  /** d = -(x of the largest magnitude) / 8, so that this one gets the level -8. */
  q4_0: (view, at, x) => {
    const d = storeHalf(view, at, largest(x) / -8);
    storeNibbles(view, at + 2, (i) => level(x[i] as number, d, 0, -8, 7) + 8);
  },

  /** d = (max x - min x) / 15 and m = min x. */
  q4_1: (view, at, x) => {
    const m = storeHalf(view, at + 2, Math.min(...x));
    const d = storeHalf(view, at, (Math.max(...x) - m) / 15);
    storeNibbles(view, at + 4, (i) => level(x[i] as number, d, m, 0, 15));
  },

  /** d = -(x of the largest magnitude) / 16, so that this one gets the level -16. */
  q5_0: (view, at, x) => {
    const d = storeHalf(view, at, largest(x) / -16);
    storeFiveBits(view, at + 2, (i) => level(x[i] as number, d, 0, -16, 15) + 16);
  },

  /** d = (max x - min x) / 31 and m = min x. */
  q5_1: (view, at, x) => {
    const m = storeHalf(view, at + 2, Math.min(...x));
    const d = storeHalf(view, at, (Math.max(...x) - m) / 31);
    storeFiveBits(view, at + 4, (i) => level(x[i] as number, d, m, 0, 31));
  },
};

/** The number of the largest magnitude. */
function largest(x: Float64Array): number {
  return x.reduce((best, value) => (Math.abs(value) > Math.abs(best) ? value : best), 0);
}

/** Stores x as f16 and gives what was stored. */
function storeHalf(view: DataView, at: number, x: number): number {
  setFloat16(view, at, x, true);
  return getFloat16(view, at, true);
}

/** The whole number n of [least, most] for which d n + m is nearest to x. */
function level(x: number, d: number, m: number, least: number, most: number): number {
  return d === 0 ? 0 : Math.min(most, Math.max(least, Math.round((x - m) / d)));
}

function storeNibbles(view: DataView, at: number, q: (i: number) => number): void {
  for (let j = 0; j < 16; j++) view.setUint8(at + j, q(j) | (q(j + 16) << 4));
}

/** Fifth bits, then nibbles. */
function storeFiveBits(view: DataView, at: number, q: (i: number) => number): void {
  let high = 0;
  for (let i = 0; i < 32; i++) high |= (q(i) >> 4) << i;
  view.setUint32(at, high >>> 0, true);
  storeNibbles(view, at + 4, (i) => q(i) & 15);
}

/** Numbers as stored weights, rounded to the nearest level of each block. */
export function quantize(type: QuantizableType, values: ArrayLike<number>): Uint8Array<ArrayBuffer> {
  checkOneOf('type', type, Object.keys(ENCODE) as QuantizableType[]);
  const block = BLOCK_LAYOUT[type];
  if (values.length % block.elements) {
    throw invalidArgument('values.length', values.length, `a multiple of ${block.elements} (${type})`);
  }
  const blocks = values.length / block.elements;
  const bytes = new Uint8Array(blocks * block.bytes);
  const view = new DataView(bytes.buffer);
  const x = Float64Array.from(values);
  for (let b = 0; b < blocks; b++) {
    ENCODE[type](view, b * block.bytes, x.subarray(b * block.elements, (b + 1) * block.elements));
  }
  return bytes;
}
