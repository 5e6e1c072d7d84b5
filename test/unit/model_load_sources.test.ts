import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, inject, test, vi } from 'vitest';
import { browserStore, type CacheStore, cachedSource, type LoadProgress } from '../../src/model/load/cache.js';
import { hubSource, urlSource } from '../../src/model/load/http.js';
import { openModel } from '../../src/model/load/index.js';
import { folderStore, openNodeModel, pathSource } from '../../src/model/load/node.js';
import { memorySource, readBytes, readText } from '../../src/model/load/source.js';
import { Random } from '../../src/reference/random.js';
import { makeGguf, plain, rejection, type Tensor } from './model_load_make.js';

const random = new Random(inject('seed'));
const data = Uint8Array.from({ length: 300_000 }, () => random.integer(0, 255));
const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

/** A web server with files, and the troubles that a test asks for. */
class Site {
  readonly files = new Map<string, Uint8Array>();
  /** Requests that were made: method, path and range. */
  readonly log: string[] = [];
  etag = '"1"';
  ranges = true;
  /** Answers break off after so many bytes, this many times. */
  breakAfter = 0;
  breaks = 0;
  /** Statuses of the next answers. */
  readonly statuses: number[] = [];
  readonly #server = createServer((request, response) => this.#answer(request, response));

  async start(): Promise<void> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve));
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    const path = decodeURIComponent((request.url ?? '').slice(1));
    const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '');
    this.log.push(`${request.method} ${path}${range ? ` ${range[1]}-${range[2]}` : ''}`);
    const status = this.statuses.shift();
    const file = this.files.get(path);
    if (status !== undefined || !file) {
      response.writeHead(status ?? 404).end();
      return;
    }
    const ranged = range && this.ranges;
    const begin = ranged ? Number(range[1]) : 0;
    const end = ranged ? Math.min(file.length, Number(range[2]) + 1) : file.length;
    if (ranged && begin >= file.length) {
      response.writeHead(416, { 'content-range': `bytes */${file.length}` }).end();
      return;
    }
    response.writeHead(ranged ? 206 : 200, {
      'content-length': end - begin,
      etag: this.etag,
      ...(ranged ? { 'content-range': `bytes ${begin}-${end - 1}/${file.length}` } : {}),
    });
    if (request.method === 'HEAD') response.end();
    else if (this.breaks > 0 && end - begin > this.breakAfter) {
      this.breaks--;
      response.write(file.subarray(begin, begin + this.breakAfter), () => setTimeout(() => response.destroy(), 20));
    } else response.end(file.subarray(begin, end));
  }
}

let site: Site;
let folder: string;
beforeEach(async () => {
  site = new Site();
  site.files.set('m/big file.bin', data);
  await site.start();
  folder = mkdtempSync(join(tmpdir(), 'minference-test-'));
});
afterEach(async () => {
  await site.stop();
  rmSync(folder, { recursive: true });
  vi.unstubAllGlobals();
});

const quick = { pause: 1 };
const open = () => urlSource(`${site.url}/m`, quick);

