import { expect, inject, test } from 'vitest';
import { openDevice } from '../../src/device/open.js';
import { makeSamples } from '../../src/eval/run.js';
import { score } from '../../src/eval/tasks.js';
import { browserStore, openModel } from '../../src/model/load/index.js';
import { LanguageModel } from '../../src/model/runtime.js';

const page = (): string | undefined => (globalThis as { location?: { href?: string } }).location?.href;
const inBrowser = inject('runtime') === 'browser' && !inject('missing') && page() !== undefined;

test.skipIf(!inBrowser)(
  `${inBrowser ? '' : 'skipped, as it needs a browser: '}the model that ships comes from a URL through the Cache API and answers`,
  async () => {
    const url = new URL('/assets/model/minference-retrieval-3m.gguf', page());
    const name = `minference test ${inject('seed')}`;
    const device = await openDevice();
    try {
      const progress: number[] = [];
      const cache = await browserStore(name);
      const loaded = await openModel(url, { cache, onProgress: (p) => progress.push(p.loaded / p.total) });
      expect(progress.at(-1)).toBe(1);
      const { tokenizer } = loaded;
      if (!tokenizer) throw new Error('the file has a tokenizer');
      const options = { depths: [0.5], samples: 1, seed: 1, tokenizer, chat: false };
      const [sample] = makeSamples(options, 'passkey', 300);
      if (!sample) throw new Error('no sample');
      const model = await LanguageModel.load(device, loaded, { contextLength: 400 });
      const made: number[] = [];
      for await (const id of model.generate(sample.tokens, { maxTokens: 12 })) made.push(id);
      expect(score(sample.problem, tokenizer.decode(made)), tokenizer.decode(made)).toBe(1);
      model.destroy();
      await loaded.close();

      // Another session finds the file in the browser.
      const again: number[] = [];
      const cached = await openModel(url, { cache: await browserStore(name), onProgress: (p) => again.push(p.loaded / p.total) });
      expect(again).toEqual([1]);
      await cached.close();
    } finally {
      await caches.delete(name);
      device.destroy();
    }
  },
);
