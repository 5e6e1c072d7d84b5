import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { PassThrough } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { startProgress } from '../../src/cli/progress.js';
import { createNodeGpu } from '../../src/device/node.js';
import { runUntil as cli } from './run_cli.js';

const adapter = await createNodeGpu().requestAdapter();
const file = (relative: string): string => fileURLToPath(new URL(relative, import.meta.url));
const layer9 = file('../../assets/configs/smollm2-135m-layer9.json');

/** The one object that a run printed; fails on anything more or less. */
function onlyObject(out: string): Record<string, unknown> {
  expect(out.endsWith('\n')).toBe(true);
  expect(out.trim().split('\n')).toHaveLength(1);
  const value = JSON.parse(out) as unknown;
  expect(value).toBeTypeOf('object');
  expect(Array.isArray(value) || value === null).toBe(false);
  return value as Record<string, unknown>;
}

const COMMANDS = ['ask', 'generate', 'eval', 'prefill', 'verify', 'info', 'config', 'recall', 'search', 'capture'];

describe('with --json, stdout is one JSON object', () => {
  test('the list of commands is whole', async () => {
    const { stdout: out } = await cli(['--help']);
    const listed = [...out.matchAll(/^ {2}([a-z]+) /gm)].map((m) => m[1]);
    expect(listed.filter((c) => c !== 'help')).toEqual(COMMANDS);
  });

  test.each([[], ...COMMANDS.map((c) => [c])].map((c) => [c]))('help of %j', async (command) => {
    const { code, stdout: out } = await cli([...command, '--help', '--json']);
    expect(code).toBe(0);
    expect(onlyObject(out)['help']).toContain('Usage: minference');
  });

  test.each(COMMANDS)('wrong usage of %s', async (command) => {
    const { code, stdout: out, stderr: err } = await cli([command, '--no-such-option', '--json']);
    expect(code).toBe(2);
    expect(onlyObject(out)['error']).toMatchObject({ code: 'usage' });
    expect(err).toMatch(/^error: .*(--no-such-option|required option)/);
  });

  test.each([
    [['--json'], 'usage'],
    [['sing', '--json'], 'usage'],
    [['config', '/nowhere.json', '--json'], 'file'],
    [['prefill', '--qkv', '/nowhere.safetensors', '--json'], 'file'],
    [['prefill', '--heads', '4', '--kv-heads', '3', '--seq-len', '8', '--json'], 'invalid-argument'],
    [['prefill', '--config', layer9, '--layer', '7', '--json'], 'invalid-argument'],
    [['info', '--adapter', 'no adapter has this name', '--json'], 'unsupported'],
  ] as const)('%j fails', async (args, expected) => {
    const { code, stdout: out } = await cli(args);
    expect(code).toBe(expected === 'usage' ? 2 : 1);
    expect((onlyObject(out)['error'] as { code: string }).code).toBe(expected);
  });

  test
    .skipIf(!adapter)
    .each([
      [['info']],
      [['config', layer9]],
      [['prefill', '--seq-len', '100']],
      [['prefill', '--seq-len', '100', '--heads', '2', '--head-dim', '32', '--pattern', 'flex_prefill+x_attention']],
      [['recall', '--seq-len', '100']],
    ])('%j works', async (args) => {
    const { code, stdout: out, stderr: err } = await cli([...args, '--json']);
    expect(err).not.toContain('error');
    expect(code).toBe(0);
    expect(Object.keys(onlyObject(out)).length).toBeGreaterThan(2);
  });

  test.skipIf(!adapter)('an interrupted command says so', async () => {
    const { code, stdout: out } = await cli(['prefill', '--seq-len', '100', '--json'], AbortSignal.abort());
    expect(code).toBe(130);
    expect(onlyObject(out)['error']).toMatchObject({ code: 'aborted' });
  });

  // Also what libraries and the runtime itself might write.
  const built = file('../../dist/cli.js');
  test.skipIf(!existsSync(built))('the program itself prints nothing else', async () => {
    const child = spawn(process.execPath, [built, 'config', layer9, '--json']);
    let out = '';
    child.stdout.on('data', (chunk: Buffer) => {
      out += chunk.toString();
    });
    const code = await new Promise<number | null>((resolve) => child.on('close', resolve));
    expect(code).toBe(0);
    expect(onlyObject(out)).toMatchObject({ layers: 1, heads: 9 });
  });
});

describe('progress', () => {
  test('is a bar on a terminal, which goes away', async () => {
    const terminal = Object.assign(new PassThrough(), {
      isTTY: true,
      columns: 80,
      rows: 24,
      cursorTo: () => true,
      clearLine: () => true,
      moveCursor: () => true,
    });
    let shown = '';
    terminal.on('data', (chunk: Buffer) => {
      shown += chunk.toString();
    });
    let lines = '';
    const progress = startProgress('dense', {
      stderr: (t) => {
        lines += t;
      },
      terminal: terminal as unknown as NodeJS.WriteStream,
    });
    progress.update(0.5, 'run 1 of 2');
    await new Promise((resolve) => setTimeout(resolve, 250));
    progress.update(1, 'run 2 of 2');
    progress.stop();
    expect(shown).toMatch(/dense \[#{12}\.{12}\] 50 % {2}run 1 of 2/);
    expect(lines).toBe('');
  });

  test('is a few plain lines in a pipe', () => {
    let now = 0;
    const clock = performance.now;
    performance.now = () => now;
    try {
      let lines = '';
      const progress = startProgress('dense', {
        stderr: (t) => {
          lines += t;
        },
      });
      for (let step = 1; step <= 100; step++) {
        now += 500;
        progress.update(step / 100, `step ${step}`);
      }
      progress.stop();
      const percents = [...lines.matchAll(/^dense (\d+) % {2}step \d+$/gm)].map((m) => Number(m[1]));
      expect(lines.startsWith('dense ...\n')).toBe(true);
      expect(percents).toEqual([20, 40, 60, 80]);
      for (const control of ['\r', String.fromCharCode(27)]) expect(lines).not.toContain(control);
    } finally {
      performance.now = clock;
    }
  });
});