describe('a URL', () => {
  test('is read by ranges', async () => {
    const source = open();
    expect(await source.stat('big file.bin')).toEqual({ size: data.length, etag: '"1"', ranges: true });
    expect(await source.stat('none')).toBeUndefined();
    expect(await readText(source, 'none')).toBeUndefined();
    expect(Buffer.compare(await readBytes(source, 'big file.bin', 1000, 200_001), data.subarray(1000, 200_001))).toBe(0);
    expect(site.log.at(-1)).toBe('GET m/big file.bin 1000-200000');
    expect(await readBytes(source, 'big file.bin', 7, 7)).toHaveLength(0);
    expect((await rejection(readBytes(source, 'big file.bin', 0, data.length + 1))).code).toBe('invalid-argument');
    expect((await rejection(readBytes(source, 'none', 0, 1))).message).toContain('has no file none');
  });

  test('an empty file', async () => {
    site.files.set('m/empty', new Uint8Array(0));
    expect(await readText(open(), 'empty')).toBe('');
  });

  test('continues after answers that break off', async () => {
    const source = open();
    await source.stat('big file.bin');
    site.breakAfter = 100_000;
    site.breaks = 2;
    expect(Buffer.compare(await readBytes(source, 'big file.bin', 5, data.length), data.subarray(5))).toBe(0);
    expect(site.log.filter((line) => line.startsWith('GET m/big file.bin')).length).toBe(4);
    expect(site.log.at(-1)).toMatch(/ 200005-299999$/);
  });

  test('survives moments of trouble, and gives up when they last', async () => {
    site.statuses.push(503, 429);
    expect(await open().stat('big file.bin')).toMatchObject({ size: data.length });
    site.statuses.push(500, 500, 500);
    const error = await rejection(urlSource(`${site.url}/m`, { pause: 1, attempts: 3 }).stat('big file.bin'));
    expect(error.message).toContain('the server answers 500');
    site.statuses.push(403);
    expect((await rejection(open().stat('big file.bin'))).message).toContain('answers 403');
    const nowhere = urlSource('http://127.0.0.1:1/', { pause: 1, attempts: 2 });
    expect((await rejection(nowhere.stat('x'))).message).toContain('cannot be reached');
  });

  test('that changes while it is read is refused', async () => {
    const source = open();
    await source.stat('big file.bin');
    site.etag = '"2"';
    expect((await rejection(readBytes(source, 'big file.bin', 0, 9))).message).toContain('changed while it was read');
  });

  test('stops at a signal, with its reason', async () => {
    const source = open();
    const control = new AbortController();
    const stream = source.stream('big file.bin', 0, data.length, control.signal)[Symbol.asyncIterator]();
    await stream.next();
    control.abort(new RangeError('no more'));
    const drain = async (): Promise<void> => {
      while (!(await stream.next()).done);
    };
    await expect(drain()).rejects.toThrow('no more');
  });

  test('of a server without ranges is read whole only', async () => {
    site.ranges = false;
    const source = open();
    expect(await source.stat('big file.bin')).toMatchObject({ size: data.length, ranges: false });
    expect(await readBytes(source, 'big file.bin', 0, data.length)).toHaveLength(data.length);
    expect((await rejection(readBytes(source, 'big file.bin', 5, 9))).message).toContain('does not answer range requests');
  });
});

