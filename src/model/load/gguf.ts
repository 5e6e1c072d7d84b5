/*
 * The header of a GGUF file. Own code: the package @huggingface/gguf reads URLs and paths only, silently cuts a string that crosses
 * one of its 2,000,000-byte steps (seen with 0.4.6), checks no tensor against the size of the file, and adds 259 KB to a bundle.
 */
import { BLOCK_LAYOUT, type WeightType } from '../types.js';
import { damaged, type ModelSource, missingFile, readBytes, statOf, unsupported } from './source.js';
import type { StoredTensor } from './weights.js';

/** A value of the metadata. 64-bit integers are numbers. */
export type GgufValue = number | boolean | string | readonly GgufValue[];

/** What a GGUF file says before its data. */
export interface GgufHeader {
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, StoredTensor>;
}

/** Number of each tensor type in the format, for the types that load, and names of some others for messages. */
const TENSOR_TYPES: Readonly<Record<number, string>> = {
  0: 'F32',
  1: 'F16',
  2: 'Q4_0',
  3: 'Q4_1',
  6: 'Q5_0',
  7: 'Q5_1',
  8: 'Q8_0',
  10: 'Q2_K',
  11: 'Q3_K',
  12: 'Q4_K',
  13: 'Q5_K',
  14: 'Q6_K',
  20: 'IQ4_NL',
  23: 'IQ4_XS',
  30: 'BF16',
};

/** Thrown when the bytes at hand end before the header does. */
class NeedMore extends Error {}

/** Reads the header of a GGUF file, and checks that the data of all its tensors is in the file. */
export async function readGguf(source: ModelSource, name: string, signal?: AbortSignal): Promise<GgufHeader> {
  const info = await statOf(source, name, signal);
  if (!info) throw missingFile(source, name);
  // Nobody tells how long the header is: read a longer and longer start of the file.
  let bytes = new Uint8Array(0);
  for (let want = 2 ** 20; ; want *= 2) {
    const start = new Uint8Array(Math.min(want, info.size));
    start.set(bytes);
    start.set(await readBytes(source, name, bytes.length, start.length, signal), bytes.length);
    bytes = start;
    try {
      return parse(source, name, bytes, info.size);
    } catch (error) {
      if (!(error instanceof NeedMore)) throw error;
      if (bytes.length === info.size) throw damaged(source, name, 'its header is cut off');
    }
  }
}

/** Reads little-endian values one after another. */
class Reader {
  readonly #view: DataView;
  readonly #bytes: Uint8Array;
  readonly #text = new TextDecoder();
  readonly #bad: (problem: string) => Error;
  at = 0;

  constructor(bytes: Uint8Array, bad: (problem: string) => Error) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#bad = bad;
  }

  /** Position of the next `length` bytes, which are then behind. */
  skip(length: number): number {
    const at = this.at;
    if (at + length > this.#bytes.length) throw new NeedMore();
    this.at += length;
    return at;
  }

  u32(): number {
    return this.#view.getUint32(this.skip(4), true);
  }

  u64(): number {
    return this.#whole(this.#view.getBigUint64(this.skip(8), true));
  }

  string(): string {
    const length = this.u64();
    const at = this.skip(length);
    return this.#text.decode(this.#bytes.subarray(at, at + length));
  }

  value(type: number, depth = 0): GgufValue {
    const view = this.#view;
    switch (type) {
      case 0:
        return view.getUint8(this.skip(1));
      case 1:
        return view.getInt8(this.skip(1));
      case 2:
        return view.getUint16(this.skip(2), true);
      case 3:
        return view.getInt16(this.skip(2), true);
      case 4:
        return this.u32();
      case 5:
        return view.getInt32(this.skip(4), true);
      case 6:
        return view.getFloat32(this.skip(4), true);
      case 7:
        return view.getUint8(this.skip(1)) !== 0;
      case 8:
        return this.string();
      case 9: {
        if (depth > 3) throw this.#bad('it nests lists too deep');
        const element = this.u32();
        const length = this.u64();
        const list: GgufValue[] = [];
        for (let i = 0; i < length; i++) list.push(this.value(element, depth + 1));
        return list;
      }
      case 10:
        return this.u64();
      case 11:
        return this.#whole(view.getBigInt64(this.skip(8), true));
      case 12:
        return view.getFloat64(this.skip(8), true);
      default:
        throw this.#bad(`it has a value of the unknown type ${type}`);
    }
  }

  #whole(value: bigint): number {
    if (value > Number.MAX_SAFE_INTEGER || value < Number.MIN_SAFE_INTEGER) throw this.#bad(`it has the integer ${value}`);
    return Number(value);
  }
}

function parse(source: ModelSource, name: string, bytes: Uint8Array, fileSize: number): GgufHeader {
  const bad = (problem: string): Error => damaged(source, name, problem);
  const reader = new Reader(bytes, bad);
  if (reader.u32() !== 0x46554747) throw bad('it does not begin with "GGUF"');
  const version = reader.u32();
  if (version !== 2 && version !== 3)
    throw unsupported(`GGUF version of ${source.label}/${name}`, version, '2, 3 (little-endian)');
  const tensorCount = reader.u64();
  const valueCount = reader.u64();

  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < valueCount; i++) {
    const key = reader.string();
    metadata.set(key, reader.value(reader.u32()));
  }

  const found: { name: string; shape: number[]; type: number; offset: number }[] = [];
  for (let i = 0; i < tensorCount; i++) {
    const tensor = reader.string();
    const rank = reader.u32();
    if (rank > 4) throw bad(`tensor "${tensor}" has ${rank} dimensions`);
    const shape = Array.from({ length: rank }, () => reader.u64()).reverse();
    found.push({ name: tensor, shape, type: reader.u32(), offset: reader.u64() });
  }

  const alignment = metadata.get('general.alignment') ?? 32;
  if (typeof alignment !== 'number' || !Number.isInteger(alignment) || alignment < 1) {
    throw bad(`general.alignment is ${String(alignment)}`);
  }
  const dataStart = Math.ceil(reader.at / alignment) * alignment;
  const tensors = new Map<string, StoredTensor>();
  for (const { name: tensor, shape, type, offset } of found) {
    const dtype = TENSOR_TYPES[type] ?? `type ${type}`;
    const begin = dataStart + offset;
    const end = begin + (storedBytes(dtype, shape) ?? 0);
    if (end > fileSize) throw bad(`tensor "${tensor}" ends at byte ${end}, but the file has ${fileSize}; it is cut off`);
    if (tensors.has(tensor)) throw bad(`tensor "${tensor}" is there twice`);
    tensors.set(tensor, { source, file: name, name: tensor, shape, dtype, begin, end });
  }
  return { metadata, tensors };
}

/** Bytes of a tensor of one of the types that load, or undefined: also where its rows are no whole blocks. */
function storedBytes(dtype: string, shape: readonly number[]): number | undefined {
  const layout = dtype === 'BF16' ? BLOCK_LAYOUT.f16 : BLOCK_LAYOUT[dtype.toLowerCase() as WeightType];
  if (!layout || (shape.at(-1) ?? 1) % layout.elements) return undefined;
  return (shape.reduce((a, b) => a * b, 1) / layout.elements) * layout.bytes;
}
