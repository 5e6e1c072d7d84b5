/**
 * Loading of models in Node (and Deno): paths, and a folder as the cache.
 *
 * @packageDocumentation
 */
import { createHash } from 'node:crypto';
import { type FileHandle, mkdir, open, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { basename, dirname, join, resolve, sep } from 'node:path';
import { invalidArgument, MinferenceError } from '../../errors.js';
import type { LoadedModel } from '../types.js';
import type { CacheStore } from './cache.js';
import { loadModel, type OpenOptions, openModel } from './index.js';
import { checkRange, damaged, type ModelSource, missingFile } from './source.js';

/** Bytes that are read at a time. */
const STEP = 4 * 2 ** 20;

/** The files of a folder, or one file. */
export async function pathSource(path: string): Promise<ModelSource> {
  const info = await stat(path).catch((cause: Error) => {
    throw new MinferenceError('file', `${path}: cannot be opened (${cause.message})`, { argument: 'path', value: path, cause });
  });
  const root = info.isDirectory() ? path : dirname(path);
  const names = info.isDirectory() ? await readdir(path) : [basename(path)];
  const handles = new Map<string, Promise<FileHandle>>();
  const handleOf = (name: string): Promise<FileHandle> => {
    let handle = handles.get(name);
    if (!handle) {
      handle = open(join(root, name), 'r');
      handles.set(name, handle);
    }
    return handle;
  };
  const source: ModelSource = {
    label: root,
    names,
    stat: async (name) => (names.includes(name) ? { size: (await stat(join(root, name))).size, ranges: true } : undefined),
    async *stream(name, begin, end, signal) {
      if (!names.includes(name)) throw missingFile(source, name);
      const handle = await handleOf(name);
      checkRange(source, name, begin, end, (await handle.stat()).size);
      for await (const chunk of readSteps(handle, begin, end)) {
        signal?.throwIfAborted();
        if (chunk.length === 0) throw damaged(source, name, 'it became shorter while it was read');
        yield chunk;
      }
    },
    async close() {
      for (const handle of handles.values()) await (await handle).close();
      handles.clear();
    },
  };
  return source;
}

/** Bytes `[begin, end)` in steps that share memory; an empty one when the file ends before. */
async function* readSteps(handle: FileHandle, begin: number, end: number): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const buffer = new Uint8Array(Math.min(STEP, end - begin));
  for (let at = begin; at < end; ) {
    const { bytesRead } = await handle.read(buffer, 0, Math.min(buffer.length, end - at), at);
    yield buffer.subarray(0, bytesRead);
    if (bytesRead === 0) return;
    at += bytesRead;
  }
}

/** The folder in which {@link openNodeModel} keeps downloads: `$MINFERENCE_CACHE`, or `minference` in the user's cache folder. */
export function defaultCacheFolder(): string {
  return process.env['MINFERENCE_CACHE'] || join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'minference');
}

/** A cache in a folder: files as they are, and next to each a note that says whether it is complete. */
export function folderStore(folder: string = defaultCacheFolder()): CacheStore {
  const root = resolve(folder);
  const pathOf = (key: string): string => {
    // Names come from listings: keep them inside the folder, and free of what some file systems refuse.
    const path = resolve(root, key.replace(/[^\w./@+-]/g, '_'));
    if (!path.startsWith(root + sep)) throw invalidArgument('name', key, 'a path inside the cache folder');
    return path;
  };
  const noteOf = (key: string): string => `${pathOf(key)}.note.json`;
  return {
    size: async (key) => (await stat(pathOf(key)).catch(() => undefined))?.size ?? 0,
    async append(key, at, bytes) {
      await mkdir(dirname(pathOf(key)), { recursive: true });
      const handle = await open(pathOf(key), at === 0 ? 'w' : 'r+');
      try {
        for (let done = 0; done < bytes.length; ) {
          done += (await handle.write(bytes, done, bytes.length - done, at + done)).bytesWritten;
        }
        await handle.datasync();
      } finally {
        await handle.close();
      }
    },
    async *stream(key, begin, end) {
      if (begin === end) return;
      const handle = await open(pathOf(key), 'r');
      try {
        for await (const chunk of readSteps(handle, begin, end)) {
          if (chunk.length === 0) throw new MinferenceError('file', `${pathOf(key)} is cut off`, { argument: key });
          yield chunk;
        }
      } finally {
        await handle.close();
      }
    },
    note: (key) => readFile(noteOf(key), 'utf8').catch(() => undefined),
    async setNote(key, text) {
      await mkdir(dirname(pathOf(key)), { recursive: true });
      await writeFile(noteOf(key), text);
    },
    async remove(key) {
      await rm(pathOf(key), { force: true });
      await rm(noteOf(key), { force: true });
    },
  };
}

/**
 * As {@link openModel}, and also from a path: of a model folder, or of a GGUF file. Downloads are kept in {@link defaultCacheFolder}
 * unless `cache` is another store.
 */
export async function openNodeModel(model: string | URL, options: OpenOptions = {}): Promise<LoadedModel> {
  const path = String(model);
  if (/^https?:/i.test(path)) return openDownloaded(path, options);
  if (await stat(path).catch(() => undefined)) {
    const source = await pathSource(path);
    return loadModel(source, options);
  }
  // Only what looks like a hub id can be one: the error for anything else is about the path.
  if (/^[\w-][\w.-]*\/[\w.-]+(@[\w.-]+)?(\/.+\.gguf)?$/i.test(path)) return openDownloaded(path, options);
  const source = await pathSource(path);
  return loadModel(source, options);
}

function openDownloaded(model: string, options: OpenOptions): Promise<LoadedModel> {
  return openModel(model, { cache: folderStore(), sha256: () => createHash('sha256'), ...options });
}
