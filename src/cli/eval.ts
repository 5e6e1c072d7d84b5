import { writeFile } from 'node:fs/promises';
import { InvalidArgumentError, Option } from 'commander';
import { invalidArgument } from '../errors.js';
import { type EvalMethod, METHODS, methodPattern } from '../eval/methods.js';
import { type EvalRow, type EvalTask, evaluate, TASKS } from '../eval/run.js';
import type { LanguageModel } from '../model/runtime.js';
import type { PatternConfig } from '../patterns/config.js';
import type { CliContext, CommandResult, RegisterCommand } from './app.js';
import { assetPath } from './assets.js';
import { readConfigFile } from './config.js';
import { integer, withDevice } from './device.js';
import { accuracySvg } from './eval_heatmap.js';
import { formatCount, formatMs, formatPercent, formatTable } from './format.js';
import { inTurn, readTextFile } from './generate.js';
import { addModelOptions, loadWeights, type ModelOptions, withModelFiles } from './model.js';
import { type PatternRequest, parsePatterns } from './patterns.js';
import type { Progress } from './progress.js';
import { SHIPPED_MODEL, shippedPatterns } from './shipped.js';

interface EvalCommandOptions extends Omit<ModelOptions, 'model'> {
  readonly model?: string;
  readonly task: EvalTask;
  readonly seqLen: readonly number[];
  readonly samples: number;
  readonly depths: readonly number[];
  readonly methods: readonly MethodRequest[];
  readonly config?: string;
  readonly text?: string;
  readonly raw?: true;
  readonly seed: number;
  readonly heatmap?: string;
}

/** A method by its name; with `turn`, patterns with sizes of their own. */
interface MethodRequest {
  readonly name: string;
  readonly turn?: readonly PatternRequest[];
}

const MAX_LENGTH = 2 ** 26;
/** Stands for every method. */
const ALL = 'all';
/** The text of `perplexity` unless given. */
const SAMPLE_TEXT = 'text/austen-persuasion-ch1-2.txt';

const NOTES = `
Tasks:
  passkey      a number hidden in a text about other things, at every depth
  needle       a fact in words, likewise
  kv           the code of one key, in a text that lists nothing but such pairs
  variables    all variables that have a value by way of other variables
  perplexity   of a text (--text), window by window

Prompts have exactly --seq-len tokens; all methods get the same ones, and dense
attention is always among them. Answers are greedy and must match exactly.

Methods: ${METHODS.slice(0, 5).join(', ')},
${METHODS.slice(5).join(', ')}; ${ALL} means each of them. Their budgets grow with the
length. minference takes its patterns from --config; without it, the model that
ships has those that were searched for it, and in others all heads are
vertical-slash. A method may also be a pattern with sizes, as --pattern of
"minference prefill" takes it: a_shape:64,512. All are sparse from the first
token on, unless --dense-below says otherwise.

Prefill times are medians of the prompts' own prefills. Density comes from one more
prefill per method and length, which is not timed: it reads every index back.

Examples:
  minference eval passkey --seq-len 2048 --methods ${ALL}
  minference eval passkey --model ./folder --seq-len 8192,32768 --heatmap passkey.svg
  minference eval kv --model model.gguf --methods minference,a_shape,flex_prefill
  minference eval perplexity --model model.gguf --text book.txt --seq-len 16384`;

/** Adds `minference eval`: what sparse attention does to a whole model's answers. */
export const registerEval: RegisterCommand = (program, action) => {
  addModelOptions(
    program
      .command('eval')
      .description('measure what sparse prefill does to the answers of a whole model')
      .argument('<task>', TASKS.join(', '), evalTask)
      .addOption(new Option('--seq-len <n,...>', 'tokens of the prompts').argParser(lengths).default([4096], '4096'))
      .addOption(new Option('--samples <n>', 'prompts per length and depth').argParser(integer(1, 1_000_000)).default(3))
      .addOption(
        new Option('--depths <percent,...>', 'where in the text the answer is')
          .argParser(depths)
          .default([0, 0.25, 0.5, 0.75, 1], '0,25,50,75,100'),
      )
      .addOption(
        new Option('--methods <method,...>', 'see below').argParser(methodList).default([{ name: 'minference' }], 'minference'),
      )
      .option('--config <file>', "pattern configuration of minference, MInference's JSON")
      .option('--text <file>', 'text to hide answers in, or to measure the perplexity of; - is stdin')
      .option('--raw', 'ask without the chat template')
      .addOption(new Option('--seed <n>', 'of the prompts').argParser(integer(0, 2 ** 32 - 1)).default(1))
      .option('--heatmap <file>', 'draw the share of right answers by depth and length as SVG'),
    'the small one that ships with this package',
  )
    .addHelpText('after', NOTES)
    .action((task: EvalTask, options: Omit<EvalCommandOptions, 'task'>) => action<EvalCommandOptions>(run)({ ...options, task }));
};

