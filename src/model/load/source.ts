import { invalidArgument, MinferenceError } from '../../errors.js';

/** What is known of a file before it is read. */
export interface FileInfo {
  readonly size: number;
  /** SHA-256 of its bytes, in hexadecimal digits. */
  readonly sha256?: string;
  /** A word that changes with its bytes. */
  readonly etag?: string;
  /** False where it can be read from its start only. */
  readonly ranges?: boolean;
}

/** A place that holds the files of a model: a folder, a site, memory. */
export interface ModelSource {
  /** For messages. */
  readonly label: string;
  /** Names of all files, where the place can list them. */
  readonly names?: readonly string[];
  /** Path-like name of this version of the model, under which its files are cached. */
  readonly key?: string;
  /** What is known of a file, or undefined when there is none of this name. */
  stat(name: string, signal?: AbortSignal): Promise<FileInfo | undefined>;
  /**
   * Bytes `[begin, end)` of a file, in order. A chunk is valid until the next one is asked for.
   *
   * @throws `MinferenceError` `file` when they cannot be had, or the signal's reason
   */
  stream(name: string, begin: number, end: number, signal?: AbortSignal): AsyncIterable<Uint8Array<ArrayBuffer>>;
  close(): Promise<void>;
}

/** Files in memory: bytes, text, or blobs such as those of a file picker. */
export function memorySource(files: Readonly<Record<string, Uint8Array<ArrayBuffer> | string | Blob>>): ModelSource {
  const blobs = new Map(Object.entries(files).map(([name, data]) => [name, data instanceof Blob ? data : new Blob([data])]));
  return {
    label: 'memory',
    names: [...blobs.keys()],
    stat: async (name) => {
      const blob = blobs.get(name);
      return blob && { size: blob.size, ranges: true };
    },
    async *stream(name, begin, end, signal) {
      const blob = blobs.get(name);
      if (!blob) throw missingFile(this, name);
      checkRange(this, name, begin, end, blob.size);
      const step = 4 * 2 ** 20;
      for (let at = begin; at < end; at += step) {
        signal?.throwIfAborted();
        yield new Uint8Array(await blob.slice(at, Math.min(end, at + step)).arrayBuffer());
      }
    },
    close: async () => {},
  };
}

/** Bytes `[begin, end)` of a file, at once. */
export async function readBytes(
  source: ModelSource,
  name: string,
  begin: number,
  end: number,
  signal?: AbortSignal,
): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = new Uint8Array(Math.max(0, end - begin));
  let done = 0;
  for await (const chunk of source.stream(name, begin, end, signal)) {
    bytes.set(chunk, done);
    done += chunk.length;
  }
  if (done < bytes.length) throw damaged(source, name, `it ends at byte ${begin + done}`);
  return bytes;
}

/** A JSON file, or undefined when there is none of this name. */
export async function readJson(source: ModelSource, name: string, signal?: AbortSignal): Promise<unknown> {
  const text = await readText(source, name, signal);
  if (text === undefined) return undefined;
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw damaged(source, name, `it is not JSON (${(cause as Error).message})`, cause);
  }
}

/** A UTF-8 text file, or undefined when there is none of this name. */
export async function readText(source: ModelSource, name: string, signal?: AbortSignal): Promise<string | undefined> {
  const info = await statOf(source, name, signal);
  return info && new TextDecoder().decode(await readBytes(source, name, 0, info.size, signal));
}

/** As {@link ModelSource.stat}, without asking for files that a listing lacks. */
export async function statOf(source: ModelSource, name: string, signal?: AbortSignal): Promise<FileInfo | undefined> {
  return source.names && !source.names.includes(name) ? undefined : source.stat(name, signal);
}

/** Throws unless `[begin, end)` lies in a file of `size` bytes. */
export function checkRange(source: ModelSource, name: string, begin: number, end: number, size: number): void {
  if (!(Number.isSafeInteger(begin) && Number.isSafeInteger(end) && begin >= 0 && begin <= end && end <= size)) {
    throw invalidArgument(`range of ${source.label}/${name}`, `[${begin}, ${end})`, `a range within its ${size} bytes`);
  }
}

/** The error for a file that is not there. */
export function missingFile(source: ModelSource, name: string): MinferenceError {
  const names = source.names?.slice(0, 20).join(', ');
  return new MinferenceError(
    'file',
    `${source.label} has no file ${name}${names === undefined ? '' : `; it has ${names || 'none'}`}`,
    {
      argument: name,
      allowed: names,
    },
  );
}

/** The error for a file whose bytes are not what they should be. */
export function damaged(source: ModelSource, name: string, problem: string, cause?: unknown): MinferenceError {
  return new MinferenceError('file', `${source.label}/${name}: ${problem}`, { argument: name, cause });
}

/** The error for a field or a tensor of a model that this library cannot run. */
export function unsupported(field: string, value: unknown, allowed: string): MinferenceError {
  const text = typeof value === 'string' ? JSON.stringify(value.slice(0, 200)) : JSON.stringify(value)?.slice(0, 200);
  return new MinferenceError('unsupported', `${field} is ${text ?? String(value)}; allowed: ${allowed}`, {
    argument: field,
    value,
    allowed,
  });
}

/** Whether a value is a JSON object. */
export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
