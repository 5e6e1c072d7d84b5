import { sha256 } from '@noble/hashes/sha2.js';
import { MinferenceError } from '../../src/errors.js';
import { browserStore, type CacheStore, type LoadProgress } from '../../src/model/load/cache.js';
import { openModel } from '../../src/model/load/index.js';
import { LanguageModel } from '../../src/model/runtime.js';
import { relativeError } from '../../src/reference/oracle.js';
import fixture from '../fixtures/transformers-models.json' with { type: 'json' };
import { assert, type SuiteCase } from './context.js';
import { safetensors } from './model_reference.js';

const ENDPOINT = 'https://hub.invalid';
const WEIGHTS = 'model.safetensors';
/** Bytes of the weights after which the first download breaks off. */
const BREAK = 100_000;

/** A hub with one model, without a network. */
class Hub {
  /** Paths and ranges that were asked for. */
  readonly log: string[] = [];
  commit = 'a'.repeat(40);
  online = true;
  breaks = 0;
  readonly #files: ReadonlyMap<string, Uint8Array<ArrayBuffer>>;
  readonly #sums: ReadonlyMap<string, string>;

  constructor(files: ReadonlyMap<string, Uint8Array<ArrayBuffer>>) {
    this.#files = files;
    const hex = (bytes: Uint8Array): string => [...bytes].map((b) => b.toString(16).padStart(2, '0')).join('');
    this.#sums = new Map([...files].map(([name, bytes]) => [name, hex(sha256(bytes))]));
  }

  readonly fetch: typeof fetch = async (input, init) => {
    if (!this.online) throw new TypeError('no network');
    const path = new URL(String(input)).pathname.slice(1);
    const range = /^bytes=(\d+)-(\d+)$/.exec(new Headers(init?.headers).get('range') ?? '');
    this.log.push(range ? `${path} ${range[1]}` : path);
    if (path === 'api/models/o/m/revision/main') {
      const siblings = [...this.#files].map(([rfilename, bytes]) => ({
        rfilename,
        size: bytes.length,
        lfs: { sha256: this.#sums.get(rfilename) },
      }));
      return Response.json({ sha: this.commit, siblings });
    }
    const bytes = this.#files.get(path.slice(`o/m/resolve/${this.commit}/`.length));
    if (!bytes) return new Response('', { status: 404 });
    const begin = Number(range?.[1] ?? 0);
    const body = bytes.slice(begin, Number(range?.[2] ?? bytes.length - 1) + 1);
    const headers = range ? { 'content-range': `bytes ${begin}-${begin + body.length - 1}/${bytes.length}` } : undefined;
    const broken = this.breaks > 0 && body.length > BREAK;
    if (broken) this.breaks--;
    return new Response(broken ? breakingOff(body) : body, { status: range ? 206 : 200, ...(headers ? { headers } : {}) });
  };
}

/** A body that ends in an error. */
function breakingOff(bytes: Uint8Array<ArrayBuffer>): ReadableStream<Uint8Array<ArrayBuffer>> {
  let at = 0;
  return new ReadableStream({
    pull: (controller) => {
      if (at === BREAK) controller.error(new TypeError('the connection was lost'));
      else controller.enqueue(bytes.slice(at, at + BREAK / 4));
      at += BREAK / 4;
    },
  });
}

/** A store for runtimes without the Cache API: Node has files. */
function memoryStore(files: Map<string, Uint8Array<ArrayBuffer>>, notes: Map<string, string>): CacheStore {
  const of = (key: string): Uint8Array<ArrayBuffer> => files.get(key) ?? new Uint8Array();
  return {
    size: async (key) => of(key).length,
    append: async (key, at, bytes) => {
      const joined = new Uint8Array(at + bytes.length);
      joined.set(of(key).subarray(0, at));
      joined.set(bytes, at);
      files.set(key, joined);
    },
    async *stream(key, begin, end) {
      yield of(key).slice(begin, end);
    },
    note: async (key) => notes.get(key),
    setNote: async (key, text) => void notes.set(key, text),
    remove: async (key) => {
      files.delete(key);
      notes.delete(key);
    },
  };
}

async function rejection(promise: Promise<unknown>): Promise<MinferenceError> {
  const error: unknown = await promise.then(
    () => undefined,
    (e: unknown) => e,
  );
  assert(error instanceof MinferenceError, `rejects with a MinferenceError instead of ${String(error)}`);
  return error;
}

export const loadingCases: SuiteCase[] = [
  {
    name: "loading: a hub's model through the runtime's cache, over breaks, sessions and a lost network",
    run: async (ctx) => {
      const { config, shapes, logits } = fixture.models.llama;
      const weights = new Uint8Array(await safetensors(Object.entries(shapes), 'F16').arrayBuffer());
      const files = new Map([
        ['config.json', new TextEncoder().encode(JSON.stringify(config))],
        [WEIGHTS, weights],
      ]);
      const hub = new Hub(files);
      const name = `minference test ${ctx.profile.tier} ${ctx.seed}`;
      const [kept, notes] = [new Map<string, Uint8Array<ArrayBuffer>>(), new Map<string, string>()];
      // A new object each time, as in another session.
      const store = (): Promise<CacheStore> =>
        'caches' in globalThis ? browserStore(name) : Promise.resolve(memoryStore(kept, notes));
      const seen: LoadProgress[] = [];
      const open = async (attempts = 1) =>
        openModel('o/m', {
          endpoint: ENDPOINT,
          fetch: hub.fetch,
          attempts,
          pause: 1,
          cache: await store(),
          tokenizer: false,
          onProgress: (p) => p.file === WEIGHTS && seen.push(p),
        });
      try {
        hub.breaks = 1;
        const broken = await rejection(open());
        assert(broken.code === 'file' && broken.message.includes('the connection was lost'), broken.message);

        // The next session continues where the last one stopped, and the model works.
        hub.log.length = 0;
        seen.length = 0;
        const loaded = await open();
        const requests = hub.log.filter((line) => line.includes(WEIGHTS));
        assert(requests.join() === `o/m/resolve/${hub.commit}/${WEIGHTS} ${BREAK}`, `asks for ${requests}`);
        assert(seen[0]?.loaded === BREAK && seen.at(-1)?.loaded === weights.length, `progress ${JSON.stringify(seen)}`);
        const model = await LanguageModel.load(ctx.device, loaded, { tier: ctx.profile.tier, contextLength: 64, chunkSize: 64 });
        const row = fixture.rows.indexOf(63);
        const result = await model.prefill(fixture.tokens.slice(0, 64));
        model.destroy();
        await loaded.close();
        const error = relativeError(result.logits, logits[row] ?? []);
        assert(error < 2e-2, `relative error ${error} of the logits`);

        // Then nothing is fetched but the listing, and without a network not even that.
        hub.log.length = 0;
        await (await open()).close();
        assert(hub.log.join() === 'api/models/o/m/revision/main', `asks for ${hub.log}`);
        hub.online = false;
        await (await open()).close();
        hub.online = true;

        // Another version whose bytes are not those that the hub promises is refused and forgotten.
        hub.commit = 'b'.repeat(40);
        weights[weights.length - 1] = (weights[weights.length - 1] as number) ^ 1;
        const damaged = await rejection(open());
        assert(damaged.code === 'file' && damaged.message.includes(`${WEIGHTS}: its SHA-256 is`), damaged.message);
        assert((await (await store()).size(`hub.invalid/o/m/${hub.commit}/${WEIGHTS}`)) === 0, 'the damaged file is gone');
      } finally {
        if ('caches' in globalThis) await caches.delete(name);
      }
    },
  },
];
