import { invalidArgument, MinferenceError } from '../../errors.js';
import type { CacheStore } from './cache.js';
import { checkRange, damaged, type FileInfo, isRecord, type ModelSource, missingFile } from './source.js';

/** How to make requests. */
export interface HttpOptions {
  /** Default: the platform's. */
  readonly fetch?: typeof fetch;
  /** Headers of every request. */
  readonly headers?: Readonly<Record<string, string>>;
  /** Attempts without progress before a file is given up; default 5. The first pause between them is half a second, then it doubles. */
  readonly attempts?: number;
  /** First pause between attempts, in milliseconds; default 500. */
  readonly pause?: number;
}

/** How to reach a hub. */
export interface HubOptions extends HttpOptions {
  /** Root of the hub; default `https://huggingface.co`. */
  readonly endpoint?: string;
  /** Branch, tag or commit; default `main`. */
  readonly revision?: string;
  /** Access token, for models that want one. */
  readonly token?: string;
  readonly signal?: AbortSignal;
  /** Keeps the hub's description of the model, for times when the hub cannot be reached. */
  readonly cache?: Pick<CacheStore, 'note' | 'setNote'>;
}

/** The files under a URL, read by range requests; a read that breaks off continues where it stopped. */
export function urlSource(url: string | URL, options: HttpOptions = {}): ModelSource {
  const base = new URL(url);
  if (!base.pathname.endsWith('/')) base.pathname += '/';
  return new HttpSource(base.href, (name) => withPath(base, name), options, `${base.host}${base.pathname}`.replace(/\/$/, ''));
}

function withPath(base: URL, name: string): string {
  const url = new URL(base);
  url.pathname += name.split('/').map(encodeURIComponent).join('/');
  return url.href;
}

/** A model of a hub, at the commit that the revision names when this is called. */
export async function hubSource(id: string, options: HubOptions = {}): Promise<ModelSource> {
  if (!/^[\w.-]+\/[\w.-]+$/.test(id)) throw invalidArgument('id', id, 'a name of the form "owner/model"');
  const endpoint = (options.endpoint ?? 'https://huggingface.co').replace(/\/+$/, '');
  const revision = options.revision ?? 'main';
  const http: HttpOptions = {
    ...options,
    headers: { ...options.headers, ...(options.token ? { authorization: `Bearer ${options.token}` } : {}) },
  };
  const listing = `${endpoint}/api/models/${id}/revision/${encodeURIComponent(revision)}?blobs=true`;
  const note = `${new URL(endpoint).host}/${id}/${revision}`;
  let text: string;
  try {
    text = await fetchListing(listing, id, http, options.signal);
    await options.cache?.setNote(note, text);
  } catch (error) {
    const unreachable = error instanceof MinferenceError && error.argument === listing;
    const kept = unreachable ? await options.cache?.note(note) : undefined;
    if (kept === undefined) throw error;
    text = kept;
  }
  let model: unknown;
  try {
    model = JSON.parse(text);
  } catch {
    model = undefined;
  }
  if (!isRecord(model) || typeof model['sha'] !== 'string' || !Array.isArray(model['siblings'])) {
    throw new MinferenceError('file', `${listing} is not the description of a model`, { argument: 'id', value: id });
  }
  const commit = model['sha'];
  const files = new Map<string, FileInfo>();
  for (const file of model['siblings'] as unknown[]) {
    if (!isRecord(file) || typeof file['rfilename'] !== 'string' || typeof file['size'] !== 'number') continue;
    const lfs = file['lfs'];
    const sha256 = isRecord(lfs) && typeof lfs['sha256'] === 'string' ? lfs['sha256'] : undefined;
    files.set(file['rfilename'], { size: file['size'], ranges: true, ...(sha256 ? { sha256 } : {}) });
  }
  const root = new URL(`${endpoint}/${id}/resolve/${commit}/`);
  const key = `${root.host}/${id}/${commit}`;
  return new HttpSource(`${id}@${commit.slice(0, 8)}`, (name) => withPath(root, name), http, key, files);
}

async function fetchListing(url: string, id: string, http: HttpOptions, signal?: AbortSignal): Promise<string> {
  const response = await request(url, {}, http, signal);
  if (response.ok) return response.text();
  await response.body?.cancel();
  const why = response.status === 404 || response.status === 401 ? ': there is no such model, or it wants a token' : '';
  throw new MinferenceError('file', `${url} answers ${response.status}${why}`, { argument: 'id', value: id });
}

class HttpSource implements ModelSource {
  readonly label: string;
  readonly key: string;
  readonly names?: readonly string[];
  readonly #url: (name: string) => string;
  readonly #options: HttpOptions;
  readonly #files: Map<string, FileInfo>;

  constructor(label: string, url: (name: string) => string, options: HttpOptions, key: string, files?: Map<string, FileInfo>) {
    this.label = label;
    this.key = key;
    this.#url = url;
    this.#options = options;
    this.#files = files ?? new Map();
    if (files) this.names = [...files.keys()];
  }

  async stat(name: string, signal?: AbortSignal): Promise<FileInfo | undefined> {
    const known = this.#files.get(name);
    if (known || this.names) return known;
    const info = await this.#probe(name, signal);
    if (info) this.#files.set(name, info);
    return info;
  }

