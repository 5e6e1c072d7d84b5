import fc from 'fast-check';
import { describe, expect, inject, test, vi } from 'vitest';
import { accuracySvg } from '../../src/cli/eval_heatmap.js';
import { METHODS, methodPattern } from '../../src/eval/methods.js';
import { PromptMaker } from '../../src/eval/prompt.js';
import { type EvalModel, type EvalOptions, evaluate, makeSamples } from '../../src/eval/run.js';
import { englishSentences, textSentences } from '../../src/eval/sentences.js';
import { ANSWER_TASKS, PROBLEMS, score } from '../../src/eval/tasks.js';
import { loadModel } from '../../src/model/load/index.js';
import { memorySource } from '../../src/model/load/source.js';
import type { ModelPatterns } from '../../src/model/runtime.js';
import type { Tokenizer } from '../../src/model/types.js';
import { Random } from '../../src/reference/random.js';
import { resolvePattern } from '../../src/scheduler/validate.js';
import { TEMPLATE, TOKENIZERS, tinyModel } from './eval_make.js';
import { rejection } from './model_load_make.js';

const seed = inject('seed');

async function tokenizerOf(name: string): Promise<Tokenizer> {
  const { tokenizer } = await loadModel(memorySource({ 'tiny.gguf': tinyModel(name, { 'tokenizer.chat_template': TEMPLATE }) }));
  if (!tokenizer) throw new Error('no tokenizer');
  return tokenizer;
}

const text = 'Rain fell all day. Nobody minded it!\n\nWould the "old" mill-wheel turn again, they asked? It did; quietly.';
const depthOf = fc.double({ min: 0, max: 1, noNaN: true });

for (const name of Object.keys(TOKENIZERS)) {
  describe(`prompts, ${name} tokenizer`, async () => {
    const tokenizer = await tokenizerOf(name);
    const maker = { chat: new PromptMaker(tokenizer, true), raw: new PromptMaker(tokenizer, false) };

    test('have exactly the length asked for, with the answers at the depth asked for', () => {
      fc.assert(
        fc.property(
          fc.constantFrom(...ANSWER_TASKS),
          fc.integer({ min: 900, max: 3000 }),
          depthOf,
          fc.nat(),
          fc.constantFrom('chat', 'raw'),
          fc.boolean(),
          (task, length, depth, s, frame, own) => {
            const random = new Random(s);
            const problem = PROBLEMS[task](random, depth, own ? textSentences(text, random) : englishSentences(random));
            const prompt = maker[frame as 'chat' | 'raw'].make(problem, length);
            expect(prompt.tokens).toHaveLength(length);
            const inserted = problem.inserts.reduce((sum, insert) => sum + maker.raw.count(insert.text), 0);
            const filler = prompt.text.end - prompt.text.start - inserted;
            let before = prompt.text.start;
            for (const [i, insert] of problem.inserts.entries()) {
              const at = (prompt.positions[i] ?? -1) - before;
              expect(Math.abs(at - insert.depth * filler)).toBeLessThanOrEqual(1);
              const count = maker.raw.count(insert.text);
              const ids = prompt.tokens.slice(prompt.positions[i], (prompt.positions[i] ?? 0) + count);
              expect(tokenizer.decode(ids).trim()).toBe(insert.text);
              before += count;
            }
            if (task !== 'variables') expect(problem.inserts.map((insert) => insert.depth)).toEqual([depth]);
          },
        ),
        { seed, numRuns: 60 },
      );
    });

    test('read as one text with the question and the start of the answer', () => {
      const problem = PROBLEMS.passkey(new Random(seed), 0.5, englishSentences(new Random(seed)));
      const shown = tokenizer.decode(maker.chat.make(problem, 700).tokens);
      expect(shown.trim().startsWith('[user]\nA pass key is hidden')).toBe(true);
      expect(shown).toContain(`. ${problem.inserts[0]?.text} The `);
      expect(shown.endsWith(`\n\nWhat is the pass key?\n[assistant]\nThe pass key is`)).toBe(true);
      const raw = tokenizer.decode(maker.raw.make(problem, 700).tokens);
      expect(raw.endsWith(`\n\nWhat is the pass key?\nAnswer: The pass key is`)).toBe(true);
    });

    test('that are too short are refused with what they need', () => {
      const make = (length: number): unknown =>
        maker.raw.make(PROBLEMS.passkey(new Random(1), 0.5, englishSentences(new Random(1))), length);
      let least = 1;
      for (;;) {
        try {
          make(least);
          break;
        } catch (error) {
          const [, wanted] = /at least (\d+)/.exec(String(error)) ?? [];
          expect(Number(wanted)).toBeGreaterThan(least);
          least = Number(wanted);
        }
      }
      expect(() => make(least - 1)).toThrow(`seqLen is ${least - 1}; allowed: at least ${least}`);
    });
  });
}

