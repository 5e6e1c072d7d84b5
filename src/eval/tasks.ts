import type { Random } from '../reference/random.js';
import type { PromptParts } from './prompt.js';
import type { Sentences } from './sentences.js';

/** Tasks with answers. */
export const ANSWER_TASKS = ['passkey', 'needle', 'kv', 'variables'] as const;

/** A task with answers. */
export type AnswerTask = (typeof ANSWER_TASKS)[number];

/** One question about a long text, and what the answer must hold. */
export interface Problem extends PromptParts {
  /** All of them, in any order. */
  readonly answers: readonly string[];
  /** What may be meant as an answer. Of the model's text, the first different ones count, as many as there are answers. */
  readonly candidates: RegExp;
}

/** Makes a problem with what is asked for at a depth from 0 to 1, in a text of these sentences. */
export type ProblemMaker = (random: Random, depth: number, sentences: Sentences) => Problem;

/** Makers of the tasks' problems. Equal random numbers make equal problems. */
export const PROBLEMS: Readonly<Record<AnswerTask, ProblemMaker>> = { passkey, needle, kv, variables };

/** Whether a task's answer lies at one depth. */
export function hasDepth(task: AnswerTask): boolean {
  return task !== 'variables';
}

const FIVE_DIGITS = /(?<!\d)\d{5}(?!\d)/g;
const fiveDigits = (random: Random): string => String(random.integer(10_000, 99_999));

/** A number in a text about other things. */
function passkey(random: Random, depth: number, sentences: Sentences): Problem {
  const key = fiveDigits(random);
  return {
    intro: 'A pass key is hidden in the text below. Find it and keep it in mind; nothing else matters.',
    sentences,
    inserts: [{ depth, text: `The pass key is ${key}. Keep in mind that ${key} is the pass key.` }],
    question: 'What is the pass key?',
    answerStart: 'The pass key is',
    answers: [key],
    candidates: FIVE_DIGITS,
  };
}

const TOWNS = 'Lisbon Oslo Quito Hanoi Dublin Nairobi Bergen Havana Kyoto Tunis Riga Lima'.split(' ');
const SPICES = 'cinnamon saffron ginger basil pepper vanilla mint garlic honey thyme nutmeg cloves'.split(' ');

/** A fact in words, in a text about other things. */
function needle(random: Random, depth: number, sentences: Sentences): Problem {
  const town = random.pick(TOWNS);
  const spice = random.pick(SPICES);
  return {
    intro: 'Read the text below. A question about it follows.',
    sentences,
    inserts: [{ depth, text: `The secret of the famous soup from ${town} is a spoonful of ${spice}.` }],
    question: `What is the secret of the famous soup from ${town}?`,
    answerStart: `The secret of the famous soup from ${town} is a spoonful of`,
    answers: [spice],
    candidates: new RegExp(`\\b(?:${SPICES.join('|')})\\b`, 'g'),
  };
}

const COLOURS =
  'amber black blue bronze coral crimson golden green grey ivory jade olive pink purple red silver violet white'.split(' ');
const ANIMALS = 'badger bear crane deer eagle falcon fox hare heron lion otter owl raven robin seal swan tiger wolf'.split(' ');

/** One of many pairs that fill the whole text. */
function kv(random: Random, depth: number): Problem {
  const used = new Set<string>();
  const newKey = (): string => {
    for (;;) {
      const key = `${random.pick(COLOURS)}-${random.pick(ANIMALS)}-${random.integer(100, 999)}`;
      if (used.has(key)) continue;
      used.add(key);
      return key;
    }
  };
  const pair = (key: string, code: string): string => `The code of ${key} is ${code}.`;
  const key = newKey();
  const code = fiveDigits(random);
  return {
    intro: 'The text below lists codes. A question about one of them follows.',
    sentences: () => pair(newKey(), fiveDigits(random)),
    inserts: [{ depth, text: pair(key, code) }],
    question: `What is the code of ${key}?`,
    answerStart: `The code of ${key} is`,
    answers: [code],
    candidates: FIVE_DIGITS,
  };
}

/** Assignments between a first value and the last variable that has it. */
const HOPS = 4;

/** A chain of assignments, scattered over a text about other things, and another chain to tell it from. */
function variables(random: Random, _depth: number, sentences: Sentences): Problem {
  const names = new Set<string>();
  while (names.size < 2 * (HOPS + 1)) {
    names.add(Array.from({ length: 5 }, () => String.fromCharCode(random.integer(65, 90))).join(''));
  }
  const all = [...names];
  const chains = [all.slice(0, HOPS + 1), all.slice(HOPS + 1)];
  const [value = '', other = ''] = random.distinct(2, 10_000, 99_999).map(String);
  const inserts = chains.flatMap((chain, c) => {
    const depths = chain.map(() => random.uniform()).sort((a, b) => a - b);
    return chain.map((name, i) => ({
      depth: depths[i] ?? 0,
      text: `VAR ${name} = ${i === 0 ? [value, other][c] : `VAR ${chain[i - 1]}`}.`,
    }));
  });
  return {
    intro: 'The text below assigns values to variables here and there. Follow the assignments; a question about them follows.',
    sentences,
    inserts: inserts.sort((a, b) => a.depth - b.depth),
    question: `Which ${HOPS + 1} variables have the value ${value}, directly or by way of other variables?`,
    answerStart: `The ${HOPS + 1} variables with the value ${value} are:`,
    answers: chains[0] ?? [],
    candidates: /(?<![A-Za-z])[A-Z]{5}(?![A-Za-z])/g,
  };
}

/** Share of a problem's answers that a text gives, 0 to 1: of the first candidates in it, as many as there are answers. */
export function score({ answers, candidates }: Pick<Problem, 'answers' | 'candidates'>, text: string): number {
  const given = [...new Set(text.match(candidates) ?? [])].slice(0, answers.length);
  return given.filter((candidate) => answers.includes(candidate)).length / answers.length;
}
