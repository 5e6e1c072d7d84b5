import { checkInteger, invalidArgument, MinferenceError } from '../errors.js';
import type { LanguageModel, ModelPrefillOptions } from '../model/runtime.js';
import type { Tokenizer } from '../model/types.js';
import { deriveSeed, Random } from '../reference/random.js';
import type { EvalMethod } from './methods.js';
import { PromptMaker } from './prompt.js';
import { englishSentences, textSentences } from './sentences.js';
import { ANSWER_TASKS, type AnswerTask, hasDepth, PROBLEMS, type Problem, score } from './tasks.js';

/** Everything that can be evaluated. */
export const TASKS = [...ANSWER_TASKS, 'perplexity'] as const;

/** One of {@link TASKS}. */
export type EvalTask = (typeof TASKS)[number];

/** What evaluations need of a model. */
export type EvalModel = Pick<LanguageModel, 'generate' | 'prefill' | 'prepare' | 'reset'>;

/** Options of {@link evaluate}. */
export interface EvalOptions {
  readonly task: EvalTask;
  /** Tokens of the prompts. */
  readonly seqLens: readonly number[];
  /** Prompts per length and depth, or windows of the text per length. */
  readonly samples: number;
  /** Where the answer lies, 0 (start of the text) to 1. Tasks without one depth ignore it. */
  readonly depths: readonly number[];
  /** The first is what the others are compared with. */
  readonly methods: readonly EvalMethod[];
  readonly seed: number;
  readonly tokenizer: Tokenizer;
  /** Ask through the model's chat template. */
  readonly chat: boolean;
  /** Text around the answers, or the text of `perplexity`. Default: generated English. */
  readonly text?: string;
  /** Loads the model with room for this many tokens. Called once. */
  readonly open: (contextLength: number) => Promise<EvalModel>;
  /** Chunks with which the sequence has fewer tokens than this attend densely whatever the method. Default 0: what a method is worth shows only where it is used. */
  readonly denseBelow?: number;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: { readonly fraction: number; readonly detail: string }) => void;
}

/** What one method scored at one length and depth. */
export interface EvalRow {
  readonly task: EvalTask;
  readonly method: string;
  readonly seqLen: number;
  /** 0 to 1; null where a task has no single depth. */
  readonly depth: number | null;
  readonly samples: number;
  /** Mean share of right answers, 0 to 1. */
  readonly accuracy?: number;
  /** Share of samples whose generated text is that of the first method. */
  readonly agreement?: number;
  /** Of all samples together. */
  readonly perplexity?: number;
  /** Query-key pairs computed over the causal total, 0 to 1: of all heads in the first sample of this length, in a pass of its own. */
  readonly density: number;
  /** Median wall time of the prefills that the answers come from. None of them is inspected: that would make layers wait. */
  readonly prefillMs: number;
}

/**
 * Runs a task with every method on the same prompts.
 *
 * @throws `MinferenceError` for options out of range, a length that the text or the question does not fit; or what loading and running
 * the model throws; or the signal's reason.
 */
export async function evaluate(options: EvalOptions): Promise<EvalRow[]> {
  checkInteger('samples', options.samples, 1, 1e6);
  if (options.methods.length === 0) throw invalidArgument('methods', options.methods, 'at least one');
  for (const depth of options.depths)
    if (!(depth >= 0 && depth <= 1)) throw invalidArgument('depths', depth, 'numbers from 0 to 1');
  for (const seqLen of options.seqLens) checkInteger('seqLens', seqLen, 2, 2 ** 26);
  const { task } = options;
  return task === 'perplexity' ? evaluatePerplexity(options) : evaluateAnswers(options, task);
}

/** A prompt and what it asks for. */
interface Sample {
  readonly depth: number | null;
  readonly tokens: readonly number[];
  readonly problem: Problem;
  /** Tokens that an answer may take. */
  readonly maxTokens: number;
}

/** Tokens beyond the answers' own that a model may use before and between them. */
const SLACK = 8;

/** The prompts of one length: `samples` for each depth. They depend on the seed, the task, the length and the depth alone. */
export function makeSamples(
  options: Pick<EvalOptions, 'depths' | 'samples' | 'seed' | 'text' | 'tokenizer' | 'chat'>,
  task: AnswerTask,
  seqLen: number,
  maker = new PromptMaker(options.tokenizer, options.chat),
): Sample[] {
  const depths = hasDepth(task) ? options.depths : [null];
  return depths.flatMap((depth) =>
    Array.from({ length: options.samples }, (_, i) => {
      const random = new Random(deriveSeed(options.seed, `${task} ${seqLen} ${depth} ${i}`));
      const sentences = options.text === undefined ? englishSentences(random) : textSentences(options.text, random);
      const problem = PROBLEMS[task](random, depth ?? 0, sentences);
      const maxTokens = problem.answers.reduce((sum, answer) => sum + maker.count(answer) + 1, SLACK);
      return { depth, tokens: maker.make(problem, seqLen).tokens, problem, maxTokens };
    }),
  );
}