function evalTask(text: string): EvalTask {
  if (!TASKS.some((task) => task === text)) throw new InvalidArgumentError(`Allowed: ${TASKS.join(', ')}.`);
  return text as EvalTask;
}

const lengths = (text: string): number[] => text.split(',').map(integer(2, MAX_LENGTH));
const depths = (text: string): number[] => text.split(',').map((part) => integer(0, 100)(part) / 100);

/** Methods between commas: those before a digit belong to a pattern's sizes. */
function methodList(text: string): MethodRequest[] {
  return text.split(/,(?!\d)/).flatMap((name): MethodRequest[] => {
    if (name === ALL) return METHODS.map((each) => ({ name: each }));
    if (METHODS.includes(name)) return [{ name }];
    if (name.includes(':')) return [{ name, turn: parsePatterns(name) }];
    throw new InvalidArgumentError(`Unknown method "${name}". Allowed: ${METHODS.join(', ')}, ${ALL}, or a pattern with sizes.`);
  });
}

async function run(context: CliContext, options: EvalCommandOptions): Promise<CommandResult> {
  const { task } = options;
  if (task === 'perplexity' && options.heatmap !== undefined) {
    throw invalidArgument('--heatmap', options.heatmap, 'a task with answers: perplexity has no depths');
  }
  const modelOptions: ModelOptions = { ...options, model: options.model ?? assetPath(SHIPPED_MODEL, '--model') };
  const given = options.config === undefined ? undefined : await readConfigFile(options.config);
  const configs = new Map<number, PatternConfig>();
  for (const seqLen of options.seqLen) {
    const own = options.model === undefined ? assetPath(shippedPatterns(seqLen), '--config') : undefined;
    const config = given ?? (own === undefined ? undefined : await readConfigFile(own));
    if (config) configs.set(seqLen, config);
  }
  const textFile = options.text ?? (task === 'perplexity' ? assetPath(SAMPLE_TEXT, '--text') : undefined);
  const text = textFile === undefined ? undefined : await readTextFile(textFile);
  return withModelFiles(context, modelOptions, (model) =>
    withDevice(context, options, async (device) => {
      const { tokenizer, loaded } = model;
      const methods = methodsOf(options.methods, configs, loaded.config.numHeads);
      let runtime: LanguageModel | undefined;
      let progress: Progress | undefined;
      try {
        const rows = await evaluate({
          task,
          seqLens: options.seqLen,
          samples: options.samples,
          depths: options.depths,
          methods,
          seed: options.seed,
          tokenizer,
          chat: !options.raw && loaded.config.chatTemplate !== undefined,
          ...(text === undefined ? {} : { text }),
          ...(options.denseBelow === undefined ? {} : { denseBelow: options.denseBelow }),
          open: async (contextLength) => {
            runtime = await loadWeights(context, device, model, modelOptions, { contextLength });
            progress = context.progress(`eval ${task}`);
            return runtime;
          },
          signal: context.signal,
          onProgress: ({ fraction, detail }) => progress?.update(fraction, detail),
        });
        const { name = modelOptions.model } = loaded.config;
        const about = { device: runtime?.profile.name, tier: runtime?.profile.tier, model: modelOptions.model, name };
        return await report(options, about, rows);
      } finally {
        progress?.stop();
        runtime?.destroy();
      }
    }),
  );
}

/**
 * The methods of a run, dense first.
 *
 * @param configs pattern files by length
 */
function methodsOf(
  requests: readonly MethodRequest[],
  configs: ReadonlyMap<number, PatternConfig>,
  numHeads: number,
): EvalMethod[] {
  const others = requests.filter(({ name }) => name !== 'dense');
  return [{ name: 'dense' }, ...others].map(({ name, turn }: MethodRequest) => ({
    name,
    patterns: (seqLen) => {
      if (turn) return inTurn(turn, seqLen, numHeads);
      return (name === 'minference' ? configs.get(seqLen) : undefined) ?? methodPattern(name, seqLen) ?? { kind: 'dense' };
    },
  }));
}

/** What was evaluated, and where. */
interface About {
  readonly device: string | undefined;
  readonly tier: string | undefined;
  readonly model: string;
  readonly name: string;
}

