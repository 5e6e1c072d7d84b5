import { readFile } from 'node:fs/promises';
import process from 'node:process';
import { InvalidArgumentError, Option } from 'commander';
import { invalidArgument, MinferenceError } from '../errors.js';
import { methodPattern } from '../eval/methods.js';
import type { LanguageModel, ModelPatterns } from '../model/runtime.js';
import type { ChatMessage } from '../model/types.js';
import type { CliContext, CommandResult, RegisterCommand } from './app.js';
import { readConfigFile } from './config.js';
import { integer, positiveNumber, withDevice } from './device.js';
import { formatBytes, formatCount, formatMs, formatTable } from './format.js';
import { addModelOptions, type CliModel, loadWeights, type ModelOptions, memoryOf, withModelFiles } from './model.js';
import { PATTERN_SYNTAX, type PatternRequest, parsePatterns } from './patterns.js';

interface GenerateCommandOptions extends ModelOptions {
  readonly prompt?: string;
  readonly promptFile?: string;
  readonly system?: string;
  readonly raw?: true;
  readonly maxTokens: number;
  readonly temperature: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly seed?: number;
  readonly patterns: string;
  readonly context?: number;
}

const MAX_LENGTH = 2 ** 26;

const NOTES = `
The text goes to stdout as it comes, everything else to stderr.

--patterns says what the heads attend to in the prompt: "dense"; "minference",
vertical-slash with budgets that grow with the prompt; a pattern file; or
patterns as below. Sparse attention starts at --dense-below (4096 unless given);
chunks of fewer than 64 tokens attend densely unless that is 0.

${PATTERN_SYNTAX.replace('--pattern)', '--patterns)')}

Examples:
  minference generate --model SmolLM2.gguf --prompt "Why is the sky blue?"
  minference generate --model owner/name --prompt-file book.txt --patterns minference
  git diff | minference generate --model ./folder --prompt-file - --system "Review this."`;

/** Adds `minference generate`: a prompt through a whole model, its answer as it comes. */
export const registerGenerate: RegisterCommand = (program, action) => {
  addModelOptions(
    program
      .command('generate')
      .description('prefill a prompt with sparse attention and generate text with a whole model')
      .addOption(new Option('--prompt <text>', 'what the user says').conflicts('promptFile'))
      .option('--prompt-file <file>', 'the same from a file; - is stdin')
      .addOption(new Option('--system <text>', 'system message').conflicts('raw'))
      .option('--raw', 'complete the prompt as it is, without the chat template')
      .addOption(new Option('--max-tokens <n>', 'tokens to generate at most').argParser(integer(1, MAX_LENGTH)).default(256))
      .addOption(new Option('--temperature <t>', '0: always the most probable token').argParser(temperature).default(0))
      .addOption(new Option('--top-k <n>', 'draw from the n most probable tokens').argParser(integer(1, MAX_LENGTH)))
      .addOption(new Option('--top-p <p>', 'draw from the most probable tokens that reach p').argParser(positiveNumber))
      .addOption(new Option('--seed <n>', 'of the draws').argParser(integer(0, 2 ** 32 - 1)))
      .option('--patterns <patterns>', 'what heads attend to in the prompt (see below)', 'dense')
      .addOption(
        new Option('--context <n>', 'tokens to keep room for; default: prompt and answer').argParser(integer(1, MAX_LENGTH)),
      ),
  )
    .addHelpText('after', NOTES)
    .action(action<GenerateCommandOptions>(run));
};

function temperature(text: string): number {
  return /^0*\.?0*$/.test(text) && /0/.test(text) ? 0 : positiveNumber(text);
}

