import { sha256 } from '@noble/hashes/sha2.js';
import { checkRange, damaged, type FileInfo, isRecord, type ModelSource, missingFile } from './source.js';

/** Where a cache keeps its files. Keys are path-like. */
export interface CacheStore {
  /** Bytes that are there of a file, from its start on without a gap. */
  size(key: string): Promise<number>;
  /** Stores bytes behind the first `at` ones; they survive a crash once this resolves. */
  append(key: string, at: number, bytes: Uint8Array<ArrayBuffer>): Promise<void>;
  /** Bytes `[begin, end)`, in order. A chunk is valid until the next one is asked for. */
  stream(key: string, begin: number, end: number): AsyncIterable<Uint8Array<ArrayBuffer>>;
  /** The note that was left for a file. */
  note(key: string): Promise<string | undefined>;
  setNote(key: string, text: string): Promise<void>;
  /** Forgets a file and its note. */
  remove(key: string): Promise<void>;
}

/** How far a file is. */
export interface LoadProgress {
  readonly file: string;
  /** Bytes that are there, those of earlier attempts included. */
  readonly loaded: number;
  readonly total: number;
}

/** Options of {@link cachedSource}. */
export interface CacheOptions {
  readonly onProgress?: (progress: LoadProgress) => void;
  /** Makes a SHA-256 state; default: a portable one. */
  readonly sha256?: () => { update(bytes: Uint8Array): unknown; digest(): Uint8Array };
}

/** What the note of a file says. */
interface Note {
  readonly size: number;
  readonly sha256?: string;
  readonly etag?: string;
  readonly complete: boolean;
}

/** Bytes that are collected before they are stored: what a crash can lose. */
const PART = 16 * 2 ** 20;

/**
 * A source whose files are downloaded whole, once, when they are first read. A download that was broken off continues, also in a later
 * session. The size of every file is checked, and its SHA-256 where the source knows it; a file that changed at its origin is
 * fetched anew.
 */
export function cachedSource(source: ModelSource, store: CacheStore, options: CacheOptions = {}): ModelSource {
  const running = new Map<string, Promise<FileInfo>>();
  const root = source.key ?? source.label;

  const download = async (name: string, signal: AbortSignal | undefined): Promise<FileInfo> => {
    const info = await source.stat(name, signal);
    if (!info) throw missingFile(source, name);
    const key = `${root}/${name}`;
    const report = (loaded: number): void => options.onProgress?.({ file: name, loaded, total: info.size });
    const note = parseNote(await store.note(key));
    let have = await store.size(key);
    const same = note?.size === info.size && note.sha256 === info.sha256 && note.etag === info.etag;
    if (same && note.complete && have === info.size) {
      report(have);
      return info;
    }
    if (!same || note.complete || have > info.size || info.ranges === false) {
      await store.remove(key);
      have = 0;
    }
    const state: Note = { size: info.size, sha256: info.sha256, etag: info.etag, complete: false };
    await store.setNote(key, JSON.stringify(state));
    const hash = info.sha256 === undefined ? undefined : (options.sha256 ?? (() => sha256.create()))();
    if (hash) for await (const chunk of store.stream(key, 0, have)) hash.update(chunk);
    report(have);

    const part = new Uint8Array(Math.min(PART, info.size - have));
    let filled = 0;
    const flush = async (): Promise<void> => {
      await store.append(key, have, part.subarray(0, filled)).catch((cause: unknown) => {
        throw damaged(source, name, `the cache cannot keep it, at byte ${have} of ${info.size} (${String(cause)})`, cause);
      });
      have += filled;
      filled = 0;
    };
    try {
      for await (const chunk of source.stream(name, have, info.size, signal)) {
        hash?.update(chunk);
        for (let at = 0; at < chunk.length; ) {
          const count = Math.min(chunk.length - at, part.length - filled);
          part.set(chunk.subarray(at, at + count), filled);
          filled += count;
          at += count;
          if (filled === part.length) await flush();
        }
        report(have + filled);
      }
    } finally {
      if (filled > 0) await flush();
    }
    if (have !== info.size) throw damaged(source, name, `it has ${have} bytes, not ${info.size}`);
    if (hash) {
      const digest = [...hash.digest()].map((byte) => byte.toString(16).padStart(2, '0')).join('');
      if (digest !== info.sha256) {
        await store.remove(key);
        throw damaged(source, name, `its SHA-256 is ${digest}, not ${info.sha256}; it was removed from the cache`);
      }
    }
    await store.setNote(key, JSON.stringify({ ...state, complete: true }));
    return info;
  };

  /** One download of a file at a time. */
  const ensure = (name: string, signal: AbortSignal | undefined): Promise<FileInfo> => {
    let job = running.get(name);
    if (!job) {
      job = download(name, signal);
      running.set(name, job);
      job.catch(() => running.delete(name));
    }
    return job;
  };

  return {
    label: source.label,
    names: source.names,
    key: source.key,
    stat: async (name, signal) => {
      const info = await source.stat(name, signal);
      return info && { ...info, ranges: true };
    },
    async *stream(name, begin, end, signal) {
      const info = await ensure(name, signal);
      checkRange(this, name, begin, end, info.size);
      for await (const chunk of store.stream(`${root}/${name}`, begin, end)) {
        signal?.throwIfAborted();
        yield chunk;
      }
    },
    close: () => source.close(),
  };
}