async function evaluateAnswers(options: EvalOptions, task: AnswerTask): Promise<EvalRow[]> {
  const { methods, seqLens, tokenizer, signal } = options;
  const maker = new PromptMaker(tokenizer, options.chat);
  const rows: EvalRow[] = [];
  const total = seqLens.length * methods.length;
  const prompts = seqLens.map((seqLen) => makeSamples(options, task, seqLen, maker));
  const model = await options.open(Math.max(...prompts.flat().map((s) => s.tokens.length + s.maxTokens)));
  for (const [l, seqLen] of seqLens.entries()) {
    const samples = prompts[l] ?? [];
    let reference: readonly Answered[] | undefined;
    for (const [m, method] of methods.entries()) {
      const attention = attentionOf(options, method, seqLen);
      const density = await measureDensity(model, samples[0]?.tokens ?? [], attention, signal);
      const answered: Answered[] = [];
      for (const [i, sample] of samples.entries()) {
        const report = (share: number): void =>
          options.onProgress?.({
            fraction: (l * methods.length + m + (i + share) / samples.length) / total,
            detail: `${seqLen} tokens, ${method.name}, ${i + 1} of ${samples.length}`,
          });
        report(0);
        answered.push(await answer(model, sample, tokenizer, attention, { report, signal }));
      }
      reference ??= answered;
      for (const depth of new Set(samples.map((s) => s.depth))) {
        const own = samples.flatMap((s, i) => (s.depth === depth ? [i] : []));
        const mean = (of: (i: number) => number): number => own.reduce((sum, i) => sum + of(i), 0) / own.length;
        rows.push({
          task,
          method: method.name,
          seqLen,
          depth,
          samples: own.length,
          accuracy: mean((i) => answered[i]?.score ?? 0),
          agreement: mean((i) => Number(answered[i]?.text === reference?.[i]?.text)),
          density,
          prefillMs: median(own.map((i) => answered[i]?.prefillMs ?? 0)),
        });
      }
    }
  }
  return rows;
}

/** What the heads attend to in a method's prompts. */
type Attention = Required<Pick<ModelPrefillOptions, 'patterns' | 'denseBelow'>>;

function attentionOf({ denseBelow = 0 }: EvalOptions, method: EvalMethod, seqLen: number): Attention {
  return { patterns: method.patterns(seqLen), denseBelow };
}

/** Density of a prefill, whose time does not count: it also compiles the kernels and warms the GPU up. */
async function measureDensity(
  model: EvalModel,
  tokens: readonly number[],
  attention: Attention,
  signal: AbortSignal | undefined,
): Promise<number> {
  await model.prepare(attention.patterns);
  model.reset();
  const { density = Number.NaN } = await model.prefill(tokens, { ...attention, inspect: true, ...(signal ? { signal } : {}) });
  return density;
}

interface Answered {
  readonly text: string;
  readonly score: number;
  readonly prefillMs: number;
}

/** The model's greedy answer. */
async function answer(
  model: EvalModel,
  sample: Sample,
  tokenizer: Tokenizer,
  attention: Attention,
  { report, signal }: { readonly report: (share: number) => void; readonly signal: AbortSignal | undefined },
): Promise<Answered> {
  model.reset();
  const ids: number[] = [];
  const start = performance.now();
  let prefillMs = 0;
  const answer = model.generate(sample.tokens, {
    maxTokens: sample.maxTokens,
    ...attention,
    ...(signal ? { signal } : {}),
    onProgress: ({ fraction }) => {
      prefillMs = performance.now() - start;
      report(fraction);
    },
  });
  for await (const id of answer) ids.push(id);
  const text = tokenizer.decode(ids);
  return { text, score: score(sample.problem, text), prefillMs };
}

async function evaluatePerplexity(options: EvalOptions): Promise<EvalRow[]> {
  const { methods, seqLens, samples, tokenizer, signal, task } = options;
  if (options.text === undefined) throw invalidArgument('text', options.text, 'the text whose perplexity is asked for');
  const ids = tokenizer.encode(options.text, false);
  const begin = tokenizer.encode('');
  const longest = Math.max(...seqLens) - begin.length;
  if (ids.length < longest) {
    throw new MinferenceError('invalid-argument', `the text has ${ids.length} tokens, fewer than the ${longest} asked for`, {
      argument: 'text',
      value: ids.length,
      allowed: `at least ${longest} tokens`,
    });
  }
  const rows: EvalRow[] = [];
  const model = await options.open(Math.max(...seqLens));
  for (const [l, seqLen] of seqLens.entries()) {
    const count = seqLen - begin.length;
    // Windows spread over the text; they overlap when it is short.
    const windows = Array.from({ length: samples }, (_, i) => {
      const at = samples === 1 ? 0 : Math.round((i * (ids.length - count)) / (samples - 1));
      return [...begin, ...ids.slice(at, at + count)];
    });
    for (const [m, method] of methods.entries()) {
      const attention = attentionOf(options, method, seqLen);
      const density = await measureDensity(model, windows[0] ?? [], attention, signal);
      const times: number[] = [];
      let sum = 0;
      let predicted = 0;
      for (const [i, tokens] of windows.entries()) {
        const start = performance.now();
        model.reset();
        const { logProbs } = await model.prefill(tokens, {
          ...attention,
          logProbs: true,
          ...(signal ? { signal } : {}),
          onProgress: ({ fraction }) =>
            options.onProgress?.({
              fraction: (l * methods.length + m + (i + fraction) / samples) / (seqLens.length * methods.length),
              detail: `${seqLen} tokens, ${method.name}, ${i + 1} of ${samples}`,
            }),
        });
        times.push(performance.now() - start);
        for (const p of logProbs ?? []) sum += p;
        predicted += logProbs?.length ?? 0;
      }
      const perplexity = Math.exp(-sum / predicted);
      rows.push({ task, method: method.name, seqLen, depth: null, samples, perplexity, density, prefillMs: median(times) });
    }
  }
  return rows;
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return ((sorted[(sorted.length - 1) >> 1] ?? 0) + (sorted[sorted.length >> 1] ?? 0)) / 2;
}
