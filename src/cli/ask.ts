import { Option } from 'commander';
import { profileDevice } from '../device/profile.js';
import { factDocument } from '../eval/document.js';
import { PromptMaker } from '../eval/prompt.js';
import { textSentences } from '../eval/sentences.js';
import { type Problem, score } from '../eval/tasks.js';
import type { LanguageModel, ModelPatterns } from '../model/runtime.js';
import { Random } from '../reference/random.js';
import type { CliContext, CommandResult, RegisterCommand } from './app.js';
import { assetPath } from './assets.js';
import { integer, withDevice } from './device.js';
import { formatBytes, formatCount, formatMs, formatPercent, formatTable } from './format.js';
import { patternsOption, readTextFile } from './generate.js';
import { addModelOptions, type CliModel, loadWeights, type ModelOptions, memoryOf, withModelFiles } from './model.js';
import { PATTERN_SYNTAX } from './patterns.js';
import { SHIPPED_MODEL, shippedPatterns } from './shipped.js';

interface AskCommandOptions extends Omit<ModelOptions, 'model'> {
  readonly model?: string;
  readonly seqLen?: number;
  readonly facts: number;
  readonly document?: string;
  readonly patterns?: string;
  readonly seed: number;
}

const MAX_LENGTH = 2 ** 26;
/** Tokens of the document unless given: what takes seconds on a GPU, and less than two minutes on a CPU. */
const DOCUMENT_LENGTH = { software: 8192, hardware: 32_768 };
const TEXT = 'text/austen-persuasion-ch1-2.txt';
/** Tokens that an answer may take beyond those of the right one. */
const SLACK = 8;

const NOTES = `
Reads a long document with dense and with sparse attention, and asks the same
questions after each. The document is a novel with facts scattered over it: a pass
key, secrets of soups, codes of keys. Questions look at the whole document.

--patterns is "minference", vertical-slash with budgets that grow with the document;
a pattern file; or patterns as below. Unless given, it is the patterns that were
searched for the model that ships with this package, and "minference" for others.

${PATTERN_SYNTAX.replace('--pattern)', '--patterns)')}

Examples:
  minference ask
  minference ask --seq-len 65536 --facts 12 --patterns flex_prefill
  minference ask --model SmolLM2.gguf --document book.txt --seq-len 4096`;

/** Adds `minference ask`: questions about a long document, dense against sparse. */
export const registerAsk: RegisterCommand = (program, action) => {
  addModelOptions(
    program
      .command('ask')
      .description('read a long document with dense and with sparse attention; compare times and answers')
      .addOption(new Option('--seq-len <n>', 'tokens of the document').argParser(integer(2, MAX_LENGTH)))
      .addOption(new Option('--facts <n>', 'facts to hide and to ask for').argParser(integer(1, 1000)).default(6))
      .option('--document <file>', 'text to hide them in; - is stdin')
      .option('--patterns <patterns>', 'what heads attend to (see below)')
      .addOption(new Option('--seed <n>', 'of facts and places').argParser(integer(0, 2 ** 32 - 1)).default(1)),
    'the small one that ships with this package',
  )
    .addHelpText('after', NOTES)
    .action(action<AskCommandOptions>(run));
};

/** A question about the document. */
interface Question {
  readonly problem: Problem;
  /** Where the answer lies in the document, 0 to 1. */
  readonly depth: number;
  readonly ids: readonly number[];
  /** Tokens that an answer may take. */
  readonly maxTokens: number;
}

interface Reading {
  readonly method: string;
  readonly prefillMs: number;
  readonly density: number;
  /** Time of all questions and answers. */
  readonly answersMs: number;
  readonly answers: readonly { readonly text: string; readonly right: boolean }[];
}

async function run(context: CliContext, options: AskCommandOptions): Promise<CommandResult> {
  const modelOptions: ModelOptions = { ...options, model: options.model ?? assetPath(SHIPPED_MODEL, '--model') };
  const chosen = options.patterns === undefined ? undefined : await patternsOption(options.patterns);
  const text = await readTextFile(options.document ?? assetPath(TEXT, '--document'));
  return withModelFiles(context, modelOptions, (model) =>
    withDevice(context, options, async (device) => {
      const { software } = profileDevice(device, options.tier);
      const seqLen = options.seqLen ?? DOCUMENT_LENGTH[software ? 'software' : 'hardware'];
      const own = options.model === undefined ? assetPath(shippedPatterns(seqLen), '--patterns') : 'minference';
      const patternsOf = chosen ?? (await patternsOption(own));
      const { document, questions } = makeDocument(model, options, text, seqLen);
      const contextLength = seqLen + Math.max(...questions.map((q) => q.ids.length + q.maxTokens));
      const runtime = await loadWeights(context, device, model, modelOptions, { contextLength });
      const progress = context.progress('ask');
      try {
        const sparse = patternsOf(seqLen, model.loaded.config.numHeads);
        const denseBelow = options.denseBelow ?? 0;
        // Not timed: compiles the kernels, warms a GPU up, and finds out how much the patterns leave out.
        await runtime.prepare(sparse);
        const { density = Number.NaN } = await runtime.prefill(document, {
          patterns: sparse,
          denseBelow,
          inspect: true,
          signal: context.signal,
          onProgress: ({ fraction }) => progress.update(fraction / 3, 'warm-up'),
        });
        const read = (method: string, patterns: ModelPatterns, share: number, step: number): Promise<Reading> =>
          readDocument(runtime, model, document, questions, { patterns, denseBelow }, context.signal, (fraction) =>
            progress.update((step + fraction) / 3, method),
          ).then((reading) => ({ method, density: share, ...reading }));
        const readings = [
          await read('dense', { kind: 'dense' }, 1, 1),
          await read(options.patterns ?? 'minference', sparse, density, 2),
        ];
        progress.stop();
        return report(modelOptions, model, runtime, software, questions, seqLen, readings);
      } finally {
        progress.stop();
        runtime.destroy();
      }
    }),
  );
}

