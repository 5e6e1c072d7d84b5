import { invalidArgument } from '../errors.js';
import type { Random } from '../reference/random.js';

/** Gives one sentence after another, without end. */
export type Sentences = () => string;

const WHO = 'baker gardener captain teacher painter farmer doctor child singer sailor miller weaver'.split(' ');
const HOW = 'old young quiet cheerful tired clever patient careful gentle curious'.split(' ');
const DID =
  'walked past|looked at|spoke about|waited near|dreamed of|painted|returned to|remembered|sat beside|wrote about|pointed at'.split(
    '|',
  );
const WHAT = 'river bridge market garden harbour tower orchard meadow window lantern village forest road mill'.split(' ');
const WHEN =
  'in the morning|before noon|after the rain|at night|in early spring|for a long while|once again|on the way home|last winter'.split(
    '|',
  );

/** Plain English that says nothing in particular, and never holds a digit. */
export function englishSentences(random: Random): Sentences {
  return () =>
    `The ${random.pick(HOW)} ${random.pick(WHO)} ${random.pick(DID)} the ${random.pick(HOW)} ${random.pick(WHAT)} ${random.pick(WHEN)}.`;
}

/**
 * Sentences of a text from a random one on; after the last comes the first.
 *
 * @throws `MinferenceError` `invalid-argument` for a text without a word.
 */
export function textSentences(text: string, random: Random): Sentences {
  const sentences = splitSentences(text);
  let next = random.integer(0, sentences.length - 1);
  return () => sentences[next++ % sentences.length] as string;
}

const splits = new Map<string, readonly string[]>();

function splitSentences(text: string): readonly string[] {
  const known = splits.get(text);
  if (known) return known;
  const sentences = text
    .split(/(?<=[.!?])\s+/)
    .map((s) => s.split(/\s+/).filter(Boolean).join(' '))
    .filter(Boolean);
  if (sentences.length === 0) throw invalidArgument('text', text, 'a text with words');
  splits.clear(); // One text at a time is in use.
  splits.set(text, sentences);
  return sentences;
}
