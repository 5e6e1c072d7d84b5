import { fileURLToPath } from 'node:url';
import { type Browser, chromium, type Page } from 'playwright-core';
import { build, type PreviewServer, preview } from 'vite';
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';
import { answerStart } from '../../demo/document.js';

declare module 'vitest' {
  interface ProvidedContext {
    chromium: string;
    chromiumArgs: string[];
  }
}

const configFile = fileURLToPath(new URL('../../vite.demo.config.ts', import.meta.url));
const outDir = fileURLToPath(new URL('../../.build/demo-test', import.meta.url));
const missing = inject('missing');
const executablePath = inject('chromium');

const TEXT = `The harbour was quiet that evening. Two old sailors sat beside the lantern and spoke about the weather.
A child walked past them with a basket of bread. "It will rain before noon," said one of them; the other laughed, and said
that it always rained when the miller forgot his coat. Nobody remembered how the village had looked before the bridge was
built, and nobody asked. The gardener waited near the gate until the last boat had come home.`;

test('what an answer begins with', () => {
  expect(answerStart('What is the pass key?')).toBe('The pass key is');
  expect(answerStart('who were the two sailors')).toBe('The two sailors were');
  expect(answerStart('Why?')).toBe('');
});

describe.skipIf(missing)('the demo page in Chromium', () => {
  let server: PreviewServer;
  let browser: Browser;
  let page: Page;
  const errors: string[] = [];

  /** Opens the page; `prepare` runs in it before its own scripts. */
  const open = async (prepare: () => void): Promise<Page> => {
    const opened = await browser.newPage({ viewport: { width: 390, height: 844 } });
    opened.setDefaultTimeout(240_000);
    opened.on('pageerror', (error) => errors.push(error.message));
    opened.on('console', (message) => message.type() === 'error' && errors.push(message.text()));
    await opened.addInitScript(prepare);
    await opened.goto(server.resolvedUrls?.local[0] ?? '');
    return opened;
  };
  const text = async (selector: string): Promise<string> => ((await page.textContent(selector)) ?? '').trim();

  const overflow = (): Promise<number> => page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);

  beforeAll(async () => {
    await build({ configFile, logLevel: 'warn', build: { outDir, emptyOutDir: true } });
    server = await preview({ configFile, logLevel: 'warn', build: { outDir }, preview: { host: '127.0.0.1', port: 0 } });
    browser = await chromium.launch({ executablePath, args: inject('chromiumArgs') });
    page = await open(() => {
      // Lets the test lose the device.
      const { requestDevice } = GPUAdapter.prototype;
      GPUAdapter.prototype.requestDevice = async function (this: GPUAdapter, ...args) {
        const device = await requestDevice.apply(this, args);
        Object.assign(window, { loseDevice: () => device.destroy() });
        return device;
      };
    });
  });

  afterAll(async () => {
    await browser?.close();
    await server?.close();
  });

  test('loads the model and shows the device', async () => {
    await page.waitForSelector('#run:enabled');
    expect(await text('#adapter')).toContain('swiftshader');
    expect(await text('#tier')).toBe('portable tier');
    expect(await text('#memory')).toMatch(/^\d[\d.]* MiB$/);
    expect(await page.isHidden('#alert')).toBe(true);
    expect(await text('#document-note')).toContain('2,048 tokens, 2 hidden facts');
    expect(await overflow()).toBeLessThanOrEqual(0);
    // The browser keeps the model, whole.
    const kept = await page.evaluate(async () => {
      const cache = await caches.open('minference-demo');
      const requests = (await cache.keys()).filter(({ url }) => url.endsWith('?0'));
      return Promise.all(requests.map(async (request) => (await (await cache.match(request))?.blob())?.size));
    });
    expect(kept).toEqual([3_764_672]);
  });

  test('reads a text sparsely, answers, and draws a head', async () => {
    await page.check('input[name=source][value=own]');
    await page.fill('#text', TEXT);
    await page.fill('#facts', '1');
    await page.dispatchEvent('#facts', 'change');
    await page.click('#preview summary');
    await page.waitForFunction(() => document.querySelectorAll('#preview-text mark').length === 1);
    const [key = ''] = /\d{5}/.exec(await text('#preview-text mark')) ?? [];
    expect(key).toHaveLength(5);
    expect(await text('#preview-text')).toContain('the miller forgot his coat');

    await page.check('input[name=mode][value=sparse]');
    await page.click('#run');
    await page.waitForFunction(() => document.querySelector('#status')?.textContent === 'Done.');
    await page.waitForSelector('#run:enabled');
    expect(await text('#answers')).toContain('What is the pass key?');
    expect(await text('#answers dd')).toContain(key);
    expect(await page.locator('#answers .right').count()).toBe(1);
    const reading = await text('#readings');
    expect(reading).toMatch(/tokens\/s/);
    expect(reading).toMatch(/density \d/);
    expect(reading).toContain('1 of 1 answers right');

    expect(await overflow()).toBeLessThanOrEqual(0);
    expect(Number.parseFloat(await text('#recall'))).toBeGreaterThan(50);
    expect(Number.parseFloat(await text('#recall'))).toBeLessThanOrEqual(100);
    expect(await page.getAttribute('#heat-canvas', 'aria-label')).toContain('Layer 3, head 2');
    const colours = (): Promise<number> =>
      page.$eval('#heat-canvas', (canvas) => {
        const { width, height } = canvas as HTMLCanvasElement;
        const data = (canvas as HTMLCanvasElement).getContext('2d')?.getImageData(0, 0, width, height).data ?? [];
        return new Set(new Uint32Array(Uint8ClampedArray.from(data).buffer)).size;
      });
    expect(await colours()).toBeGreaterThan(8);
    await page.uncheck('#show-attention');
    expect(await colours()).toBeGreaterThan(1);
    await page.uncheck('#show-index');
    expect(await colours()).toBe(1);
    await page.selectOption('#head', '0');
    expect(await page.getAttribute('#heat-canvas', 'aria-label')).toContain('Layer 3, head 0');
    await page.focus('#heat-canvas');
    await page.keyboard.press('ArrowDown');
    expect(await text('#readout')).toMatch(/^Queries 8 to 15, keys 0 to 7: \d/);
  });

  test('answers a typed question from what was read', async () => {
    const [key = ''] = /\d{5}/.exec(await text('#preview-text mark')) ?? [];
    await page.fill('#question', 'What is the pass key ?');
    await page.click('#ask-button');
    await page.waitForFunction(() => document.querySelector('#status')?.textContent?.startsWith('Answer:'));
    expect(await text('#status')).toContain(key);
  });

  test('stops', async () => {
    await page.fill('#facts', '2');
    await page.dispatchEvent('#facts', 'change');
    expect(await text('#document-note')).toContain('2 hidden facts');
    expect(await text('#answers')).toBe('');
    await page.click('#run');
    await page.waitForFunction(() => document.querySelector('#status')?.textContent?.startsWith('Step 1'));
    expect(await page.isDisabled('#length')).toBe(true);
    await page.click('#stop');
    await page.waitForSelector('#run:enabled');
    expect(await text('#status')).toBe('Stopped.');
    expect(await page.isDisabled('#ask-button')).toBe(true);
    expect(await page.isHidden('#alert')).toBe(true);
  });

  test('says that the device was lost', async () => {
    await page.evaluate(() => (window as unknown as { loseDevice: () => void }).loseDevice());
    await page.waitForSelector('#alert:visible');
    expect(await text('#alert-text')).toContain('The GPU device was lost');
    expect(await page.isVisible('#restart')).toBe(true);
    expect(await page.isDisabled('#run')).toBe(true);
  });

  test('says that the browser has no WebGPU', async () => {
    const other = await open(() => Object.defineProperty(navigator, 'gpu', { value: undefined }));
    await other.waitForSelector('#alert:visible');
    expect(await other.textContent('#alert-text')).toContain('no WebGPU');
    expect(await other.isDisabled('#run')).toBe(true);
    await other.close();
  });

  test('without errors', () => {
    expect(errors).toEqual([]);
  });
});