  /** Asks for one byte, since answers to that are never compressed; for the size alone where the total is not told. */
  async #probe(name: string, signal: AbortSignal | undefined): Promise<FileInfo | undefined> {
    const url = this.#url(name);
    const first = await request(url, { headers: { range: 'bytes=0-0' } }, this.#options, signal);
    await first.body?.cancel();
    if (first.status === 404 || first.status === 410) return undefined;
    if (!first.ok && first.status !== 416) throw damaged(this, name, `the server answers ${first.status}`);
    const etag = first.headers.get('etag') ?? undefined;
    const ranges = first.status !== 200;
    const total = Number(/\/(\d+)$/.exec(first.headers.get('content-range') ?? '')?.[1] ?? Number.NaN);
    if (Number.isSafeInteger(total)) return { size: total, etag, ranges };
    const head = ranges ? await request(url, { method: 'HEAD' }, this.#options, signal) : first;
    const length = head.headers.get('content-length');
    if (!head.ok || length === null || head.headers.has('content-encoding')) {
      throw damaged(this, name, 'the server does not tell its size');
    }
    return { size: Number(length), etag, ranges };
  }

  async *stream(name: string, begin: number, end: number, signal?: AbortSignal): AsyncGenerator<Uint8Array<ArrayBuffer>> {
    const info = await this.stat(name, signal);
    if (!info) throw missingFile(this, name);
    checkRange(this, name, begin, end, info.size);
    const attempts = this.#options.attempts ?? 5;
    let at = begin;
    for (let attempt = 1; at < end; attempt++) {
      const before = at;
      try {
        for await (const chunk of this.#body(name, info, at, end, signal)) {
          yield chunk;
          at += chunk.length;
        }
        if (at < end) throw new TypeError(`the answer ended after ${at - before} of ${end - before} bytes`);
      } catch (cause) {
        signal?.throwIfAborted();
        if (cause instanceof MinferenceError) throw cause;
        if (at > before) attempt = 1;
        if (attempt >= attempts || info.ranges === false) {
          throw damaged(this, name, `reading stopped at byte ${at} of ${info.size} (${String(cause)})`, cause);
        }
        await sleep((this.#options.pause ?? 500) * 2 ** (attempt - 1), signal);
      }
    }
  }

  /** What one request for `[begin, end)` gives, never more than that. */
  async *#body(
    name: string,
    info: FileInfo,
    begin: number,
    end: number,
    signal: AbortSignal | undefined,
  ): AsyncGenerator<Uint8Array<ArrayBuffer>> {
    const whole = begin === 0 && end === info.size;
    const headers: Record<string, string> = whole ? {} : { range: `bytes=${begin}-${end - 1}` };
    const response = await request(this.#url(name), { headers }, this.#options, signal);
    const etag = response.headers.get('etag');
    const start = /^bytes (\d+)-/.exec(response.headers.get('content-range') ?? '')?.[1];
    let problem = '';
    if (!response.ok) problem = `the server answers ${response.status}`;
    else if (response.status !== 206 && begin > 0) problem = 'the server does not answer range requests; load it through a cache';
    else if (start !== undefined && Number(start) !== begin) problem = `the server sent bytes from ${start}, not from ${begin}`;
    else if (info.etag !== undefined && etag !== null && etag !== info.etag) problem = 'it changed while it was read';
    if (problem || !response.body) {
      await response.body?.cancel();
      throw damaged(this, name, problem || 'the answer is empty');
    }
    const reader = response.body.getReader();
    let left = end - begin;
    try {
      while (left > 0) {
        const { done, value } = await reader.read();
        if (done) return;
        const chunk = value.length > left ? value.subarray(0, left) : value;
        left -= chunk.length;
        yield chunk as Uint8Array<ArrayBuffer>;
      }
    } finally {
      await reader.cancel().catch(() => {});
    }
  }

  async close(): Promise<void> {}
}

/** Fetches, and tries again while the network or the server fails for the moment. */
async function request(url: string, init: RequestInit, options: HttpOptions, signal?: AbortSignal): Promise<Response> {
  const attempts = options.attempts ?? 5;
  const send = options.fetch ?? fetch;
  for (let attempt = 1; ; attempt++) {
    let problem: unknown;
    try {
      // Compressed answers would have other sizes; browsers ask for that themselves.
      const headers = { 'accept-encoding': 'identity', ...options.headers, ...(init.headers as Record<string, string>) };
      const response = await send(url, { ...init, headers, signal: signal ?? null });
      if ((response.status < 500 && response.status !== 429) || attempt >= attempts) return response;
      await response.body?.cancel();
    } catch (cause) {
      signal?.throwIfAborted();
      problem = cause;
    }
    if (attempt >= attempts) {
      throw new MinferenceError('file', `${url} cannot be reached (${String(problem)})`, { argument: url, cause: problem });
    }
    await sleep((options.pause ?? 500) * 2 ** (attempt - 1), signal);
  }
}

/** Waits, unless the signal fires. */
function sleep(milliseconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = (): void => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', abort);
      resolve();
    }, milliseconds);
    signal?.addEventListener('abort', abort, { once: true });
  });
}