function makeDocument(
  { loaded, tokenizer }: CliModel,
  options: AskCommandOptions,
  text: string,
  seqLen: number,
): { readonly document: readonly number[]; readonly questions: readonly Question[] } {
  const random = new Random(options.seed);
  const maker = new PromptMaker(tokenizer, loaded.config.chatTemplate !== undefined);
  const facts = factDocument(random, options.facts, textSentences(text, random));
  const questions = facts.problems.map((problem, i) => ({
    problem,
    depth: facts.inserts[i]?.depth ?? 0,
    ids: maker.question(problem),
    maxTokens: problem.answers.reduce((sum, answer) => sum + maker.count(answer), SLACK),
  }));
  return { document: maker.document(facts, seqLen).tokens, questions };
}

/** Prefills the document, then asks question after question, each behind the document alone. */
async function readDocument(
  runtime: LanguageModel,
  { tokenizer }: CliModel,
  document: readonly number[],
  questions: readonly Question[],
  attention: { readonly patterns: ModelPatterns; readonly denseBelow: number },
  signal: AbortSignal,
  onProgress: (fraction: number) => void,
): Promise<Omit<Reading, 'method' | 'density'>> {
  runtime.reset();
  const start = performance.now();
  await runtime.prefill(document, { ...attention, signal, onProgress: ({ fraction }) => onProgress(fraction) });
  const prefillMs = performance.now() - start;
  const answers: { text: string; right: boolean }[] = [];
  for (const { ids, maxTokens, problem } of questions) {
    runtime.truncate(document.length);
    const made: number[] = [];
    for await (const id of runtime.generate(ids, { maxTokens, patterns: { kind: 'dense' }, signal })) made.push(id);
    const text = tokenizer.decode(made);
    answers.push({ text, right: score(problem, text) === 1 });
  }
  return { prefillMs, answers, answersMs: performance.now() - start - prefillMs };
}

function report(
  options: ModelOptions,
  { loaded }: CliModel,
  runtime: LanguageModel,
  software: boolean,
  questions: readonly Question[],
  seqLen: number,
  readings: readonly Reading[],
): CommandResult {
  const [dense, sparse] = readings as [Reading, Reading];
  const name = loaded.config.name ?? options.model;
  const speedup = dense.prefillMs / sparse.prefillMs;
  const { weights, cache, activations, attention } = memoryOf(runtime);
  const answerOf = (r: Reading, i: number): string => {
    const { text = '', right = false } = r.answers[i] ?? {};
    const line = text.trim().split('\n')[0] ?? '';
    return `${line.length > 24 ? `${line.slice(0, 23)}…` : line} ${right ? '✓' : '✗'}`;
  };
  const row = (label: string, of: (r: Reading) => string): string[] => [label, ...readings.map(of)];
  const tables = [
    formatTable([
      ['device', runtime.profile.name],
      ['tier', `${runtime.profile.tier}${software ? ' (software adapter: times say nothing about GPUs)' : ''}`],
      ['model', `${name}, ${formatBytes(weights)} on the GPU`],
      ['document', `${formatCount(seqLen)} tokens, ${questions.length} facts`],
    ]),
    formatTable(
      [
        row('', (r) => r.method),
        row('prefill', (r) => formatMs(r.prefillMs)),
        row('tokens/s', (r) => formatCount(Math.round((1000 * seqLen) / r.prefillMs))),
        row('density', (r) => formatPercent(r.density)),
        row('right answers', (r) => `${r.answers.filter((a) => a.right).length} of ${r.answers.length}`),
      ],
      [1, 2],
    ),
    formatTable([
      ['at', 'question', ...readings.map((r) => r.method)],
      ...questions.map((q, i) => [formatPercent(q.depth), q.problem.question, ...readings.map((r) => answerOf(r, i))]),
    ]),
    `speed-up ${speedup.toFixed(2)}x; GPU memory ${formatBytes(weights + cache + activations + attention)}\n`,
  ];
  return {
    text: tables.join('\n'),
    json: {
      device: runtime.profile.name,
      tier: runtime.profile.tier,
      model: options.model,
      name,
      seqLen,
      speedup,
      memory: { weights, cache, activations, attention },
      readings: readings.map(({ method, prefillMs, density, answersMs, answers }) => ({
        method,
        prefillMs,
        density,
        answersMs,
        accuracy: answers.filter((a) => a.right).length / answers.length,
        answers: answers.map(({ text, right }, i) => {
          const { problem, depth } = questions[i] as Question;
          return { question: problem.question, depth, expected: problem.answers, text, right };
        }),
      })),
    },
  };
}
