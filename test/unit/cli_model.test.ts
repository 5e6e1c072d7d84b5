import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Float16Array } from '@petamoriken/float16';
import { afterAll, describe, expect, test, vi } from 'vitest';
import { METHODS } from '../../src/eval/methods.js';
import { relativeError } from '../../src/reference/oracle.js';
import { TEMPLATE, tinyModel } from './eval_make.js';
import { run as runCli } from './run_cli.js';

const folder = mkdtempSync(join(tmpdir(), 'minference-model-'));
afterAll(() => rmSync(folder, { recursive: true }));
const file = (name: string, content: string | Uint8Array): string => {
  writeFileSync(join(folder, name), content);
  return join(folder, name);
};
/** Models that tests name by these words. */
const models = new Map([
  ['chat', file('chat.gguf', tinyModel('smollm', { 'tokenizer.chat_template': TEMPLATE }))],
  ['plain', file('plain.gguf', tinyModel('smollm'))],
]);

const run = (...args: string[]) => runCli(...args.map((arg) => models.get(arg) ?? arg));

async function json(...args: string[]) {
  const { code, stdout, stderr } = await run('--json', ...args);
  expect(stderr).not.toContain('error');
  expect(code).toBe(0);
  return JSON.parse(stdout);
}

describe('generate', () => {
  test('streams text to stdout and figures to stderr; --json gives the same as one object', async () => {
    const args = ['generate', '--model', 'chat', '--prompt', 'Hello world', '--max-tokens', '6'];
    const shown = await run(...args);
    expect(shown.code).toBe(0);
    for (const figure of ['prefill', 'first token', 'decode', 'GPU memory']) expect(shown.stderr).toContain(figure);
    const result = await json(...args);
    expect(shown.stdout).toBe(`${result.text}\n`);
    expect(result).toMatchObject({ architecture: 'llama', patterns: 'dense', generatedTokens: result.tokens.length });
    expect(result.promptTokens).toBeGreaterThan(5);
    expect(result.tokens.length).toBeGreaterThan(0);
    expect(result.prefillTokensPerSecond).toBeGreaterThan(0);
    expect(result.memory.weights).toBeGreaterThan(600 * 64 * 4);
  });

  test('a seed repeats; the template, the system message and --raw change the prompt', async () => {
    const draw = (...more: string[]) =>
      json('generate', '--model', 'chat', '--prompt', 'Hello', '--max-tokens', '8', '--temperature', '1', '--seed', '3', ...more);
    const first = await draw();
    expect((await draw()).tokens).toEqual(first.tokens);
    expect((await draw('--system', 'Be brief.')).promptTokens).toBeGreaterThan(first.promptTokens);
    expect((await draw('--raw')).promptTokens).toBeLessThan(first.promptTokens);
  });

  test('dense patterns by any name give the same text; a prompt may come from a file', async () => {
    const prompt = file('prompt.txt', 'The old man and the sea. '.repeat(20));
    const tokens = async (...more: string[]): Promise<number[]> =>
      (await json('generate', '--model', 'plain', '--prompt-file', prompt, '--max-tokens', '4', '--dense-below', '0', ...more))
        .tokens;
    const dense = await tokens();
    expect(await tokens('--patterns', 'a_shape:1,4000')).toEqual(dense);
    const heads = (pattern: readonly (string | number)[]): string => JSON.stringify({ 0: pattern, 1: pattern });
    const config = file('config.json', `[${heads(['stream_llm', 1, 4000, 1])},${heads(['vertical_and_slash', 4000, 4000, 1])}]`);
    expect(await tokens('--patterns', config)).toEqual(dense);
    expect(await tokens('--patterns', 'minference', '--chunk', '64')).toHaveLength(dense.length);
  });

  test.each<[string[], number, string]>([
    [['--prompt', 'a'], 2, '--model'],
    [['--model', 'chat'], 1, '--prompt is undefined; allowed: a text, or --prompt-file'],
    [['--model', 'chat', '--prompt', 'a', '--prompt-file', 'b'], 2, '--prompt-file'],
    [['--model', 'chat', '--prompt', ''], 0, ''],
    [['--model', 'plain', '--prompt', ''], 1, '--prompt is ""; allowed: a text of at least one token'],
    [['--model', 'chat', '--prompt-file', '/nowhere/prompt.txt'], 1, '/nowhere/prompt.txt: cannot be read'],
    [['--model', '/nowhere/model.gguf', '--prompt', 'a'], 1, '/nowhere/model.gguf: cannot be opened'],
    [['--model', 'plain', '--prompt', 'a', '--system', 'b'], 1, '--system needs a chat template'],
    [['--model', 'chat', '--prompt', 'a', '--context', '10', '--max-tokens', '8'], 1, '--context is 10; the prompt has'],
    [
      ['--model', 'chat', '--prompt', 'a', '--patterns', 'a_shape:3'],
      1,
      '--patterns: "a_shape:3": allowed is a_shape:FIRST,LOCAL',
    ],
    [['--model', 'chat', '--prompt', 'a', '--patterns', './no.json'], 1, './no.json: cannot be read'],
    [['--model', 'chat', '--prompt', 'a', '--temperature', '-1'], 2, '--temperature'],
    [['--model', 'chat', '--prompt', 'a', '--top-p', '1.5'], 1, 'topP is 1.5'],
    [['--model', 'chat', '--prompt', 'a', '--max-tokens', '0'], 2, '--max-tokens'],
  ])('%j', async (args, expected, message) => {
    const { code, stdout, stderr } = await run('generate', ...args, ...(expected === 0 ? ['--max-tokens', '1'] : []));
    expect(code, stderr).toBe(expected);
    expect(stderr).toContain(message);
    if (expected !== 0) expect(stdout).toBe('');
  });

  test('a hub is asked with HF_TOKEN at HF_ENDPOINT', async () => {
    const asked: (string | undefined)[][] = [];
    const server = createServer(({ url, headers }, response) => {
      asked.push([url, headers.authorization]);
      response.writeHead(401).end();
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    vi.stubEnv('HF_TOKEN', 'secret');
    vi.stubEnv('HF_ENDPOINT', `http://127.0.0.1:${(server.address() as AddressInfo).port}`);
    vi.stubEnv('MINFERENCE_CACHE', join(folder, 'cache'));
    try {
      const { code, stdout } = await run('--json', 'generate', '--model', 'owner/name', '--prompt', 'a');
      expect(code).toBe(1);
      const { error } = JSON.parse(stdout);
      expect(error).toMatchObject({ code: 'file', argument: 'id', value: 'owner/name' });
      expect(error.message).toContain('there is no such model, or it wants a token');
      expect(asked).toEqual([['/api/models/owner/name/revision/main?blobs=true', 'Bearer secret']]);
    } finally {
      vi.unstubAllEnvs();
      server.close();
    }
  });

  test('patterns of a file for another model are refused by name', async () => {
    const config = file('other.json', '[{"0": ["stream_llm", 1, 4, 1]}]');
    const { code, stdout } = await run('--json', 'generate', '--model', 'chat', '--prompt', 'a', '--patterns', config);
    expect(code).toBe(1);
    expect(JSON.parse(stdout).error).toMatchObject({ code: 'invalid-argument', argument: 'numHeads', value: 2 });
  });
});

describe('eval', () => {
  const common = ['--model', 'chat', '--seq-len', '700,800', '--samples', '1', '--depths', '0,100'];

  test('gives a row for each method, length and depth, a table and a picture', async () => {
    const picture = join(folder, 'passkey.svg');
    const args = ['eval', 'passkey', ...common, '--methods', 'a_shape:16,64,minference', '--heatmap', picture];
    const { rows, name } = await json(...args);
    expect(name).toBe('Tiny');
    expect(rows.map((r: Record<string, unknown>) => [r['task'], r['method'], r['seqLen'], r['depth']])).toEqual(
      [700, 800].flatMap((n) =>
        ['dense', 'a_shape:16,64', 'minference'].flatMap((method) => [0, 1].map((depth) => ['passkey', method, n, depth])),
      ),
    );
    for (const row of rows) {
      expect(row.samples).toBe(1);
      expect(row.prefillMs).toBeGreaterThan(0);
      // Random weights know nothing.
      expect(row.accuracy).toBe(0);
      if (row.method === 'dense') expect(row.agreement).toBe(1);
    }
    expect(readFileSync(picture, 'utf8')).toContain('>a_shape:16,64</text>');
  });

  test('shows a table of depths and one of methods', async () => {
    const { code, stdout } = await run('eval', 'kv', '--model', 'chat', '--seq-len', '700', '--samples', '1', '--depths', '50');
    expect(code).toBe(0);
    expect(stdout).toMatch(/tokens\s+depth\s+dense\s+minference\n\s+700\s+50 %\s+0\.0 %\s+0\.0 %\n/);
    expect(stdout).toMatch(/tokens\s+method\s+right\s+as dense\s+density\s+prefill\s+speed-up\n/);
  });

  test('the model that ships is the default, and finds a pass key with the patterns that were searched for it', async () => {
    const { name, tier, device, totals } = await json('eval', 'passkey', '--seq-len', '1400', '--samples', '1', '--depths', '50');
    expect(name).toBe('minference-retrieval-3m');
    expect([typeof tier, typeof device]).toEqual(['string', 'string']);
    const [dense, minference] = totals;
    expect(dense).toMatchObject({ method: 'dense', samples: 1, accuracy: 1, points: 0, agreement: 1, density: 1, speedup: 1 });
    expect(minference).toMatchObject({ method: 'minference', samples: 1, accuracy: 1, points: 0, agreement: 1 });
    // Something was left out.
    expect(minference.density).toBeLessThan(0.95);
  });

  test('all methods can be asked for at once; totals are over all depths', async () => {
    const { rows, totals } = await json('eval', 'needle', ...common, '--seq-len', '700', '--methods', 'all');
    expect(totals.map((t: { method: string }) => t.method)).toEqual(METHODS);
    for (const total of totals) {
      const own = rows.filter((r: { method: string }) => r.method === total.method);
      expect(own).toHaveLength(2);
      expect(total.samples).toBe(2);
      expect(total.density).toBeCloseTo(own[0].density, 9);
      expect(total.prefillMs).toBeCloseTo((own[0].prefillMs + own[1].prefillMs) / 2, 6);
      expect(total.speedup).toBeCloseTo(totals[0].prefillMs / total.prefillMs, 9);
    }
  });

  test('perplexity of what sees everything is that of dense attention; a narrow window differs', async () => {
    const args = ['eval', 'perplexity', '--model', 'plain', '--seq-len', '300', '--samples', '2'];
    const { rows, totals } = await json(...args, '--methods', 'a_shape:1,4000,a_shape:1,2');
    const [dense, all, narrow] = rows.map((r: { perplexity: number }) => r.perplexity);
    expect(totals.map((r: { perplexity: number }) => r.perplexity)).toEqual([dense, all, narrow]);
    expect(dense).toBeGreaterThan(100);
    expect(Math.abs(all / dense - 1)).toBeLessThan(1e-3);
    expect(Math.abs(narrow / dense - 1)).toBeGreaterThan(1e-3);
  });

  test.each<[string[], number, string]>([
    [['sing', '--model', 'chat'], 2, 'Allowed: passkey, needle, kv, variables, perplexity.'],
    [['passkey', '--model', '/nowhere/model.gguf'], 1, '/nowhere/model.gguf: cannot be opened'],
    [['passkey', '--model', 'chat', '--seq-len', '100'], 1, 'seqLen is 100; allowed: at least'],
    [['passkey', '--model', 'chat', '--seq-len', '4k'], 2, '--seq-len'],
    [['passkey', '--model', 'chat', '--depths', '110'], 2, 'from 0 to 100'],
    [['passkey', '--model', 'chat', '--methods', 'stripes'], 2, 'Unknown method "stripes". Allowed: dense, minference'],
    [['passkey', '--model', 'chat', '--methods', 'a_shape:1'], 2, 'a_shape:FIRST,LOCAL'],
    [['passkey', '--model', 'chat', '--config', '/nowhere.json'], 1, '/nowhere.json: cannot be read'],
    [['passkey', '--model', 'chat', '--text', '/nowhere.txt'], 1, '/nowhere.txt: cannot be read'],
    [['perplexity', '--model', 'chat', '--heatmap', 'x.svg'], 1, '--heatmap is "x.svg"'],
    [['perplexity', '--model', 'chat', '--seq-len', '1000000'], 1, 'fewer than the 1000000 asked for'],
  ])('%j', async (args, expected, message) => {
    const { code, stdout, stderr } = await run('eval', ...args);
    expect(code, stderr).toBe(expected);
    expect(stderr).toContain(message);
    expect(stdout).toBe('');
  });
});

describe('ask', () => {
  test('reads a document twice and scores the answers to the same questions', async () => {
    const args = ['--model', 'chat', '--seq-len', '700', '--facts', '4', '--seed', '3'];
    const { readings, seqLen, memory } = await json('ask', ...args, '--patterns', 'a_shape:16,64');
    expect(seqLen).toBe(700);
    expect(memory.weights).toBeGreaterThan(0);
    const [dense, sparse] = readings;
    expect([dense.method, sparse.method]).toEqual(['dense', 'a_shape:16,64']);
    expect(dense.density).toBe(1);
    // Rows see 80 keys at most.
    expect(sparse.density).toBeCloseTo((80 * 700 - (79 * 80) / 2) / ((700 * 701) / 2), 6);
    for (const reading of readings) {
      expect(reading.prefillMs).toBeGreaterThan(0);
      expect(reading.answers).toHaveLength(4);
      expect(reading.accuracy).toBe(0);
    }
    const asked = (reading: { answers: { question: string; depth: number; expected: string[] }[] }) =>
      reading.answers.map(({ question, depth, expected }) => [question, depth, expected]);
    expect(asked(dense)).toEqual(asked(sparse));
    expect(new Set(dense.answers.map((a: { question: string }) => a.question)).size).toBe(4);
  });

  test('the model that ships answers all questions, dense and by the patterns that were searched for it', async () => {
    const { readings, name } = await json('ask', '--seq-len', '2600', '--facts', '4');
    expect(name).toBe('minference-retrieval-3m');
    const [dense, sparse] = readings;
    expect([dense.accuracy, sparse.accuracy]).toEqual([1, 1]);
    expect(sparse.density).toBeLessThan(0.45);
  });

  test('what keeps everything gives the dense answers, in a table', async () => {
    const { code, stdout } = await run(
      'ask',
      '--model',
      'plain',
      '--seq-len',
      '300',
      '--facts',
      '2',
      '--patterns',
      'a_shape:1,400',
    );
    expect(code).toBe(0);
    expect(stdout).toMatch(/density\s+100\.0 %\s+100\.0 %/);
    expect(stdout).toMatch(/right answers\s+0 of 2\s+0 of 2/);
    expect(stdout).toMatch(/What is the pass key\?/);
    const { readings } = await json('ask', '--model', 'plain', '--seq-len', '300', '--facts', '2', '--patterns', 'a_shape:1,400');
    const texts = readings.map((r: { answers: { text: string }[] }) => r.answers.map((a) => a.text).join('|'));
    expect(texts[0]).toBe(texts[1]);
  });

  test('a document that is too short for its facts is refused', async () => {
    const { code, stderr } = await run('ask', '--model', 'plain', '--seq-len', '40');
    expect(code).toBe(1);
    expect(stderr).toMatch(/seqLen/);
  });
});

describe('capture', () => {
  test('writes what recall and search read, whatever the chunks', async () => {
    const out = join(folder, 'qkv');
    const { files, seqLen } = await json('capture', '--model', 'plain', '--seq-len', '200', '--layers', '1', '--out', out);
    expect([files.length, files[0].layer, seqLen]).toEqual([1, 1, 200]);
    const path = join(out, 'layer1.safetensors');
    expect(readFileSync(path)).toHaveLength(files[0].bytes);
    const recall = await json('recall', '--qkv', path, '--pattern', 'dense');
    expect(recall).toMatchObject({ seqLen: 200, heads: [{ recall: 1 }, { recall: 1 }] });
    const parts = join(folder, 'parts');
    await json('capture', '--model', 'plain', '--seq-len', '200', '--layers', '1', '--out', parts, '--chunk', '64');
    const [whole, chunked] = [path, join(parts, 'layer1.safetensors')].map((p) => {
      const bytes = readFileSync(p);
      const data = bytes.subarray(8 + Number(bytes.readBigUInt64LE(0)));
      return [...new Float16Array(data.buffer.slice(data.byteOffset, data.byteOffset + data.length))];
    }) as [number[], number[]];
    expect(relativeError(chunked, whole)).toBeLessThan(2e-3);
    expect(Math.max(...whole.map(Math.abs))).toBeGreaterThan(0.1);
  });

  test('layers and lengths that are not there are refused', async () => {
    for (const [args, word] of [
      [['--layers', '2'], '--layers'],
      [['--seq-len', '1000000'], '--seq-len'],
    ] as const) {
      const { code, stderr } = await run('capture', '--model', 'plain', '--out', join(folder, 'none'), ...args);
      expect([code, stderr.includes(word)]).toEqual([1, true]);
    }
  });
});