describe('a hub', () => {
  const commit = 'c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00';
  const publish = (sum = sha256(data)): void => {
    site.files.set(`o/m/resolve/${commit}/w/big.bin`, data);
    site.files.set(`o/m/resolve/${commit}/config.json`, new TextEncoder().encode('{"a":1}'));
    const siblings = [
      { rfilename: 'config.json', size: 7 },
      { rfilename: 'w/big.bin', size: data.length, lfs: { sha256: sum, size: data.length } },
    ];
    site.files.set(
      'api/models/o/m/revision/main?blobs=true',
      new TextEncoder().encode(JSON.stringify({ sha: commit, siblings })),
    );
  };

  test('tells names, sizes and sums, and pins the commit', async () => {
    publish();
    const source = await hubSource('o/m', { ...quick, endpoint: `${site.url}/` });
    expect(source.names).toEqual(['config.json', 'w/big.bin']);
    expect(await source.stat('w/big.bin')).toEqual({ size: data.length, ranges: true, sha256: sha256(data) });
    expect(await readText(source, 'config.json')).toBe('{"a":1}');
    expect(site.log).toEqual(['GET api/models/o/m/revision/main?blobs=true', `GET o/m/resolve/${commit}/config.json`]);
  });

  test('sends the token', async () => {
    publish();
    const seen: (string | null)[] = [];
    const spy: typeof fetch = (url, init) => {
      seen.push(new Headers(init?.headers).get('authorization'));
      return fetch(url, init);
    };
    await readText(await hubSource('o/m', { ...quick, endpoint: site.url, token: 't', fetch: spy }), 'config.json');
    expect(seen).toEqual(['Bearer t', 'Bearer t']);
  });

  test('without the model, or with a bad name, is refused', async () => {
    const missing = await rejection(hubSource('o/none', { ...quick, endpoint: site.url }));
    expect([missing.code, missing.argument, missing.value]).toEqual(['file', 'id', 'o/none']);
    expect((await rejection(hubSource('justaname', quick))).argument).toBe('id');
    expect((await rejection(openModel('not a model', quick))).argument).toBe('model');
  });

  test('that cannot be reached any more still gives what the cache has', async () => {
    publish();
    const cache = folderStore(folder);
    const options = { pause: 1, attempts: 2, endpoint: site.url, cache };
    const load = async () => readBytes(cachedSource(await hubSource('o/m', options), cache), 'w/big.bin', 0, data.length);
    await load();
    await site.stop();
    expect(Buffer.compare(await load(), data)).toBe(0);
    const error = await rejection(hubSource('o/m', { ...options, cache: undefined }));
    expect(error.message).toContain('cannot be reached');
    await site.start();
  });

  test('files with a wrong sum are refused and forgotten', async () => {
    publish('0'.repeat(64));
    const store = folderStore(folder);
    const source = cachedSource(await hubSource('o/m', { ...quick, endpoint: site.url }), store);
    const error = await rejection(readBytes(source, 'w/big.bin', 0, 9));
    expect(error.message).toContain(`its SHA-256 is ${sha256(data)}, not 000`);
    expect(await store.size(`${source.key}/w/big.bin`)).toBe(0);
  });

  for (const [what, options] of [
    ['the portable SHA-256', {}],
    ["Node's SHA-256", { sha256: () => createHash('sha256') }],
  ] as const) {
    test(`files with the right sum are kept (${what}), also over a break`, async () => {
      publish();
      const key = `${new URL(site.url).host}/o/m/${commit}/w/big.bin`;
      const load = async (): Promise<Uint8Array> => {
        const source = cachedSource(
          await hubSource('o/m', { ...quick, attempts: 1, endpoint: site.url }),
          folderStore(folder),
          options,
        );
        return readBytes(source, 'w/big.bin', 0, data.length);
      };
      site.breakAfter = 120_000;
      site.breaks = 1;
      expect((await rejection(load())).message).toContain('reading stopped at byte');
      const have = await folderStore(folder).size(key);
      expect(have).toBeGreaterThan(0);
      expect(Buffer.compare(await load(), data)).toBe(0);
      expect(site.log.at(-1)).toBe(`GET o/m/resolve/${commit}/w/big.bin ${have}-${data.length - 1}`);
      // Third time: nothing but the listing.
      const before = site.log.length;
      expect(Buffer.compare(await load(), data)).toBe(0);
      expect(site.log.slice(before)).toEqual(['GET api/models/o/m/revision/main?blobs=true']);
    });
  }
});

/** What of the Cache API the store uses, in memory. */
function fakeCaches(): unknown {
  const stored = new Map<string, Response>();
  const cache = {
    match: async (url: string) => stored.get(url)?.clone(),
    put: async (url: string, response: Response) => void stored.set(url, response),
    delete: async (url: string) => stored.delete(url),
  };
  return { open: async () => cache };
}

const stores: readonly (readonly [string, () => Promise<CacheStore>])[] = [
  ['a folder', async () => folderStore(folder)],
  [
    'the Cache API',
    async () => {
      vi.stubGlobal('caches', fakeCaches());
      return browserStore();
    },
  ],
];

