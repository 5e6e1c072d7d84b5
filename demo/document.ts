import novelStart from '../assets/text/austen-persuasion-ch1-2.txt?raw';
import novelMore from '../assets/text/austen-persuasion-ch3.txt?raw';
import { factDocument } from '../src/eval/document.js';
import type { Insert, PromptMaker } from '../src/eval/prompt.js';
import { type Sentences, textSentences } from '../src/eval/sentences.js';
import { type Problem, score } from '../src/eval/tasks.js';
import type { Tokenizer } from '../src/model/index.js';
import { Random } from '../src/reference/random.js';

/** A text in the public domain: the beginning of Jane Austen's _Persuasion_. */
const NOVEL = `${novelStart}\n${novelMore}`;
const INTRO = 'Read the text below. A question about it follows.';
/** Tokens that an answer may take beyond those of the right one, and those of an answer that nobody knows. */
const SLACK = 8;
const OPEN_ANSWER = 24;
/** Fewer tokens have no room for facts. */
const LEAST = 256;
/** Characters of a text for each token that is asked for, spaces included: more than any language takes. */
const LONGEST_TOKEN = 16;

/** What a document is made from. */
export interface DocumentRequest {
  /** The visitor's text; the novel without one. */
  readonly text?: string;
  /** Tokens of the document; of the visitor's text, at most. */
  readonly length: number;
  /** Facts to hide. */
  readonly facts: number;
  /** Of the facts, and where they are. */
  readonly seed: number;
}

/** A question about a document. */
export interface Question {
  readonly text: string;
  readonly ids: readonly number[];
  /** Tokens that an answer may take. */
  readonly maxTokens: number;
  /** Where the answer lies in the document, 0 to 1, where that is known. */
  readonly depth?: number;
  /** Whether an answer is right, where that is known. */
  readonly isRight?: (answer: string) => boolean;
}

/** A document as the model reads it. */
export interface DemoDocument {
  readonly tokens: readonly number[];
  readonly questions: readonly Question[];
  /** The text in pieces, hidden facts marked as such. */
  readonly pieces: () => readonly { readonly text: string; readonly fact: boolean }[];
  /** Whether the visitor's text was longer than the length that was asked for. */
  readonly cut: boolean;
}

/**
 * Makes a document and the questions about it.
 *
 * @throws `MinferenceError` for a text without words
 */
export function makeDocument(tokenizer: Tokenizer, maker: PromptMaker, request: DocumentRequest): DemoDocument {
  const { text, facts, seed } = request;
  const random = new Random(seed);
  const count = wordCounter(maker);
  const own = text === undefined ? undefined : ownSentences(text, request.length, count);
  const sentences = own?.sentences ?? textSentences(NOVEL, random);
  let { inserts, problems }: { inserts: readonly Insert[]; problems: readonly Problem[] } =
    facts > 0 ? factDocument(random, facts, sentences) : { inserts: [], problems: [] };
  const sizes = inserts.map((insert) => count(insert.text));
  let { length } = request;
  let cut = false;
  if (own) {
    const start = maker.document({ intro: INTRO, sentences: () => 'a', inserts: [] }, LEAST).text.start;
    const fixed = start + sizes.reduce((sum, n) => sum + n, 0);
    cut = fixed + (own.ends.at(-1) ?? 0) > length;
    const filler = cut ? length - fixed : (own.ends.at(-1) ?? 0);
    length = fixed + filler;
    // Facts stand between sentences.
    inserts = inserts.map((insert) => ({ ...insert, depth: nearest([0, ...own.ends], insert.depth * filler, filler) / filler }));
  }
  const { tokens, positions, text: place } = maker.document({ intro: INTRO, sentences, inserts }, length);
  const pieces = () => {
    const out: { text: string; fact: boolean }[] = [];
    let at = place.start;
    for (const [i, position] of positions.entries()) {
      const end = position + (sizes[i] ?? 0);
      out.push({ text: tokenizer.decode(tokens.slice(at, position)), fact: false });
      out.push({ text: tokenizer.decode(tokens.slice(position, end)), fact: true });
      at = end;
    }
    out.push({ text: tokenizer.decode(tokens.slice(at, place.end)), fact: false });
    return out;
  };
  const questions = problems.map(
    (problem, i): Question => ({
      text: problem.question,
      ids: maker.question(problem),
      maxTokens: problem.answers.reduce((sum, answer) => sum + maker.count(answer), SLACK),
      depth: (positions[i] ?? 0) / tokens.length,
      isRight: (answer) => score(problem, answer) === 1,
    }),
  );
  return { tokens, questions, pieces, cut };
}

/** A question of the visitor's. */
export function ownQuestion(maker: PromptMaker, text: string): Question {
  const question = text.trim();
  return { text: question, ids: maker.question({ question, answerStart: answerStart(question) }), maxTokens: OPEN_ANSWER };
}

/** Words that an answer to a question begins with: a small model answers better when it only has to go on. */
export function answerStart(question: string): string {
  const match = /^(?:what|who|where|which|when)\s+(is|are|was|were)\s+(.+?)[\s?.!]*$/i.exec(question.trim());
  const [, verb = '', subject = ''] = match ?? [];
  return subject && `${subject[0]?.toUpperCase()}${subject.slice(1)} ${verb.toLowerCase()}`;
}

/** The one of these ascending places, up to the last one allowed, that is nearest to another place. */
function nearest(places: readonly number[], wanted: number, last: number): number {
  let best = 0;
  for (const place of places) if (place <= last && Math.abs(place - wanted) < Math.abs(best - wanted)) best = place;
  return best;
}

/** Counts the tokens of sentences, word by word, as documents are made. */
function wordCounter(maker: PromptMaker): (sentence: string) => number {
  const sizes = new Map<string, number>();
  return (sentence) => {
    let sum = 0;
    for (const word of sentence.split(' ')) {
      let size = sizes.get(word);
      if (size === undefined) {
        size = maker.count(word);
        sizes.set(word, size);
      }
      sum += size;
    }
    return sum;
  };
}

/**
 * The sentences of a text in their order, again and again, and the tokens up to the end of each. Of a longer text, only as many as
 * take more than `most` tokens.
 */
function ownSentences(
  text: string,
  most: number,
  count: (sentence: string) => number,
): { readonly sentences: Sentences; readonly ends: readonly number[] } {
  const list: string[] = [];
  const ends: number[] = [];
  let end = 0;
  const segmenter = new Intl.Segmenter('en', { granularity: 'sentence' });
  // By paragraphs: taking a very long text apart at once takes long.
  for (const paragraph of text.slice(0, most * LONGEST_TOKEN).split(/\n\s*\n/)) {
    for (const { segment } of segmenter.segment(paragraph)) {
      const sentence = segment.split(/\s+/).filter(Boolean).join(' ');
      if (!sentence || end > most) continue;
      end += count(sentence);
      list.push(sentence);
      ends.push(end);
    }
  }
  if (list.length === 0) throw new RangeError('The text is empty: paste some words, or choose the novel.');
  let next = 0;
  return { sentences: () => list[next++ % list.length] as string, ends };
}