test('prompts repeat with their seed, and differ without it', async () => {
  const tokenizer = await tokenizerOf('smollm');
  const samples = (s: number) =>
    ANSWER_TASKS.flatMap((task) => makeSamples({ depths: [0, 0.5], samples: 2, seed: s, tokenizer, chat: true }, task, 1200));
  const tokens = (s: number) => samples(s).map((sample) => sample.tokens.join());
  expect(tokens(5)).toEqual(tokens(5));
  // Two depths of two prompts for three tasks, and two prompts for `variables`.
  expect(new Set([...tokens(5), ...tokens(6)]).size).toBe(2 * (3 * 2 * 2 + 2));
});

test('problems can be told apart: keys do not repeat, chains share no name', () => {
  fc.assert(
    fc.property(fc.nat(), (s) => {
      const problem = PROBLEMS.kv(new Random(s), 0.5, () => '');
      const key = /code of (\S+) is/.exec(problem.inserts[0]?.text ?? '')?.[1];
      const keys = Array.from({ length: 500 }, () => /code of (\S+) is/.exec(problem.sentences())?.[1]);
      expect(new Set([key, ...keys]).size).toBe(501);
      expect(problem.question).toContain(key);

      const { inserts, answers, question } = PROBLEMS.variables(new Random(s), 0, () => '');
      const value = /\d{5}/.exec(question)?.[0];
      // Follow the assignments in the order of the text.
      const values = new Map<string, string | undefined>();
      for (const insert of inserts) {
        const [, name = '', from = ''] = /^VAR (\w+) = (?:VAR )?(\w+)\.$/.exec(insert.text) ?? [];
        expect(values.has(name)).toBe(false);
        values.set(name, /\d/.test(from) ? from : values.get(from));
      }
      expect([...values].filter(([, v]) => v === value).map(([name]) => name)).toEqual(answers);
      expect(values.size).toBe(10);
    }),
    { seed, numRuns: 50 },
  );
});

test('scores count whole answers, among the first candidates only', () => {
  const one = { answers: ['41234'], candidates: /(?<!\d)\d{5}(?!\d)/g };
  expect(score(one, ' 41234. Keep it')).toBe(1);
  expect(score(one, ' 412345')).toBe(0);
  expect(score(one, '')).toBe(0);
  expect(score(one, ' 99999 or 41234')).toBe(0);
  const many = { answers: ['AAAAA', 'BBBBB', 'CCCCC', 'DDDDD'], candidates: /(?<![A-Za-z])[A-Z]{5}(?![A-Za-z])/g };
  expect(score(many, 'BBBBB, AAAAA and AAAAA, XXXXX, CCCCC, DDDDD')).toBe(0.75);
  expect(score(many, 'DDDDD CCCCC BBBBB AAAAA')).toBe(1);
  for (const task of ANSWER_TASKS) {
    const problem = PROBLEMS[task](new Random(seed), 0.5, englishSentences(new Random(seed)));
    expect(score(problem, ` ${problem.answers.join(', ')}.`)).toBe(1);
    expect(score(problem, ' unknown')).toBe(0);
  }
});

test('every method gives a pattern that the scheduler takes, at every length', () => {
  for (const name of METHODS) {
    for (const n of [1, 100, 4096, 131_072, 2 ** 20]) {
      const pattern = methodPattern(name, n);
      if (!pattern) throw new Error(name);
      expect(resolvePattern(name, pattern).kind).toBe(pattern.kind);
    }
  }
  expect(methodPattern('minference', 131_072)).toEqual({ kind: 'vertical_slash', verticalSize: 1000, slashSize: 6096 });
  expect(methodPattern('stripes', 100)).toBeUndefined();
});

/** A model that answers with the next tokens of `say(prompt, pattern)`, and computes half of the pairs unless dense. */
function scripted(tokenizer: Tokenizer, say: (prompt: string, kind: string) => string): EvalModel {
  const kindOf = (patterns: ModelPatterns | undefined): string => {
    if (patterns === undefined || typeof patterns === 'function' || !('kind' in patterns)) throw new Error('one pattern');
    return patterns.kind;
  };
  return {
    async *generate(tokens, options = {}) {
      options.onProgress?.({ fraction: 1, tokens: tokens.length, totalTokens: tokens.length });
      const answer = tokenizer.encode(say(tokenizer.decode([...(tokens as number[])]), kindOf(options.patterns)), false);
      yield* answer.slice(0, options.maxTokens);
    },
    prefill: async (tokens, { patterns, inspect } = {}) => ({
      logits: new Float32Array(0),
      logProbs: new Float32Array(tokens.length - 1).fill(-Math.LN2),
      ...(inspect ? { density: kindOf(patterns) === 'dense' ? 1 : 0.5 } : {}),
    }),
    prepare: async () => {},
    reset: () => {},
  };
}

