import { readFile, rename, writeFile } from 'node:fs/promises';
import { Option } from 'commander';
import { invalidArgument, MinferenceError } from '../errors.js';
import { serializePatternConfig } from '../patterns/config.js';
import {
  type CandidateResult,
  DEFAULT_TARGET,
  type SearchPattern,
  type SearchState,
  type SearchTarget,
  searchPatterns,
} from '../patterns/search.js';
import { SparsePrefill } from '../scheduler/prefill.js';
import type { HeadPattern } from '../scheduler/types.js';
import type { CliContext, CommandResult, RegisterCommand } from './app.js';
import { addDeviceOptions, type DeviceOptions, integer, positiveNumber, withDevice } from './device.js';
import { formatCount, formatError, formatMs, formatPercent, formatTable } from './format.js';
import { openInput } from './input.js';
import { type PatternRequest, parsePatterns, patternText } from './patterns.js';

interface SearchCommandOptions extends DeviceOptions {
  readonly qkv?: readonly string[];
  readonly seqLen?: number;
  readonly density?: number;
  readonly targetDensity?: number;
  readonly pattern?: readonly PatternRequest[];
  readonly criterion?: 'error' | 'recall';
  readonly firstRow: number;
  readonly output?: string;
  readonly report?: string;
  readonly state?: string;
}

const MAX_LENGTH = 2 ** 26;

/** Adds `minference search`: the best pattern of every head, from real q, k, v. */
export const registerSearch: RegisterCommand = (program, action) => {
  addDeviceOptions(
    program
      .command('search')
      .description('find the best pattern for every head from real q, k, v')
      .option('--qkv <files...>', 'safetensors with q, k, v, one file per layer, in order; default: the sample')
      .addOption(new Option('--seq-len <n>', 'cuts the files').argParser(integer(1, MAX_LENGTH)))
      .addOption(
        new Option(
          '--density <share>',
          "what candidates may cost, as a share of dense; default: MInference's A-shape of 1024 + 4096",
        ).argParser(positiveNumber),
      )
      .addOption(
        new Option(
          '--target-density <share>',
          'let heads cost what they need: most attention kept at this mean density over all heads',
        )
          .argParser(positiveNumber)
          .conflicts('density'),
      )
      .addOption(
        new Option(
          '--pattern <candidates>',
          'candidates joined by "+": a_shape, vertical_slash, block_sparse; default: MInference\'s six',
        ).argParser(parsePatterns),
      )
      .addOption(
        new Option(
          '--criterion <what>',
          'least output error, or most attention kept; default: error, with --target-density recall',
        ).choices(['error', 'recall']),
      )
      .addOption(new Option('--first-row <n>', 'rows before it are not measured').argParser(integer(0, MAX_LENGTH)).default(0))
      .option('--output <file>', "write the choice as MInference's JSON")
      .option('--report <file>', 'write recall, error and time of every candidate and head as JSON')
      .option('--state <file>', 'save what is known after each step, and go on from there'),
  ).action(action<SearchCommandOptions>(run));
};

