import { type Command, InvalidArgumentError, Option } from 'commander';
import { invalidArgument, MinferenceError } from '../errors.js';
import { adjustPatterns, type LayerPatternOptions, patternsForLayer } from '../patterns/config.js';
import { dilated1, dilated2, strided } from '../patterns/static.js';
import type { HeadPattern } from '../scheduler/types.js';
import { resolvePattern } from '../scheduler/validate.js';
import { findConfig } from './config.js';
import { integer, positiveNumber } from './device.js';

interface PatternForm {
  /** Names and defaults of the arguments. */
  readonly args: readonly (readonly [name: string, value: number])[];
  readonly help: string;
  readonly make: (values: readonly number[], seqLen: number) => HeadPattern;
}

const verticalSlash: PatternForm = {
  args: [
    ['COLUMNS', 1000],
    ['DIAGONALS', 6096],
  ],
  help: 'strongest columns, diagonals',
  make: ([verticalSize = 0, slashSize = 0]) => ({ kind: 'vertical_slash', verticalSize, slashSize }),
};
const aShape: PatternForm = {
  args: [
    ['FIRST', 1024],
    ['LOCAL', 4096],
  ],
  help: 'first keys, local keys',
  make: ([initSize = 0, localSize = 0]) => ({ kind: 'a_shape', initSize, localSize }),
};

/** Pattern names; those of MInference's configuration files are other names for the same. */
const FORMS: Readonly<Record<string, PatternForm>> = {
  dense: { args: [], help: 'full causal attention', make: () => ({ kind: 'dense' }) },
  a_shape: aShape,
  tri_shape: {
    args: [
      ['FIRST', 128],
      ['LOCAL', 3968],
      ['LAST', 100],
    ],
    help: 'first keys, local keys, last rows (see everything)',
    make: ([initSize = 0, localSize = 0, lastSize = 0]) => ({ kind: 'tri_shape', initSize, localSize, lastSize }),
  },
  vertical_slash: verticalSlash,
  block_sparse: {
    args: [['BLOCKS', 100]],
    help: 'blocks of 64 keys per block of 64 rows',
    make: ([topK = 0]) => ({ kind: 'block_sparse', topK }),
  },
  x_attention: {
    args: [
      ['STRIDE', 8],
      ['SHARE', 0.9],
    ],
    help: 'stride (8 or 16), share of the estimated attention',
    make: ([stride = 0, threshold = 0]) => ({ kind: 'x_attention', stride: stride as 8 | 16, threshold }),
  },
  flex_prefill: {
    args: [
      ['GAMMA', 0.9],
      ['TAU', 0.1],
      ['LEAST', 1024],
    ],
    help: 'share, tau, least budget; pattern chosen by the input',
    make: ([gamma = 0, tau = 0, minBudget = 0]) => ({ kind: 'flex_prefill', gamma, tau, minBudget }),
  },
  dilated1: { args: [], help: 'every other one of 8192 diagonals', make: () => dilated1() },
  dilated2: { args: [], help: '2048 diagonals, every other one of 4096 more', make: () => dilated2() },
  strided: {
    args: [
      ['STRIDE', 1024],
      ['LOCAL', 1024],
      ['FIRST', 64],
    ],
    help: 'distance between diagonals, local keys, first keys',
    make: ([stride = 0, localSize = 0, initSize = 0], seqLen) => strided(seqLen, { stride, localSize, initSize }),
  },
};
const ALIASES: Readonly<Record<string, string>> = { stream_llm: 'a_shape', vertical_and_slash: 'vertical_slash' };

const usage = (name: string, { args }: PatternForm): string =>
  args.length === 0 ? name : `${name}:${args.map(([arg]) => arg).join(',')}`;
const example = (name: string, { args }: PatternForm): string => [name, args.map(([, value]) => value).join(',')].join(':');

/** How `--pattern` is written, for help texts. */
export const PATTERN_SYNTAX = `Patterns (--pattern), with what a name alone means; several joined by "+" are given
to the heads in turn:
${Object.entries(FORMS)
  .map(([name, form]) => `  ${(form.args.length > 0 ? example(name, form) : name).padEnd(28)}${form.help}`)
  .join('\n')}
  a_shape+vertical_slash:500,3000+block_sparse:64    a mix, head by head
MInference's names work too: stream_llm is a_shape, vertical_and_slash vertical_slash.`;

/** A pattern that `--pattern` asks for: some depend on the length of the input. */
export type PatternRequest = (seqLen: number) => HeadPattern;

/** Reads `a_shape:1024,4096+block_sparse`: the patterns that the heads get in turn. Throws commander's usage error. */
export function parsePatterns(text: string): PatternRequest[] {
  return text.split('+').map((part) => {
    const [given = '', sizes, ...rest] = part.trim().split(':');
    const name = ALIASES[given] ?? given;
    const form = Object.hasOwn(FORMS, name) ? FORMS[name] : undefined;
    if (!form) {
      throw new InvalidArgumentError(`Unknown pattern "${given}". Allowed: ${Object.keys({ ...FORMS, ...ALIASES }).join(', ')}.`);
    }
    const values = sizes === undefined ? form.args.map(([, value]) => value) : sizes.split(',').map(Number);
    if (rest.length > 0 || values.length !== form.args.length || (sizes !== undefined && !/^[\d.,]+$/.test(sizes))) {
      const allowed = form.args.length === 0 ? `"${given}", alone` : `${usage(given, form)}, for example ${example(given, form)}`;
      throw new InvalidArgumentError(`"${part.trim()}": allowed is ${allowed}.`);
    }
    try {
      resolvePattern(name, form.make(values, 1));
    } catch (error) {
      throw new InvalidArgumentError(error instanceof Error ? error.message : String(error));
    }
    return (seqLen) => form.make(values, seqLen);
  });
}