async function report(options: EvalCommandOptions, about: About, rows: readonly EvalRow[]): Promise<CommandResult> {
  const { task, heatmap, seed, samples } = options;
  if (heatmap !== undefined) await writeFile(heatmap, accuracySvg(rows, `${task}, ${about.name}`));
  const methods = [...new Set(rows.map((r) => r.method))];
  const totals = totalsOf(rows, methods);
  const tables =
    task === 'perplexity'
      ? [perplexityTable(rows)]
      : [...(rows[0]?.depth === null ? [] : [depthTable(rows, methods)]), totalsTable(totals)];
  return {
    text: [
      `${task}, ${about.name}, ${samples} ${task === 'perplexity' ? 'windows' : 'prompts per length and depth'}, seed ${seed}\n`,
      ...tables,
      ...(heatmap === undefined ? [] : [`${heatmap}: right answers by depth and length\n`]),
    ].join('\n'),
    json: { ...about, task, seed, ...(heatmap === undefined ? {} : { heatmap }), totals, rows },
  };
}

/** A method at one length, over all depths. */
interface Total {
  readonly method: string;
  readonly seqLen: number;
  /** Prompts or windows. */
  readonly samples: number;
  readonly accuracy?: number;
  /** Accuracy less that of dense attention, in percentage points. */
  readonly points?: number;
  readonly agreement?: number;
  readonly perplexity?: number;
  readonly density: number;
  readonly prefillMs: number;
  /** Over dense attention. */
  readonly speedup: number;
}

/** Every method against dense, by length. */
function totalsOf(rows: readonly EvalRow[], methods: readonly string[]): Total[] {
  return [...new Set(rows.map((r) => r.seqLen))].flatMap((seqLen) => {
    const of = (method: string) => {
      const own = rows.filter((r) => r.seqLen === seqLen && r.method === method);
      // Depths have the same number of samples each.
      const mean = (value: (r: EvalRow) => number | undefined): number =>
        own.reduce((sum, r) => sum + (value(r) ?? Number.NaN), 0) / own.length;
      return { samples: own.reduce((sum, r) => sum + r.samples, 0), mean, perplexity: own[0]?.perplexity };
    };
    const dense = of('dense');
    return methods.map((method): Total => {
      const { samples, mean, perplexity } = of(method);
      const accuracy = mean((r) => r.accuracy);
      const answers = {
        accuracy,
        points: 100 * (accuracy - dense.mean((r) => r.accuracy)),
        agreement: mean((r) => r.agreement),
      };
      const prefillMs = mean((r) => r.prefillMs);
      return {
        method,
        seqLen,
        samples,
        ...(perplexity === undefined ? answers : { perplexity }),
        density: mean((r) => r.density),
        prefillMs,
        speedup: dense.mean((r) => r.prefillMs) / prefillMs,
      };
    });
  });
}

/** Right answers of each method by length and depth. */
function depthTable(rows: readonly EvalRow[], methods: readonly string[]): string {
  const places = rows.filter((r) => r.method === methods[0]);
  return formatTable(
    [
      ['tokens', 'depth', ...methods],
      ...places.map(({ seqLen, depth }) => [
        formatCount(seqLen),
        `${Math.round(100 * (depth ?? 0))} %`,
        ...methods.map((method) => {
          const row = rows.find((r) => r.method === method && r.seqLen === seqLen && r.depth === depth);
          return formatPercent(row?.accuracy ?? 0);
        }),
      ]),
    ],
    [0, 1, ...methods.map((_, i) => i + 2)],
  );
}

function totalsTable(totals: readonly Total[]): string {
  return formatTable(
    [
      ['tokens', 'method', 'right', 'as dense', 'density', 'prefill', 'speed-up'],
      ...totals.map((t) => [
        formatCount(t.seqLen),
        t.method,
        formatPercent(t.accuracy ?? 0),
        formatPercent(t.agreement ?? 0),
        formatPercent(t.density),
        formatMs(t.prefillMs),
        `${t.speedup.toFixed(2)}x`,
      ]),
    ],
    [0, 2, 3, 4, 5, 6],
  );
}

function perplexityTable(rows: readonly EvalRow[]): string {
  return formatTable(
    [
      ['tokens', 'method', 'perplexity', 'over dense', 'density', 'prefill', 'speed-up'],
      ...rows.map((row) => {
        const dense = rows.find((r) => r.seqLen === row.seqLen && r.method === 'dense') ?? row;
        const { perplexity = 0 } = row;
        return [
          formatCount(row.seqLen),
          row.method,
          perplexity.toPrecision(5),
          formatPercent(perplexity / (dense.perplexity ?? 1) - 1),
          formatPercent(row.density),
          formatMs(row.prefillMs),
          `${(dense.prefillMs / row.prefillMs).toFixed(2)}x`,
        ];
      }),
    ],
    [0, 2, 3, 4, 5, 6],
  );
}