async function run(context: CliContext, options: SearchCommandOptions): Promise<CommandResult> {
  const files: (string | undefined)[] = options.qkv ? [...options.qkv] : [undefined];
  const space = options.pattern?.map((make) => candidate(make(1)));
  const resume = options.state === undefined ? undefined : await readState(options.state);
  return withDevice(context, options, async (device) => {
    const prefill = new SparsePrefill(device, { tier: options.tier });
    const progress = context.progress('search');
    try {
      const target: SearchTarget | undefined = options.density === undefined ? undefined : { density: options.density };
      const result = await searchPatterns(
        prefill,
        {
          name: `${options.qkv?.join(' ') ?? 'sample'}${options.seqLen === undefined ? '' : `, ${options.seqLen} tokens`}`,
          layers: files.length,
          load: (layer) => loadLayer(device, prefill, files[layer], options.seqLen),
        },
        {
          ...(target ? { target } : {}),
          ...(space ? { space } : {}),
          ...(options.targetDensity === undefined ? {} : { targetDensity: options.targetDensity }),
          ...(options.criterion ? { criterion: options.criterion } : {}),
          firstRow: options.firstRow,
          signal: context.signal,
          onProgress: ({ fraction, layer, candidate }) => progress.update(fraction, `layer ${layer}, candidate ${candidate + 1}`),
          ...(resume ? { resume } : {}),
          ...(options.state === undefined
            ? {}
            : { onState: (state: SearchState) => writeWhole(options.state as string, JSON.stringify(state)) }),
        },
      );
      if (options.output !== undefined) await writeWhole(options.output, serializePatternConfig(result.config));
      const json = {
        version: 1,
        device: prefill.profile.name,
        tier: prefill.profile.tier,
        ...(options.targetDensity === undefined
          ? { target: target ?? DEFAULT_TARGET }
          : { targetDensity: options.targetDensity }),
        criterion: options.criterion ?? (options.targetDensity === undefined ? 'error' : 'recall'),
        firstRow: options.firstRow,
        files: options.qkv ?? ['sample'],
        layers: result.layers,
      };
      if (options.report !== undefined) await writeWhole(options.report, `${JSON.stringify(json, undefined, 1)}\n`);
      const chosen = result.layers.flatMap((l) =>
        l.heads.map((h, head) => ({ layer: l.layer, head, ...(h.candidates[h.best] as CandidateResult) })),
      );
      const mean = (of: (c: CandidateResult) => number): number => chosen.reduce((sum, c) => sum + of(c), 0) / chosen.length;
      const table = formatTable(
        [
          ['layer', 'head', 'pattern', 'density', 'recall', 'worst row', 'error', 'time'],
          ...chosen.map((c) => [
            String(c.layer),
            String(c.head),
            patternText(c.pattern),
            formatPercent(c.density),
            formatPercent(c.recall),
            formatPercent(c.worstRecall),
            formatError(c.error),
            c.ms === undefined ? '' : formatMs(c.ms),
          ]),
          [
            'mean',
            '',
            '',
            formatPercent(mean((c) => c.density)),
            formatPercent(mean((c) => c.recall)),
            '',
            formatError(mean((c) => c.error)),
            '',
          ],
        ],
        [0, 1, 3, 4, 5, 6, 7],
      );
      return { text: `${formatCount(chosen.length)} heads\n\n${table}`, json };
    } finally {
      progress.stop();
      prefill.destroy();
    }
  });
}

/** A pattern that MInference's file format can say. */
function candidate(pattern: HeadPattern): SearchPattern {
  if (pattern.kind === 'a_shape' || pattern.kind === 'vertical_slash' || pattern.kind === 'block_sparse') return pattern;
  throw invalidArgument('--pattern', patternText(pattern), 'a_shape, vertical_slash, block_sparse');
}

async function loadLayer(device: GPUDevice, prefill: SparsePrefill, file: string | undefined, seqLen: number | undefined) {
  const input = await openInput(
    { seed: 1, ...(file === undefined ? {} : { qkv: file }), ...(seqLen === undefined ? {} : { seqLen }) },
    undefined,
    1,
  );
  try {
    if (input.source === 'generated') throw invalidArgument('--seq-len', seqLen, 'at most the tokens of the sample');
    const { q, k, v } = await input.load(device, prefill.profile, []);
    const { numHeads, numKvHeads, headDim, dtype } = input;
    return {
      layer: { q, k, v, numHeads, numKvHeads, headDim, seqLen: input.seqLen, dtype },
      release: () => [q, k, v].forEach((b) => b.destroy()),
    };
  } finally {
    await input.close();
  }
}

/** Writes a file so that an interruption leaves the old one or the new one, never half of it. */
async function writeWhole(path: string, text: string): Promise<void> {
  await writeFile(`${path}.part`, text);
  await rename(`${path}.part`, path);
}

async function readState(path: string): Promise<SearchState | undefined> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw new MinferenceError('file', `${path}: cannot be read`, { argument: path, cause: error });
  }
  try {
    // The search checks what it is.
    return (JSON.parse(text) ?? {}) as SearchState;
  } catch (cause) {
    throw new MinferenceError('file', `${path}: not the state of a search (not JSON)`, { argument: path, cause });
  }
}
