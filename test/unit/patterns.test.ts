import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { crc32, inflateSync } from 'node:zlib';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { heatmapPixels, heatmapSvg } from '../../src/cli/heatmap.js';
import { heatmapPng } from '../../src/cli/png.js';
import { MinferenceError } from '../../src/errors.js';
import { allocateDensity, type DensityChoice } from '../../src/patterns/allocate.js';
import {
  adjustPatterns,
  headConfigOf,
  type LayerPatternOptions,
  type PatternConfig,
  parsePatternConfig,
  patternsForLayer,
  serializePatternConfig,
  summarizePatternConfig,
} from '../../src/patterns/config.js';
import { configForModel, findModel, MODELS, type ModelEntry } from '../../src/patterns/models.js';
import { allocationSpace } from '../../src/patterns/search.js';
import { resolvePattern } from '../../src/scheduler/validate.js';
import { run as cli } from './run_cli.js';

const path = (relative: string): string => fileURLToPath(new URL(relative, import.meta.url));
const published = path('../../../shared/data/minference-configs/');
const layer9 = path('../../assets/configs/smollm2-135m-layer9.json');
const wholeModel = path('../../assets/configs/smollm2-135m.json');
const fiveLayers = path('../../assets/configs/smollm2-135m-layers3-9-15-21-27.json');

/** Head patterns as a file has them. */
const VS = ['vertical_and_slash', 1000, 6096, 0.9];
const STREAM = ['stream_llm', 100, 800, 0.5];
const BLOCKS = ['block_sparse', 60, 1, 0.25];
const SMALL = [
  { '0': VS, '1': STREAM, '2': BLOCKS },
  { '0': ['vertical_and_slash', 10, 20, 1], '1': ['block_sparse', 0, 0, 0], '2': STREAM },
];