function parseNote(text: string | undefined): Note | undefined {
  try {
    const note: unknown = JSON.parse(text ?? '');
    return isRecord(note) && typeof note['size'] === 'number' ? (note as unknown as Note) : undefined;
  } catch {
    return undefined;
  }
}

/**
 * A store in the browser's Cache API (Deno has it too): a file is a row of responses, each under a made-up address that ends with
 * the offset of its first byte.
 *
 * @param name name of the cache; `caches.delete(name)` forgets all
 */
export async function browserStore(name = 'minference'): Promise<CacheStore> {
  const cache = await caches.open(name);
  const address = (key: string, what: number | string): string =>
    `https://minference.invalid/${key.split('/').map(encodeURIComponent).join('/')}?${what}`;
  const part = async (key: string, at: number): Promise<Blob | undefined> => (await cache.match(address(key, at)))?.blob();
  /** Ends of the parts of a file that this object has looked at. */
  const known = new Map<string, number[]>();
  const endsOf = async (key: string): Promise<number[]> => {
    let ends = known.get(key);
    if (!ends) {
      ends = [];
      let at = 0;
      for (let blob = await part(key, 0); blob?.size; blob = await part(key, at)) {
        at += blob.size;
        ends.push(at);
      }
      known.set(key, ends);
    }
    return ends;
  };
  return {
    size: async (key) => (await endsOf(key)).at(-1) ?? 0,
    async append(key, at, bytes) {
      const ends = await endsOf(key);
      await cache.put(address(key, at), new Response(bytes));
      ends.push(at + bytes.length);
    },
    async *stream(key, begin, end) {
      let at = 0;
      for (const next of await endsOf(key)) {
        if (next > begin && at < end) {
          const blob = await part(key, at);
          if (blob?.size !== next - at) throw new TypeError(`the cache lost bytes ${at} to ${next} of ${key}`);
          yield new Uint8Array(await blob.slice(Math.max(0, begin - at), Math.min(blob.size, end - at)).arrayBuffer());
        }
        at = next;
      }
    },
    note: async (key) => (await cache.match(address(key, 'note')))?.text(),
    setNote: (key, text) => cache.put(address(key, 'note'), new Response(text)),
    async remove(key) {
      let at = 0;
      for (const next of await endsOf(key)) {
        await cache.delete(address(key, at));
        at = next;
      }
      await cache.delete(address(key, 'note'));
      known.delete(key);
    },
  };
}
