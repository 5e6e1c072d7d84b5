/** Model files for tests, made in memory. */
import { setFloat16 } from '@petamoriken/float16';
import { MinferenceError } from '../../src/errors.js';
import type { WeightTensor } from '../../src/model/types.js';

/** A GGUF metadata value: strings, booleans, integers (u32), other numbers (f32), and lists of strings, of integers or of floats. */
export type Value = string | boolean | number | readonly string[] | readonly number[] | Float32Array;

export interface Tensor {
  readonly shape: readonly number[];
  /** Number of the type in GGUF, or its name in safetensors. */
  readonly type: number | string;
  readonly bytes: Uint8Array;
}

const bytesOf = (array: ArrayBufferView): Uint8Array => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
const u32 = (x: number): Uint8Array => bytesOf(Uint32Array.of(x));
const u64 = (x: number): Uint8Array => bytesOf(BigUint64Array.of(BigInt(x)));
const text = (s: string): Uint8Array => {
  const bytes = new TextEncoder().encode(s);
  return joined([u64(bytes.length), bytes]);
};

export function joined(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

function valueBytes(value: Value): Uint8Array {
  if (typeof value === 'string') return joined([u32(8), text(value)]);
  if (typeof value === 'boolean') return joined([u32(7), Uint8Array.of(value ? 1 : 0)]);
  if (typeof value === 'number') {
    return Number.isInteger(value) ? joined([u32(4), u32(value)]) : joined([u32(6), bytesOf(Float32Array.of(value))]);
  }
  if (value instanceof Float32Array) return joined([u32(9), u32(6), u64(value.length), bytesOf(value)]);
  if (typeof value[0] === 'string') return joined([u32(9), u32(8), u64(value.length), ...value.map((s) => text(String(s)))]);
  return joined([u32(9), u32(5), u64(value.length), bytesOf(Int32Array.from(value as readonly number[]))]);
}

const padded = (bytes: Uint8Array): Uint8Array<ArrayBuffer> => joined([bytes, new Uint8Array(-bytes.length & 31)]);

/** A GGUF file, version 3. */
export function makeGguf(metadata: Record<string, Value>, tensors: Record<string, Tensor> = {}): Uint8Array<ArrayBuffer> {
  let offset = 0;
  const infos = Object.entries(tensors).map(([name, { shape, type, bytes }]) => {
    const info = joined([text(name), u32(shape.length), ...shape.toReversed().map(u64), u32(type as number), u64(offset)]);
    offset += padded(bytes).length;
    return info;
  });
  const header = joined([
    new TextEncoder().encode('GGUF'),
    u32(3),
    u64(infos.length),
    u64(Object.keys(metadata).length),
    ...Object.entries(metadata).flatMap(([key, value]) => [text(key), valueBytes(value)]),
    ...infos,
  ]);
  return joined([padded(header), ...Object.values(tensors).map(({ bytes }) => padded(bytes))]);
}

/** A safetensors file. */
export function makeSafetensors(tensors: Record<string, Tensor>): Uint8Array<ArrayBuffer> {
  let offset = 0;
  const entries = Object.entries(tensors).map(([name, { shape, type, bytes }]) => {
    offset += bytes.length;
    return [name, { dtype: type, shape, data_offsets: [offset - bytes.length, offset] }] as const;
  });
  const header = new TextEncoder().encode(JSON.stringify({ __metadata__: { format: 'pt' }, ...Object.fromEntries(entries) }));
  return joined([u64(header.length), header, ...Object.values(tensors).map(({ bytes }) => bytes)]);
}

/** Numbers as little-endian bytes of a plain type. */
export function plain(type: 'F32' | 'F16' | 'BF16', values: ArrayLike<number>): Uint8Array<ArrayBuffer> {
  const view = new DataView(new ArrayBuffer(values.length * (type === 'F32' ? 4 : 2)));
  Array.from(values).forEach((x, i) => {
    if (type === 'F32') view.setFloat32(4 * i, x, true);
    else if (type === 'F16') setFloat16(view, 2 * i, x, true);
    else view.setUint16(2 * i, new DataView(Float32Array.of(x).buffer).getUint32(0, true) >>> 16, true);
  });
  return new Uint8Array(view.buffer);
}

/** All bytes of a weight; also checks the promises about its chunks. */
export async function bytesOfWeight(weight: WeightTensor, blockBytes: number): Promise<Uint8Array<ArrayBuffer>> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of weight.read()) chunks.push(chunk.slice());
  const bytes = joined(chunks);
  if (bytes.length !== weight.byteLength) throw new Error(`${weight.name} gave ${bytes.length} of ${weight.byteLength} bytes`);
  if (chunks.some((chunk, i) => chunk.length % blockBytes || (i < chunks.length - 1 && chunk.length % 4))) {
    throw new Error(`chunks of ${weight.name} have lengths ${chunks.map((chunk) => chunk.length).join(', ')}`);
  }
  return bytes;
}

/** The `MinferenceError` that a promise rejects with. */
export async function rejection(promise: Promise<unknown>): Promise<MinferenceError> {
  const result = await promise.then(
    () => undefined,
    (error: unknown) => error,
  );
  if (!(result instanceof MinferenceError)) throw new Error(`not a MinferenceError: ${String(result)}`);
  return result;
}