for (const [what, makeStore] of stores) {
  describe(`a cache in ${what}`, () => {
    test('keeps what is appended', async () => {
      const store = await makeStore();
      expect(await store.size('a/b')).toBe(0);
      expect(await store.note('a/b')).toBeUndefined();
      await store.append('a/b', 0, data.slice(0, 1000));
      await store.append('a/b', 1000, data.slice(1000, 1001));
      await store.append('a/b', 1001, data.slice(1001, 5000));
      await store.setNote('a/b', 'note');
      expect([await store.size('a/b'), await store.note('a/b'), await store.size('a/c')]).toEqual([5000, 'note', 0]);
      for (const [begin, end] of [
        [0, 5000],
        [999, 1002],
        [1000, 1001],
        [4999, 5000],
        [70, 70],
      ] as const) {
        const chunks: Uint8Array[] = [];
        for await (const chunk of store.stream('a/b', begin, end)) chunks.push(chunk.slice());
        expect(Buffer.compare(Buffer.concat(chunks), data.subarray(begin, end))).toBe(0);
      }
      await store.remove('a/b');
      expect([await store.size('a/b'), await store.note('a/b')]).toEqual([0, undefined]);
    });

    test('downloads once, in one go for readers at the same time, and tells its progress', async () => {
      const seen: LoadProgress[] = [];
      const source = cachedSource(open(), await makeStore(), { onProgress: (p) => seen.push(p) });
      const parts = await Promise.all(
        [
          [0, 10],
          [50, 60_000],
          [299_999, 300_000],
        ].map(([a = 0, b = 0]) => readBytes(source, 'big file.bin', a, b)),
      );
      expect(Buffer.compare(parts[1] ?? new Uint8Array(), data.subarray(50, 60_000))).toBe(0);
      expect(site.log.filter((line) => line === 'GET m/big file.bin')).toHaveLength(1);
      expect(seen[0]).toEqual({ file: 'big file.bin', loaded: 0, total: data.length });
      expect(seen.at(-1)).toEqual({ file: 'big file.bin', loaded: data.length, total: data.length });
      expect(seen.every((p, i) => i === 0 || p.loaded >= (seen[i - 1]?.loaded ?? 0))).toBe(true);
    });

    test('continues after an abort', async () => {
      const store = await makeStore();
      const control = new AbortController();
      const stop = (p: LoadProgress): void => {
        if (p.loaded > 0) control.abort(new RangeError('enough'));
      };
      const first = cachedSource(open(), store, { onProgress: stop });
      await expect(readBytes(first, 'big file.bin', 0, 9, control.signal)).rejects.toThrow('enough');
      const have = await store.size(`${first.key}/big file.bin`);
      expect(have).toBeGreaterThan(0);
      const again = cachedSource(open(), store);
      expect(Buffer.compare(await readBytes(again, 'big file.bin', 0, data.length), data)).toBe(0);
      if (have < data.length) expect(site.log.at(-1)).toBe(`GET m/big file.bin ${have}-${data.length - 1}`);
    });

    test('fetches anew what changed at its origin', async () => {
      const store = await makeStore();
      await readBytes(cachedSource(open(), store), 'big file.bin', 0, 9);
      const changed = data.map((x) => x ^ 255);
      site.files.set('m/big file.bin', changed);
      site.etag = '"2"';
      expect(Buffer.compare(await readBytes(cachedSource(open(), store), 'big file.bin', 0, data.length), changed)).toBe(0);
    });

    test('makes ranges of a server that has none', async () => {
      site.ranges = false;
      const source = cachedSource(open(), await makeStore());
      expect(Buffer.compare(await readBytes(source, 'big file.bin', 1234, 99_999), data.subarray(1234, 99_999))).toBe(0);
    });
  });
}

test('a cache that is full is named, with the file and how far it came', async () => {
  const full = new Error('QuotaExceededError');
  const store: CacheStore = { ...folderStore(folder), append: () => Promise.reject(full) };
  const error = await rejection(readBytes(cachedSource(open(), store), 'big file.bin', 0, 9));
  expect([error.code, error.argument, error.cause]).toEqual(['file', 'big file.bin', full]);
  expect(error.message).toContain(`the cache cannot keep it, at byte 0 of ${data.length} (Error: QuotaExceededError)`);
});

describe('a cache folder', () => {
  test('notices files that were cut', async () => {
    const store = folderStore(folder);
    const key = `${open().key}/big file.bin`;
    await readBytes(cachedSource(open(), store), 'big file.bin', 0, 9);
    truncateSync(join(folder, key.replace(/[^\w./@+-]/g, '_')), 1000);
    expect(Buffer.compare(await readBytes(cachedSource(open(), store), 'big file.bin', 0, data.length), data)).toBe(0);
  });

  test('lets no name out of the folder', async () => {
    const error = await rejection(Promise.resolve().then(() => folderStore(folder).size('../../etc/passwd')));
    expect([error.argument, error.value]).toEqual(['name', '../../etc/passwd']);
  });
});