describe('evaluations', async () => {
  const tokenizer = await tokenizerOf('smollm');
  const base = {
    task: 'passkey',
    seqLens: [600, 800],
    samples: 2,
    depths: [0, 1],
    seed: 1,
    tokenizer,
    chat: false,
    methods: ['dense', 'a_shape'].map((name) => ({ name, patterns: (n) => methodPattern(name, n) ?? { kind: 'dense' } })),
    open: async () => scripted(tokenizer, () => ''),
  } satisfies EvalOptions as EvalOptions;

  test('score each method, length and depth on the same prompts', async () => {
    const rooms: number[] = [];
    const seen = new Map<string, string[]>();
    const rows = await evaluate({
      ...base,
      open: async (contextLength) => {
        rooms.push(contextLength);
        return scripted(tokenizer, (prompt, kind) => {
          seen.set(kind, [...(seen.get(kind) ?? []), prompt]);
          const key = /The pass key is (\d{5})/.exec(prompt);
          // The sparse one finds what is at the end only.
          const found = kind === 'dense' || (key?.index ?? 0) > prompt.length / 2;
          return found ? ` ${key?.[1]}.` : ' lost';
        });
      },
    });
    expect(rooms).toHaveLength(1);
    expect(rooms[0]).toBeGreaterThan(800);
    expect(seen.get('dense')).toHaveLength(8);
    expect(seen.get('dense')).toEqual(seen.get('a_shape'));
    expect(rows.map((r) => [r.method, r.seqLen, r.depth, r.samples, r.accuracy, r.agreement, r.density])).toEqual(
      [600, 800].flatMap((n) => [
        ['dense', n, 0, 2, 1, 1, 1],
        ['dense', n, 1, 2, 1, 1, 1],
        ['a_shape', n, 0, 2, 0, 0, 0.5],
        ['a_shape', n, 1, 2, 1, 1, 0.5],
      ]),
    );
    const svg = accuracySvg(rows, 'a < b');
    expect(svg).toContain('a &#60; b');
    expect(svg.match(/>100<\/text>/g)).toHaveLength(6);
    expect(svg.match(/>0<\/text>/g)).toHaveLength(2);
  });

  test('perplexity is that of the log-probabilities, over windows of the exact length', async () => {
    const lengths: number[] = [];
    const rows = await evaluate({
      ...base,
      task: 'perplexity',
      seqLens: [20],
      text,
      open: async () => {
        const model = scripted(tokenizer, () => '');
        const prefill: EvalModel['prefill'] = (tokens, options) => {
          if (options?.logProbs) lengths.push(tokens.length);
          return model.prefill(tokens, options);
        };
        return { ...model, prefill };
      },
    });
    expect(lengths).toEqual([20, 20, 20, 20]);
    expect(rows.map((r) => [r.method, r.depth, r.perplexity?.toFixed(4)])).toEqual([
      ['dense', null, '2.0000'],
      ['a_shape', null, '2.0000'],
    ]);
  });

  test('times and answers are those of plain prefills; density comes from one inspected prefill per method and length', async () => {
    let now = 0;
    const clock = vi.spyOn(performance, 'now').mockImplementation(() => now);
    let inspected = 0;
    const open = async (): Promise<EvalModel> => {
      const model = scripted(tokenizer, () => '');
      const cost = (patterns: ModelPatterns | undefined): number => (JSON.stringify(patterns).includes('dense') ? 40 : 10);
      return {
        ...model,
        generate: (tokens, options = {}) => {
          now += cost(options.patterns);
          return model.generate(tokens, options);
        },
        prefill: (tokens, options = {}) => {
          now += options.inspect ? 1000 : cost(options.patterns);
          if (options.inspect) inspected += 1;
          return model.prefill(tokens, options);
        },
      };
    };
    try {
      for (const task of ['passkey', 'perplexity'] as const) {
        inspected = 0;
        const seqLens = task === 'passkey' ? base.seqLens : [20];
        const rows = await evaluate({ ...base, task, seqLens, open, ...(task === 'passkey' ? {} : { text }) });
        expect(inspected).toBe(2 * seqLens.length);
        for (const row of rows) {
          expect([row.prefillMs, row.density]).toEqual(row.method === 'dense' ? [40, 1] : [10, 0.5]);
        }
      }
    } finally {
      clock.mockRestore();
    }
  });

  test('wrong options are refused by name', async () => {
    const argument = async (options: Partial<EvalOptions>): Promise<unknown> =>
      (await rejection(evaluate({ ...base, ...options }))).argument;
    expect(await argument({ samples: 0 })).toBe('samples');
    expect(await argument({ depths: [2] })).toBe('depths');
    expect(await argument({ methods: [] })).toBe('methods');
    expect(await argument({ seqLens: [1] })).toBe('seqLens');
    expect(await argument({ seqLens: [40] })).toBe('seqLen');
    expect(await argument({ text: ' \n' })).toBe('text');
    expect(await argument({ task: 'perplexity' })).toBe('text');
    expect(await argument({ task: 'perplexity', text: 'Short.' })).toBe('text');
  });
});
