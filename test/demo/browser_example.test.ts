import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { type Browser, chromium } from 'playwright-core';
import { type PreviewServer, preview } from 'vite';
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';

// The page imports the package's files as they are, so they must have been built.
const built = existsSync('dist/index.js');
const root = fileURLToPath(new URL('../..', import.meta.url));

describe.skipIf(inject('missing') || !built)('examples/browser.html in Chromium', () => {
  let server: PreviewServer;
  let browser: Browser;
  const errors: string[] = [];

  const open = async (query: string) => {
    const page = await browser.newPage({ viewport: { width: 390, height: 844 } });
    page.setDefaultTimeout(240_000);
    page.on('pageerror', (error) => errors.push(error.message));
    await page.goto(`${server.resolvedUrls?.local[0]}examples/browser.html${query}`);
    return page;
  };

  beforeAll(async () => {
    server = await preview({
      configFile: false,
      root,
      logLevel: 'error',
      build: { outDir: '.' },
      preview: { host: '127.0.0.1', port: 0 },
    });
    browser = await chromium.launch({ executablePath: inject('chromium'), args: inject('chromiumArgs') });
  });
  afterAll(async () => {
    await browser?.close();
    await server?.close();
  });

  test('measures every pattern against dense', async () => {
    const page = await open('?seqLen=1500&numHeads=2&headDim=32');
    await page.waitForFunction(() => document.querySelector('#status')?.textContent?.startsWith('Medians'));
    expect(await page.textContent('#gpu')).toMatch(/swiftshader.*, portable tier\.$/i);
    const rows = await page.$$eval('#rows tr', (all) =>
      all.map((row) => [...row.children].map((cell) => cell.textContent ?? '')),
    );
    expect(rows.map(([pattern]) => pattern)).toEqual(['dense', 'a-shape', 'vertical-slash', 'block-sparse']);
    for (const [, ms, faster, density] of rows) {
      expect(Number(ms)).toBeGreaterThan(0);
      expect(faster).toMatch(/^\d+\.\d\dx$/);
      expect(density).toMatch(/^\d+\.\d %$/);
    }
    expect(rows[0]?.slice(2)).toEqual(['1.00x', '100.0 %']);
    expect(Number.parseFloat(rows[1]?.[3] ?? '')).toBeLessThan(99);
    expect(await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth)).toBeLessThanOrEqual(0);
    expect(errors).toEqual([]);
    if (process.env['SCREENSHOT']) await page.screenshot({ path: process.env['SCREENSHOT'] });
    await page.close();
  });

  test('says what is wrong, and stops when told to', async () => {
    const page = await open('?seqLen=100&numHeads=2&headDim=33');
    await page.waitForFunction(() => document.querySelector('#status')?.textContent?.includes('headDim'));
    expect(await page.textContent('#status')).toMatch(/^invalid-argument: .*headDim.*33/);
    await page.selectOption('select[name=seqLen]', '4096');
    await page.click('#start');
    await page.click('#stop');
    await page.waitForFunction(() => document.querySelector('#status')?.textContent === 'Stopped.');
    expect(await page.isEnabled('#start')).toBe(true);
    expect(errors).toEqual([]);
    await page.close();
  });
});