test('blobs, paths and memory read the same', async () => {
  writeFileSync(join(folder, 'x.bin'), data);
  const sources = [
    memorySource({ 'x.bin': data }),
    memorySource({ 'x.bin': new Blob([data.subarray(0, 5), data.subarray(5)]) }),
    await pathSource(folder),
    await pathSource(join(folder, 'x.bin')),
  ];
  for (const source of sources) {
    expect(source.names).toEqual(['x.bin']);
    expect(await source.stat('x.bin')).toEqual({ size: data.length, ranges: true });
    expect(Buffer.compare(await readBytes(source, 'x.bin', 3, 280_000), data.subarray(3, 280_000))).toBe(0);
    expect((await rejection(readBytes(source, 'y.bin', 0, 1))).message).toContain('it has x.bin');
    expect((await rejection(readBytes(source, 'x.bin', 9, 3))).code).toBe('invalid-argument');
    await expect(readBytes(source, 'x.bin', 0, 9, AbortSignal.abort(new Error('stop')))).rejects.toThrow('stop');
    await source.close();
  }
  expect((await rejection(pathSource(join(folder, 'nothing')))).code).toBe('file');
});

test('a model opens by path, by URL, by hub id and through the cache', async () => {
  const matrix = (rows: number): Tensor => ({ shape: [rows, 2], type: 0, bytes: plain('F32', random.normals(2 * rows)) });
  const norm: Tensor = { shape: [2], type: 0, bytes: plain('F32', [1, 1]) };
  const layer = ['attn_q', 'attn_k', 'attn_v', 'attn_output', 'ffn_gate', 'ffn_up', 'ffn_down'].map((name) => [
    `blk.0.${name}.weight`,
    matrix(2),
  ]);
  const fields = { block_count: 1, context_length: 9, embedding_length: 2, feed_forward_length: 2, 'attention.head_count': 1 };
  const file = makeGguf(
    {
      'general.architecture': 'qwen2',
      ...Object.fromEntries(Object.entries(fields).map(([name, value]) => [`qwen2.${name}`, value])),
      'qwen2.attention.layer_norm_rms_epsilon': 1e-6,
    },
    {
      'token_embd.weight': matrix(5),
      'output_norm.weight': norm,
      'blk.0.attn_norm.weight': norm,
      'blk.0.ffn_norm.weight': norm,
      ...(Object.fromEntries(layer) as Record<string, Tensor>),
    },
  );
  const sha = 'a'.repeat(40);
  site.files.set('x/tiny.gguf', file);
  site.files.set(`o/m/resolve/${sha}/tiny.gguf`, file);
  const siblings = [{ rfilename: 'tiny.gguf', size: file.length, lfs: { sha256: sha256(file) } }];
  site.files.set('api/models/o/m/revision/v1?blobs=true', new TextEncoder().encode(JSON.stringify({ sha, siblings })));
  writeFileSync(join(folder, 'tiny.gguf'), file);
  const options = { ...quick, endpoint: site.url };
  const cache = folderStore(join(folder, 'cache'));
  const models = [
    await openNodeModel(join(folder, 'tiny.gguf')),
    await openNodeModel(folder),
    await openModel(`${site.url}/x/tiny.gguf`, options),
    await openModel('o/m@v1/tiny.gguf', options),
    await openNodeModel('o/m@v1', { ...options, cache }),
    await openNodeModel(`${site.url}/x/tiny.gguf`, { ...options, cache }),
  ];
  for (const { config, weights, tokenizer, close } of models) {
    // With these few fields, `qkvBias` follows the tensors.
    expect(config).toMatchObject({ architecture: 'qwen2', layers: 1, vocabSize: 5, qkvBias: false, tieEmbeddings: true });
    expect(tokenizer).toBeUndefined();
    const embed: Uint8Array[] = [];
    for await (const chunk of weights.get('embed.weight')?.read() ?? []) embed.push(chunk.slice());
    expect(Buffer.concat(embed).length).toBe(40);
    await close();
  }
  const cached = join(folder, 'cache', new URL(site.url).host.replace(':', '_'), 'o/m', sha, 'tiny.gguf');
  expect(Buffer.compare(readFileSync(cached), file)).toBe(0);
  expect((await rejection(openNodeModel('./no/such/file.gguf'))).message).toContain('./no/such/file.gguf: cannot be opened');
});
