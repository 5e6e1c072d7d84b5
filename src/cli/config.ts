import { readFile } from 'node:fs/promises';
import { MinferenceError } from '../errors.js';
import { CONFIG_PATTERNS, type PatternConfig, parsePatternConfig, summarizePatternConfig } from '../patterns/config.js';
import type { CliContext, CommandResult, RegisterCommand } from './app.js';
import { formatCount, formatTable } from './format.js';

/** Reads a pattern file. */
export async function readConfigFile(path: string): Promise<PatternConfig> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (cause) {
    throw new MinferenceError('file', `${path}: cannot be read (${cause instanceof Error ? cause.message : String(cause)})`, {
      argument: path,
      cause,
    });
  }
  return parsePatternConfig(text, path);
}

/** Adds `minference config`: what a pattern file holds. */
export const registerConfig: RegisterCommand = (program, action) => {
  program
    .command('config')
    .description("check a pattern configuration in MInference's format and show what it holds")
    .argument('<file>', 'JSON file')
    .action((file: string) => action<{ readonly file: string }>(show)({ file }));
};

async function show(_context: CliContext, { file }: { file: string }): Promise<CommandResult> {
  const config = await readConfigFile(file);
  const summary = summarizePatternConfig(config);
  const heads = summary.headsPerLayer === undefined ? 'a varying number of' : formatCount(summary.headsPerLayer);
  const used = CONFIG_PATTERNS.filter((p) => summary.patterns[p] > 0).map((p) => `${formatCount(summary.patterns[p])} ${p}`);
  const overview = formatTable([
    ['file', file],
    ['size', `${formatCount(summary.layers)} layers of ${heads} heads, ${formatCount(summary.heads)} heads in all`],
    ['patterns', used.join(', ')],
    ['mean score', summary.meanScore.toPrecision(4)],
  ]);
  const mix = formatTable(
    [
      ['pattern', 'first', 'second', 'heads', ''],
      ...summary.mix.map((m) => [
        m.pattern,
        formatCount(m.first),
        formatCount(m.second),
        formatCount(m.heads),
        '#'.repeat(Math.max(1, Math.round((40 * m.heads) / summary.heads))),
      ]),
    ],
    [1, 2, 3],
  );
  return { text: `${overview}\n${mix}`, json: { file, ...summary } };
}