async function run(context: CliContext, options: GenerateCommandOptions): Promise<CommandResult> {
  const prompt = await promptText(options);
  const patterns = await patternsOption(options.patterns);
  return withModelFiles(context, options, async (model) => {
    const tokens = promptTokens(context, options, model, prompt);
    const { config } = model.loaded;
    const contextLength = options.context ?? tokens.length + options.maxTokens;
    if (tokens.length + options.maxTokens > contextLength) {
      throw new MinferenceError(
        'invalid-argument',
        `--context is ${contextLength}; the prompt has ${tokens.length} tokens, and --max-tokens asks for ${options.maxTokens}`,
        { argument: '--context', value: contextLength, allowed: `at least ${tokens.length + options.maxTokens}` },
      );
    }
    if (contextLength > config.contextLength) {
      context.note(
        `note: the model was made for ${formatCount(config.contextLength)} tokens; this needs ${formatCount(contextLength)}`,
      );
    }
    return withDevice(context, options, async (device) => {
      const start = performance.now();
      const settings = { contextLength, patterns: patterns(tokens.length, config.numHeads) };
      const runtime = await loadWeights(context, device, model, options, settings);
      try {
        return await generate(context, options, model, runtime, tokens, performance.now() - start);
      } finally {
        runtime.destroy();
      }
    });
  });
}

async function promptText({ prompt, promptFile }: GenerateCommandOptions): Promise<string> {
  if (prompt !== undefined) return prompt;
  if (promptFile === undefined) throw invalidArgument('--prompt', undefined, 'a text, or --prompt-file');
  return readTextFile(promptFile);
}

/** A text file; `-` is stdin. */
export async function readTextFile(path: string): Promise<string> {
  try {
    if (path !== '-') return await readFile(path, 'utf8');
    const parts: Buffer[] = [];
    for await (const part of process.stdin) parts.push(part as Buffer);
    return Buffer.concat(parts).toString('utf8');
  } catch (cause) {
    throw new MinferenceError('file', `${path}: cannot be read (${cause instanceof Error ? cause.message : String(cause)})`, {
      argument: path,
      cause,
    });
  }
}

/** Patterns for a prompt of a length, in a model with so many heads. */
type PatternsOfPrompt = (seqLen: number, numHeads: number) => ModelPatterns;

/** Reads `--patterns`: a method's name, patterns in turn, or a file. */
export async function patternsOption(text: string): Promise<PatternsOfPrompt> {
  if (text === 'dense' || text === 'minference') return (seqLen) => methodPattern(text, seqLen) ?? { kind: 'dense' };
  let turn: PatternRequest[];
  try {
    turn = parsePatterns(text);
  } catch (error) {
    if (!(error instanceof InvalidArgumentError)) throw error;
    // A name of a pattern with wrong sizes is no file.
    if (/^[a-z_0-9]+(:[\d.,]*)?(\+|$)/.test(text)) {
      throw new MinferenceError('invalid-argument', `--patterns: ${error.message}`, { argument: '--patterns', value: text });
    }
    const config = await readConfigFile(text);
    return () => config;
  }
  return (seqLen, numHeads) => inTurn(turn, seqLen, numHeads);
}

/** Patterns that the heads of each layer get in turn. */
export function inTurn(turn: readonly PatternRequest[], seqLen: number, numHeads: number): ModelPatterns {
  const made = turn.map((make) => make(seqLen));
  return () => Array.from({ length: numHeads }, (_, head) => made[head % made.length] ?? { kind: 'dense' });
}

function promptTokens(context: CliContext, options: GenerateCommandOptions, model: CliModel, prompt: string): number[] {
  const { tokenizer, loaded } = model;
  const { chatTemplate } = loaded.config;
  const chat = !options.raw && chatTemplate !== undefined;
  if (!chat && options.system !== undefined) {
    throw new MinferenceError('unsupported', '--system needs a chat template, and the model has none', { argument: '--system' });
  }
  if (!chat && !options.raw) context.note('note: the model has no chat template; it completes the prompt');
  const messages: ChatMessage[] = [
    ...(options.system === undefined ? [] : [{ role: 'system', content: options.system }]),
    { role: 'user', content: prompt },
  ];
  const tokens = chat ? tokenizer.encode(tokenizer.chat(messages), false) : tokenizer.encode(prompt);
  if (tokens.length === 0) throw invalidArgument('--prompt', prompt, 'a text of at least one token');
  return tokens;
}

