import { type FileHandle, open } from 'node:fs/promises';
import { MinferenceError } from '../errors.js';

/** A tensor in a safetensors file. */
export interface SafetensorsEntry {
  readonly name: string;
  /** For example `F16`, as the format spells it. */
  readonly dtype: string;
  readonly shape: readonly number[];
  /** First byte in the file. */
  readonly begin: number;
  /** Byte after the last one. */
  readonly end: number;
}

/** Bytes per element of the types of the format that are whole bytes wide. */
const DTYPE_BYTES: Readonly<Record<string, number>> = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E5M2: 1,
  F8_E4M3: 1,
  F8_E8M0: 1,
  I16: 2,
  U16: 2,
  F16: 2,
  BF16: 2,
  I32: 4,
  U32: 4,
  F32: 4,
  I64: 8,
  U64: 8,
  F64: 8,
};

/** Longest header that the format allows. */
const MAX_HEADER = 100_000_000;

/** A local safetensors file, opened for reading. Its whole header was checked against the format and the file's size. */
export class SafetensorsFile {
  readonly path: string;
  readonly tensors: ReadonlyMap<string, SafetensorsEntry>;
  /** Free-form text of the header's `__metadata__`. */
  readonly metadata: Readonly<Record<string, string>>;
  readonly #handle: FileHandle;

  private constructor(path: string, handle: FileHandle, header: ParsedHeader) {
    this.path = path;
    this.tensors = header.tensors;
    this.metadata = header.metadata;
    this.#handle = handle;
  }

  /** @throws {@link MinferenceError} `file` that names the path and the problem. */
  static async open(path: string): Promise<SafetensorsFile> {
    let handle: FileHandle;
    try {
      handle = await open(path, 'r');
    } catch (cause) {
      throw new MinferenceError('file', `${path}: cannot be opened (${reason(cause)})`, { argument: path, cause });
    }
    try {
      const size = (await handle.stat()).size;
      if (size < 8) throw damaged(path, `it has ${size} bytes, too few for a safetensors file`);
      const headerBytes = new DataView((await readAt(handle, path, 0, 8)).buffer).getBigUint64(0, true);
      if (headerBytes > BigInt(MAX_HEADER) || headerBytes > BigInt(size - 8)) {
        throw damaged(
          path,
          `its header claims ${headerBytes} bytes, but the file has ${size}; it is not a safetensors file, or is cut off`,
        );
      }
      const header = await readAt(handle, path, 8, Number(headerBytes));
      return new SafetensorsFile(path, handle, parseHeader(path, header, size - 8 - header.length));
    } catch (error) {
      await handle.close();
      throw error instanceof MinferenceError
        ? error
        : new MinferenceError('file', `${path}: cannot be read (${reason(error)})`, { argument: path, cause: error });
    }
  }

  /** The tensor of this name. */
  get(name: string): SafetensorsEntry {
    const entry = this.tensors.get(name);
    if (!entry) throw damaged(this.path, `it has no tensor "${name}"; it has ${[...this.tensors.keys()].join(', ') || 'none'}`);
    return entry;
  }

  /** Reads `length` bytes from byte `start` of a tensor on. */
  async read(entry: SafetensorsEntry, start = 0, length = entry.end - entry.begin - start): Promise<Uint8Array<ArrayBuffer>> {
    return readAt(this.#handle, this.path, entry.begin + start, length);
  }

  async close(): Promise<void> {
    await this.#handle.close();
  }
}

async function readAt(handle: FileHandle, path: string, position: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = new Uint8Array(length);
  let done = 0;
  while (done < length) {
    const { bytesRead } = await handle.read(bytes, done, Math.min(length - done, 2 ** 30), position + done);
    if (bytesRead === 0) throw damaged(path, `it ends at byte ${position + done}`);
    done += bytesRead;
  }
  return bytes;
}

interface ParsedHeader {
  readonly tensors: Map<string, SafetensorsEntry>;
  readonly metadata: Record<string, string>;
}

function parseHeader(path: string, bytes: Uint8Array<ArrayBuffer>, dataBytes: number): ParsedHeader {
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (cause) {
    throw damaged(path, `its header is not JSON (${reason(cause)})`, cause);
  }
  if (!isRecord(json)) throw damaged(path, 'its header is not a JSON object');
  const tensors = new Map<string, SafetensorsEntry>();
  let metadata: Record<string, string> = {};
  for (const [name, value] of Object.entries(json)) {
    if (name === '__metadata__') {
      if (!isRecord(value) || !Object.values(value).every((x) => typeof x === 'string')) {
        throw damaged(path, '__metadata__ is not an object of strings');
      }
      metadata = value as Record<string, string>;
    } else {
      tensors.set(name, parseEntry(path, name, value, 8 + bytes.length));
    }
  }
  // The format wants the data covered without holes and without overlap.
  let end = 8 + bytes.length;
  for (const entry of [...tensors.values()].sort((a, b) => a.begin - b.begin || a.end - b.end)) {
    if (entry.begin !== end) throw damaged(path, `the data of "${entry.name}" starts at byte ${entry.begin}, expected ${end}`);
    end = entry.end;
  }
  const fileEnd = 8 + bytes.length + dataBytes;
  if (end !== fileEnd) throw damaged(path, `its tensors end at byte ${end}, but the file has ${fileEnd}`);
  return { tensors, metadata };
}

function parseEntry(path: string, name: string, value: unknown, dataStart: number): SafetensorsEntry {
  const bad = (problem: string): MinferenceError => damaged(path, `tensor ${JSON.stringify(name)} ${problem}`);
  if (!isRecord(value)) throw bad('is not described by an object');
  const { dtype, shape, data_offsets: offsets } = value;
  const bytes = typeof dtype === 'string' && Object.hasOwn(DTYPE_BYTES, dtype) ? DTYPE_BYTES[dtype] : undefined;
  if (typeof dtype !== 'string' || bytes === undefined) throw bad(`has the unknown dtype ${JSON.stringify(dtype)}`);
  if (!isCounts(shape)) throw bad(`has no valid shape: ${JSON.stringify(shape)}`);
  if (!isCounts(offsets) || offsets.length !== 2) throw bad(`has no valid data_offsets: ${JSON.stringify(offsets)}`);
  const [begin = 0, end = 0] = offsets;
  const size = shape.reduce((a, b) => a * b, bytes);
  if (end - begin !== size) throw bad(`has ${end - begin} bytes, but [${shape.join(', ')}] ${dtype} takes ${size}`);
  return { name, dtype, shape, begin: dataStart + begin, end: dataStart + end };
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((x) => Number.isSafeInteger(x) && x >= 0);
}

function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function damaged(path: string, problem: string, cause?: unknown): MinferenceError {
  return new MinferenceError('file', `${path}: ${problem}`, { argument: path, cause });
}