function thrown(run: () => unknown): MinferenceError {
  try {
    run();
  } catch (error) {
    if (error instanceof MinferenceError) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

/** Models whose published files the tests may find. */
const SAMPLES = [
  'Llama-3.1-8B-Instruct',
  'Llama-3-8B-Instruct-262k',
  'Phi-3-mini-128k-instruct',
  'Qwen2-7B-Instruct',
  'Qwen2.5-7B-Instruct-1M',
].map((name) => findModel(name) as ModelEntry);

describe('pattern files', () => {
  for (const { file, layers, heads, names } of SAMPLES) {
    test.skipIf(!existsSync(published + file))(`${file} is read and written unchanged`, async () => {
      const text = readFileSync(published + file, 'utf8');
      const config = parsePatternConfig(text, file);
      expect(JSON.parse(serializePatternConfig(config))).toEqual(JSON.parse(text));
      const summary = summarizePatternConfig(config);
      expect([summary.layers, summary.headsPerLayer, summary.heads]).toEqual([layers, heads, layers * heads]);
      expect(summary.mix.reduce((sum, m) => sum + m.heads, 0)).toBe(layers * heads);
      const loaded = await configForModel(
        names[0] as string,
        async (name) => JSON.parse(readFileSync(published + name, 'utf8')) as unknown,
      );
      expect(loaded.config.layers).toEqual(config.layers);
      for (let layer = 0; layer < layers; layer++) {
        expect(patternsForLayer(config, layer, loaded.options)).toHaveLength(heads);
      }
    });
  }

  test.each([
    [layer9, 1],
    [wholeModel, 30],
    [fiveLayers, 5],
  ])('%s is read and written unchanged', (file, layers) => {
    const text = readFileSync(file, 'utf8');
    const config = parsePatternConfig(text, file);
    expect(serializePatternConfig(config)).toBe(text);
    expect(config.layers.map((l) => l.length)).toEqual(new Array(layers).fill(9));
  });

  test.each([wholeModel, fiveLayers])('%s keeps 97 percent of the attention, by its scores', (file) => {
    expect(summarizePatternConfig(parsePatternConfig(readFileSync(file, 'utf8'))).meanScore).toBeGreaterThan(0.97);
  });

  test.each([
    ['{}', 'list of layers'],
    ['[]', 'list of layers'],
    ['[1', 'not JSON'],
    [[[]], 'layer 0'],
    [[{}], 'layer 0'],
    [[{ '0': VS }, { '1': VS }], 'layer 1'],
    [[{ '0': VS, x: VS }], 'layer 0'],
    [[{ '0': VS, '01': VS }], 'layer 0'],
    [[{ '0': VS }, { '0': VS, '1': ['dense', 1, 2, 3] }], 'layer 1, head 1: pattern'],
    [[{ '0': ['stream_llm', 1, 2] }], 'layer 0, head 0'],
    [[{ '0': ['stream_llm', 1.5, 2, 3] }], 'layer 0, head 0: first size'],
    [[{ '0': ['stream_llm', 1, -2, 3] }], 'layer 0, head 0: second size'],
    [[{ '0': ['stream_llm', 1, 0, 3] }], 'layer 0, head 0: second size'],
    [[{ '0': ['vertical_and_slash', 1, 2, null] }], 'layer 0, head 0: score'],
  ])('%j is refused with its place', (json, place) => {
    const error = thrown(() => parsePatternConfig(json, 'my.json'));
    expect(error.code).toBe('file');
    expect(error.message).toContain('my.json');
    expect(error.message).toContain(place);
  });

  test("options act as MInference's", () => {
    const config = parsePatternConfig(SMALL);
    expect(patternsForLayer(config, 0)).toEqual([
      { kind: 'vertical_slash', verticalSize: 1000, slashSize: 6096 },
      { kind: 'a_shape', initSize: 100, localSize: 800 },
      { kind: 'block_sparse', topK: 60 },
    ]);
    expect(patternsForLayer(config, 1).slice(0, 2)).toEqual([
      { kind: 'vertical_slash', verticalSize: 30, slashSize: 50 },
      { kind: 'block_sparse', topK: 100 },
    ]);
    expect(patternsForLayer(config, 0, { budgetRatio: 0.25 })).toEqual([
      { kind: 'vertical_slash', verticalSize: 250, slashSize: 1524 },
      { kind: 'a_shape', initSize: 25, localSize: 200 },
      { kind: 'block_sparse', topK: 15 },
    ]);
    expect(patternsForLayer(config, 0, { startingLayer: 1 })).toEqual(new Array(3).fill({ kind: 'dense' }));
    expect(patternsForLayer(config, 0, { vsOnly: true })).toEqual([
      { kind: 'vertical_slash', verticalSize: 1000, slashSize: 6096 },
      { kind: 'vertical_slash', verticalSize: 100, slashSize: 800 },
      { kind: 'vertical_slash', verticalSize: 1000, slashSize: 6096 },
    ]);
    expect(patternsForLayer(config, 0, { vsOnly: { verticalSize: 40, slashSize: 400 } })).toEqual(
      new Array(3).fill({ kind: 'vertical_slash', verticalSize: 40, slashSize: 400 }),
    );
    expect(patternsForLayer(config, 7, { numHeads: 2 })).toEqual(
      new Array(2).fill({ kind: 'vertical_slash', verticalSize: 1000, slashSize: 6096 }),
    );
    expect(thrown(() => patternsForLayer(config, 7)).argument).toBe('layer');
    expect(thrown(() => patternsForLayer(config, 0, { numHeads: 5 })).argument).toBe('numHeads');
    expect(thrown(() => patternsForLayer(config, 0, { budgetRatio: Number.NaN })).argument).toBe('budgetRatio');
    const bad: [LayerPatternOptions, string][] = [
      [{ budgetRatio: 0 }, 'budgetRatio'],
      [{ startingLayer: 0.5 }, 'startingLayer'],
      [{ vsOnly: 3 as never }, 'vsOnly'],
      [{ vsOnly: null as never }, 'vsOnly'],
      [{ vsOnly: { verticalSize: Number.NaN, slashSize: 50 } }, 'vsOnly.verticalSize'],
      [{ vsOnly: { verticalSize: 50 } as never }, 'vsOnly.slashSize'],
    ];
    for (const [options, argument] of bad) {
      expect(thrown(() => patternsForLayer(config, 0, options)).argument).toBe(argument);
      expect(thrown(() => adjustPatterns([{ kind: 'dense' }], 0, options)).argument).toBe(argument);
    }
  });

  test('fuzzed files either give a config that survives writing and reading, or an error that names the place', () => {
    const value = fc.oneof(
      fc.constantFrom<unknown>(
        ...['vertical_and_slash', 'stream_llm', 'block_sparse', 'dense', '', null, true, {}, [], 1e300, -1],
      ),
      fc.double(),
      fc.nat(),
    );
    const head = fc.oneof(
      { weight: 15, arbitrary: fc.constantFrom<unknown>(VS, STREAM, BLOCKS) },
      {
        weight: 1,
        arbitrary: fc.tuple(fc.constantFrom('vertical_and_slash', 'stream_llm', 'block_sparse'), value, value, value),
      },
      { weight: 1, arbitrary: fc.array(value, { maxLength: 5 }) },
      { weight: 1, arbitrary: value },
    );
    const layer = fc.oneof(
      {
        weight: 5,
        arbitrary: fc.array(head, { minLength: 1, maxLength: 4 }).map((heads) => Object.fromEntries(heads.entries())),
      },
      { weight: 1, arbitrary: fc.dictionary(fc.constantFrom('0', '1', '01', '-1', 'a', '7', '__proto__'), head) },
      { weight: 1, arbitrary: value },
    );
    let good = 0;
    let bad = 0;
    fc.assert(
      fc.property(fc.array(layer, { maxLength: 3 }), (layers) => {
        let config: PatternConfig;
        try {
          config = parsePatternConfig(layers, 'fuzzed.json');
        } catch (error) {
          bad++;
          expect(error).toBeInstanceOf(MinferenceError);
          const { code, message } = error as MinferenceError;
          expect(code).toBe('file');
          expect(message).toMatch(/^fuzzed\.json: (is|layer \d+)/);
          return;
        }
        good++;
        expect(parsePatternConfig(serializePatternConfig(config)).layers).toEqual(config.layers);
        config.layers.forEach((heads, i) => {
          const patterns = patternsForLayer(config, i, { budgetRatio: 0.3 });
          expect(patterns.map((p) => resolvePattern('pattern', p))).toEqual(patterns);
          expect(patterns).toHaveLength(heads.length);
        });
      }),
      { numRuns: 1000 },
    );
    expect(Math.min(good, bad)).toBeGreaterThan(50);
  });

  test('patterns become file entries again', () => {
    const config = parsePatternConfig(SMALL);
    const entries = patternsForLayer(config, 0).map((p) => headConfigOf(p, 0.5));
    expect(entries.map((e) => [e.pattern, e.first, e.second])).toEqual([VS, STREAM, BLOCKS].map((x) => x.slice(0, 3)));
    expect(thrown(() => headConfigOf({ kind: 'dense' }, 1)).code).toBe('invalid-argument');
  });

  test('models are found by name, and wrong files refused', async () => {
    expect(findModel('llama-3.1-8b-instruct')?.layers).toBe(32);
    expect(findModel('meta-llama/Meta-Llama-3.1-8B-Instruct')).toBe(findModel('LLAMA-3.1-8B-INSTRUCT'));
    expect(findModel('nothing')).toBeUndefined();
    const names = MODELS.flatMap((m) => m.names.map((n) => n.split('/')[1]?.toLowerCase()));
    expect(new Set(names).size).toBe(names.length);
    await expect(configForModel('nothing', async () => SMALL)).rejects.toMatchObject({
      code: 'invalid-argument',
      argument: 'model',
    });
    await expect(configForModel('Qwen2-7B-Instruct', async () => SMALL)).rejects.toMatchObject({ code: 'file' });
    await expect(configForModel('Qwen2-7B-Instruct', () => Promise.reject(new Error('offline')))).rejects.toThrow('offline');
  });
});

describe('allocation of density', () => {
  const choice = fc.record({
    density: fc.double({ min: 0.01, max: 1, noNaN: true }),
    value: fc.double({ min: 0, max: 1, noNaN: true }),
  });
  const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0) / values.length;

  test('stays within the limit, and within one step of the best of all choices', () => {
    const heads = fc.array(fc.array(choice, { minLength: 1, maxLength: 5 }), { minLength: 1, maxLength: 4 });
    fc.assert(
      fc.property(heads, fc.double({ min: 0.01, max: 1, noNaN: true }), (all, share) => {
        const cheapest = mean(all.map((c) => Math.min(...c.map((x) => x.density))));
        const limit = Math.min(1, cheapest + share * (1 - cheapest) + 1e-9);
        const best = allocateDensity(all, limit);
        const taken = all.map((c, h) => c[best[h] as number] as DensityChoice);
        expect(mean(taken.map((c) => c.density))).toBeLessThanOrEqual(limit + 1e-12);
        const combinations = all.reduce<DensityChoice[][]>((list, c) => list.flatMap((l) => c.map((x) => [...l, x])), [[]]);
        const fitting = combinations.filter((l) => mean(l.map((x) => x.density)) <= limit);
        const optimum = Math.max(...fitting.map((l) => mean(l.map((x) => x.value))));
        const gap = Math.max(...all.map((c) => Math.max(...c.map((x) => x.value)) - Math.min(...c.map((x) => x.value))));
        const value = mean(taken.map((c) => c.value));
        expect(value).toBeLessThanOrEqual(optimum + 1e-12);
        expect(value).toBeGreaterThanOrEqual(optimum - gap / all.length - 1e-12);
        // No single change that still fits brings more.
        all.forEach((c, h) => {
          const now = taken[h] as DensityChoice;
          const left = limit * all.length - taken.reduce((sum, x) => sum + x.density, 0);
          for (const x of c) expect(x.value <= now.value || x.density - now.density > left - 1e-12).toBe(true);
        });
      }),
    );
  });

  test('is the optimum where the budget is used up by whole steps', () => {
    const diffuse = [0.1, 0.3, 0.5, 0.9].map((density) => ({ density, value: Math.sqrt(density) }));
    const local = [0.1, 0.3, 0.5, 0.9].map((density) => ({ density, value: 0.99 + density / 100 }));
    expect(allocateDensity([diffuse, local], 0.3)).toEqual([2, 0]);
    expect(allocateDensity([diffuse, local], 0.5)).toEqual([3, 0]);
    expect(allocateDensity([diffuse, local], 1)).toEqual([3, 3]);
  });

  test('refuses what cannot be', () => {
    const head = [{ density: 0.2, value: 1 }];
    for (const limit of [0, -1, 1.5, Number.NaN, '0.5' as unknown as number]) {
      expect(thrown(() => allocateDensity([head], limit)).argument).toBe('targetDensity');
    }
    expect(thrown(() => allocateDensity([head], 0.1)).message).toContain('0.2000');
    expect(thrown(() => allocateDensity([head, []], 0.5)).argument).toBe('heads[1]');
  });

  test('the candidates are in proportion to the length', () => {
    const [short, long] = [allocationSpace(4096), allocationSpace(8192)];
    expect(short).toHaveLength(long.length);
    expect(long).toContainEqual({ kind: 'vertical_slash', verticalSize: 2048, slashSize: 448 });
    expect(short).toContainEqual({ kind: 'vertical_slash', verticalSize: 1024, slashSize: 224 });
    expect(long).toContainEqual({ kind: 'block_sparse', topK: 16 });
    expect(short).toContainEqual({ kind: 'a_shape', initSize: 16, localSize: 128 });
    for (const p of allocationSpace(1)) expect(Object.values(p).every((x) => typeof x === 'string' || x >= 1)).toBe(true);
  });
});

describe('commands', () => {
  test('config shows and counts a file', async () => {
    const text = await cli('config', layer9);
    expect(text.code).toBe(0);
    expect(text.stdout).toContain('1 layers of 9 heads');
    const json = await cli('config', layer9, '--json');
    expect(JSON.parse(json.stdout)).toMatchObject({ layers: 1, headsPerLayer: 9, heads: 9 });
    const missing = await cli('config', path('./no such file.json'));
    expect(missing.code).toBe(1);
    expect(missing.stderr).toContain('cannot be read');
  });

  test('config finds the file of a model by its name, and lists the models', async () => {
    const own = await cli('config', 'SmolLM2-135M-Instruct', '--json');
    expect(JSON.parse(own.stdout)).toMatchObject({
      file: 'smollm2-135m.json',
      model: 'HuggingFaceTB/SmolLM2-135M-Instruct',
      layers: 30,
      headsPerLayer: 9,
    });
    const elsewhere = await cli('config', 'Qwen/Qwen2-7B-Instruct', '--json');
    expect(elsewhere.code).toBe(1);
    expect(JSON.parse(elsewhere.stdout).error).toMatchObject({ code: 'file', argument: 'Qwen/Qwen2-7B-Instruct' });
    expect(elsewhere.stderr).toContain('--configs');
    const list = await cli('config', '--json');
    const { models } = JSON.parse(list.stdout) as {
      readonly models: readonly { readonly file: string; readonly ships: boolean }[];
    };
    expect(models.map((m) => m.file)).toEqual(MODELS.map((m) => m.file));
    expect(models.filter((m) => m.ships).map((m) => m.file)).toEqual(['smollm2-135m.json']);
    expect((await cli('config')).stdout).toContain('smollm2-135m.json (ships)');
    expect((await cli('config', '--configs', '/tmp')).stderr).toContain('--configs');
  });

  test('config takes the files of models from a folder or a URL, and refuses the file of another model', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'minference-configs-'));
    try {
      const layer = Object.fromEntries(Array.from({ length: 28 }, (_, head) => [head, VS]));
      const file = findModel('Qwen2-7B-Instruct')?.file as string;
      writeFileSync(join(folder, file), JSON.stringify(new Array(28).fill(layer)));
      const found = await cli('config', 'qwen2-7b-instruct', '--configs', folder, '--json');
      expect(JSON.parse(found.stdout)).toMatchObject({ model: 'Qwen/Qwen2-7B-Instruct', heads: 784 });
      const server = createServer((request, response) => {
        const known = request.url === `/configs/${file}`;
        response.writeHead(known ? 200 : 404).end(known ? readFileSync(join(folder, file)) : '');
      });
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
      const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/configs`;
      const fetched = await cli('config', 'qwen2-7b-instruct', '--configs', url, '--json');
      expect(JSON.parse(fetched.stdout)).toMatchObject({ model: 'Qwen/Qwen2-7B-Instruct', heads: 784 });
      expect((await cli('config', 'Qwen2.5-7B-Instruct', '--configs', url)).stderr).toContain('HTTP status 404');
      await new Promise((resolve) => server.close(resolve));
      writeFileSync(join(folder, file), JSON.stringify([layer]));
      expect((await cli('config', 'qwen2-7b-instruct', '--configs', folder)).stderr).toContain('has 1 layers');
      expect((await cli('config', 'Qwen2.5-7B-Instruct', '--configs', folder)).stderr).toContain('cannot be read');
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  test('a heat map is drawn of what it is given', () => {
    const map = { head: 1, cell: 8, rows: 2, keys: 2, values: Float32Array.of(1, 0, 0.75, 0.25) };
    const svg = heatmapSvg({ map, coverage: Float32Array.of(1, 0, 0.5, 1), title: 'a <b> & c', subtitle: 'd' });
    expect(svg).toContain('a &#60;b&#62; &#38; c');
    expect(svg.match(/<rect x="[^/]*fill="#b00000"/g)).toHaveLength(3);
    expect(svg.match(/<rect x="[^/]*y="[^/]*fill-opacity="0\.\d+"\/>/g)?.length).toBeGreaterThanOrEqual(3);
  });

  test('as a PNG it has the same cells, and its texts', () => {
    const map = { head: 1, cell: 8, rows: 2, keys: 2, values: Float32Array.of(1, 0, 0.75, 0.25) };
    const picture = { map, coverage: Float32Array.of(1, 0, 0.5, 0), title: 'a head', subtitle: 'keeps 97 %, µ' };
    const { width, height, rgb } = heatmapPixels(picture);
    expect([width, height]).toEqual([768, 768]);
    const pixel = (x: number, y: number): number[] => [...rgb.subarray(3 * (y * width + x), 3 * (y * width + x) + 3)];
    expect(pixel(10, 10)).toEqual([0xb0, 0, 0]);
    expect(pixel(383, 383)).toEqual(pixel(10, 10));
    expect(pixel(384, 10)).toEqual([255, 255, 255]);
    expect(pixel(384, 384)[0]).toBeGreaterThan(0xb0);
    expect(pixel(10, 384)[2]).toBeLessThan(60);

    const png = heatmapPng(picture);
    const view = new DataView(png.buffer, png.byteOffset, png.byteLength);
    expect([...png.subarray(0, 8)]).toEqual([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
    const chunks = new Map<string, Buffer>();
    for (let at = 8; at < png.length; ) {
      const end = at + 8 + view.getUint32(at);
      expect(view.getUint32(end)).toBe(crc32(png.subarray(at + 4, end)));
      const type = Buffer.from(png.subarray(at + 4, at + 8)).toString();
      chunks.set(chunks.has(type) ? `${type} 2` : type, Buffer.from(png.subarray(at + 8, end)));
      at = end + 4;
    }
    expect([...chunks.keys()]).toEqual(['IHDR', 'iTXt', 'iTXt 2', 'IDAT', 'IEND']);
    expect(chunks.get('iTXt')?.toString()).toBe('Title\0\0\0\0\0a head');
    expect(chunks.get('iTXt 2')?.toString()).toBe('Description\0\0\0\0\0keeps 97 %, µ');
    const rows = inflateSync(chunks.get('IDAT') as Buffer);
    expect(rows).toHaveLength(768 * (1 + 3 * 768));
    expect([...rows.subarray(0, 4)]).toEqual([0, 0xb0, 0, 0]);
  });
});