/** A pattern as `--pattern` takes it; the fixed ones in words. */
export function patternText(pattern: HeadPattern): string {
  switch (pattern.kind) {
    case 'dense':
      return 'dense';
    case 'a_shape':
      return `a_shape:${pattern.initSize},${pattern.localSize}`;
    case 'vertical_slash':
      return `vertical_slash:${pattern.verticalSize},${pattern.slashSize}`;
    case 'block_sparse':
      return `block_sparse:${pattern.topK}`;
    case 'tri_shape':
      return `tri_shape:${pattern.initSize},${pattern.localSize},${pattern.lastSize}`;
    case 'x_attention':
      return `x_attention:${pattern.stride},${pattern.threshold}`;
    case 'flex_prefill':
      return `flex_prefill:${pattern.gamma ?? 0.9},${pattern.tau ?? 0.1},${pattern.minBudget ?? 1024}`;
    case 'static_vertical_slash':
      return `static (${pattern.columns.length} columns, ${pattern.runs.length / 2} runs)`;
  }
}

/** Options that choose what the heads attend to. */
export interface PatternOptions {
  readonly pattern?: readonly PatternRequest[];
  readonly config?: string;
  readonly configs?: string;
  readonly layer: number;
  readonly budgetRatio?: number;
  readonly startingLayer?: number;
  readonly vsOnly?: true | { readonly verticalSize: number; readonly slashSize: number };
}

/** Adds the options that choose what the heads attend to. */
export function addPatternOptions(command: Command): Command {
  return command
    .addOption(
      new Option('--pattern <patterns>', 'what the heads attend to (see below)').argParser(parsePatterns).conflicts('config'),
    )
    .option('--config <file>', "pattern configuration, MInference's JSON; or a model's name")
    .option('--configs <folder>', 'folder or URL that has the configurations of models')
    .addOption(new Option('--layer <n>', 'layer of --config, and for --starting-layer').argParser(integer(0, 100_000)).default(0))
    .addOption(new Option('--budget-ratio <x>', 'scales all budgets').argParser(positiveNumber))
    .addOption(new Option('--starting-layer <n>', 'layers before it are dense').argParser(integer(0, 100_000)))
    .addOption(
      new Option('--vs-only [sizes]', 'all heads vertical-slash: their own budgets, or COLUMNS,DIAGONALS').argParser(
        verticalSlashSizes,
      ),
    );
}

function verticalSlashSizes(text: string): { verticalSize: number; slashSize: number } {
  const [, verticalSize, slashSize] = /^(\d+),(\d+)$/.exec(text) ?? [];
  if (verticalSize === undefined || slashSize === undefined) {
    throw new InvalidArgumentError('Allowed: nothing, or COLUMNS,DIAGONALS, for example 1000,6096.');
  }
  return { verticalSize: Number(verticalSize), slashSize: Number(slashSize) };
}

/**
 * The patterns of `--config`, if given.
 *
 * @throws {@link MinferenceError} `file`, or `invalid-argument` when there is no such layer.
 */
export async function readPatternConfig(options: PatternOptions): Promise<readonly HeadPattern[] | undefined> {
  const { config: path, configs, layer } = options;
  if (path === undefined) {
    if (configs !== undefined) throw invalidArgument('--configs', configs, 'with --config and the name of a model');
    return undefined;
  }
  const { config, options: suitable } = await findConfig(path, configs);
  if (layer >= config.layers.length)
    throw invalidArgument('--layer', layer, `0 to ${config.layers.length - 1}, the layers of ${path}`);
  return patternsForLayer(config, layer, { ...suitable, ...layerOptions(options) });
}

/**
 * One pattern per head: those of the configuration, those of `--pattern` in turn, or `fallback`; scaled and replaced as the options say.
 *
 * @throws {@link MinferenceError} when the configuration is for another number of heads.
 */
export function headPatterns(
  options: PatternOptions,
  configured: readonly HeadPattern[] | undefined,
  input: { readonly numHeads: number; readonly seqLen: number },
  fallback: HeadPattern,
): HeadPattern[] {
  const { numHeads, seqLen } = input;
  if (configured) {
    if (configured.length === numHeads) return [...configured];
    throw new MinferenceError(
      'invalid-argument',
      `${options.config} has ${configured.length} heads in layer ${options.layer}, the input has ${numHeads}`,
      { argument: '--config', value: options.config, allowed: `a configuration of ${numHeads} heads` },
    );
  }
  const turn = options.pattern?.map((make) => make(seqLen)) ?? [fallback];
  const patterns = Array.from({ length: numHeads }, (_, head) => turn[head % turn.length] as HeadPattern);
  return adjustPatterns(patterns, options.layer, layerOptions(options));
}

function layerOptions({ budgetRatio, startingLayer, vsOnly }: PatternOptions): LayerPatternOptions {
  return {
    ...(budgetRatio === undefined ? {} : { budgetRatio }),
    ...(startingLayer === undefined ? {} : { startingLayer }),
    ...(vsOnly === undefined ? {} : { vsOnly }),
  };
}