async function generate(
  context: CliContext,
  options: GenerateCommandOptions,
  { tokenizer, loaded }: CliModel,
  model: LanguageModel,
  tokens: readonly number[],
  loadMs: number,
): Promise<CommandResult> {
  const { maxTokens, temperature, topK, topP, seed } = options;
  const progress = context.progress('prefill');
  const output = tokenizer.stream();
  const made: number[] = [];
  let text = '';
  const print = (part: string): void => {
    text += part;
    context.write(part);
  };
  const start = performance.now();
  let prefillMs = 0;
  let firstMs: number | undefined;
  try {
    const answer = model.generate(tokens, {
      maxTokens,
      temperature,
      ...(topK === undefined ? {} : { topK }),
      ...(topP === undefined ? {} : { topP }),
      ...(seed === undefined ? {} : { seed }),
      signal: context.signal,
      onProgress: (p) => {
        prefillMs = performance.now() - start;
        progress.update(p.fraction, `${formatCount(p.tokens)} of ${formatCount(p.totalTokens)} tokens`);
      },
    });
    for await (const token of answer) {
      if (firstMs === undefined) {
        firstMs = performance.now() - start;
        progress.stop();
      }
      made.push(token);
      print(output.push(token));
    }
  } finally {
    progress.stop();
  }
  const totalMs = performance.now() - start;
  print(output.end());
  if (made.length > 0) context.write('\n');
  const decodeMs = totalMs - (firstMs ?? totalMs);
  const decoded = Math.max(0, made.length - 1);
  const figures = {
    promptTokens: tokens.length,
    generatedTokens: made.length,
    loadMs,
    prefillMs,
    prefillTokensPerSecond: (1000 * tokens.length) / prefillMs,
    firstTokenMs: firstMs ?? null,
    decodeTokensPerSecond: decoded > 0 ? (1000 * decoded) / decodeMs : null,
    memory: memoryOf(model),
  };
  context.note(`\n${summary(figures)}`.trimEnd());
  const { profile } = model;
  return {
    text: '',
    json: {
      device: profile.name,
      tier: profile.tier,
      model: options.model,
      architecture: loaded.config.architecture,
      patterns: options.patterns,
      contextLength: model.contextLength,
      text,
      tokens: made,
      finished: made.length < maxTokens,
      ...figures,
    },
  };
}

interface Figures {
  readonly promptTokens: number;
  readonly generatedTokens: number;
  readonly loadMs: number;
  readonly prefillMs: number;
  readonly prefillTokensPerSecond: number;
  readonly firstTokenMs: number | null;
  readonly decodeTokensPerSecond: number | null;
  readonly memory: ReturnType<typeof memoryOf>;
}

function summary(f: Figures): string {
  const { weights, cache, activations, attention } = f.memory;
  const rate = (x: number): string => `${x.toPrecision(3)} tokens/s`;
  return formatTable([
    ['load', formatMs(f.loadMs)],
    ['prefill', `${formatCount(f.promptTokens)} tokens, ${formatMs(f.prefillMs)}, ${rate(f.prefillTokensPerSecond)}`],
    ['first token', f.firstTokenMs === null ? '-' : formatMs(f.firstTokenMs)],
    [
      'decode',
      `${formatCount(f.generatedTokens)} tokens${f.decodeTokensPerSecond === null ? '' : `, ${rate(f.decodeTokensPerSecond)}`}`,
    ],
    [
      'GPU memory',
      `${formatBytes(weights + cache + activations + attention)}  (${[
        `weights ${formatBytes(weights)}`,
        `cache ${formatBytes(cache)}`,
        `activations ${formatBytes(activations)}`,
        `attention ${formatBytes(attention)}`,
      ].join(', ')})`,
    ],
  ]);
}
