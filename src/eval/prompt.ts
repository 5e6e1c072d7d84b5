import { invalidArgument } from '../errors.js';
import type { Tokenizer } from '../model/types.js';
import type { Sentences } from './sentences.js';

/** A sentence that is put into a prompt's text. */
export interface Insert {
  /** Where: 0 at the start of the text, 1 at its end. */
  readonly depth: number;
  readonly text: string;
}

/** What a prompt is made of. */
export interface PromptParts {
  /** What the task is, before the text. */
  readonly intro: string;
  /** The text, as far as nothing is inserted. */
  readonly sentences: Sentences;
  /** By ascending depth. */
  readonly inserts: readonly Insert[];
  /** What is asked, after the text. */
  readonly question: string;
  /** Words that the answer begins with: they are part of the prompt. */
  readonly answerStart: string;
}

/** A prompt of an exact number of tokens. */
export interface Prompt {
  readonly tokens: readonly number[];
  /** Where the text starts and ends in `tokens`. */
  readonly text: { readonly start: number; readonly end: number };
  /** Index in `tokens` of each insert. */
  readonly positions: readonly number[];
}

/** Stands for the text while a chat template is applied. */
const MARK = '@@TEXT@@';

/**
 * Puts prompts together from token ids, so that lengths and depths come out exactly. Pieces meet at spaces and line breaks, where
 * tokenizers part words anyway.
 */
export class PromptMaker {
  readonly #tokenizer: Tokenizer;
  readonly #chat: boolean;
  readonly #anchor: readonly number[];
  readonly #words = new Map<string, readonly number[]>();

  /** @param chat whether to ask through the model's chat template */
  constructor(tokenizer: Tokenizer, chat: boolean) {
    this.#tokenizer = tokenizer;
    this.#chat = chat;
    this.#anchor = tokenizer.encode('a', false);
  }

  /**
   * A prompt of exactly `length` tokens.
   *
   * @throws `MinferenceError` `invalid-argument` when that is too few for the question and the inserts.
   */
  make(parts: PromptParts, length: number): Prompt {
    const { head, tail } = this.#frame(parts);
    const { tokens, ...places } = this.#document(parts, head, length, tail.length);
    return { tokens: [...tokens, ...tail], ...places };
  }

  /** The same in two parts: a text of exactly `length` tokens, and what asks one of several questions about it. */
  document(parts: Pick<PromptParts, 'intro' | 'sentences' | 'inserts'>, length: number): Prompt {
    const { head } = this.#frame({ ...parts, question: '', answerStart: '' });
    return this.#document(parts, head, length, 0);
  }

  /** Ids of a question, and of the words that its answer begins with, behind a {@link document}. */
  question({ question, answerStart }: Pick<PromptParts, 'question' | 'answerStart'>): readonly number[] {
    return this.#frame({ intro: '', question, answerStart }).tail;
  }

  /** The intro and the text, with `room` tokens of the length left for what comes behind. */
  #document(parts: Pick<PromptParts, 'sentences' | 'inserts'>, head: readonly number[], length: number, room: number): Prompt {
    const inserts = parts.inserts.map(({ depth, text }) => ({ depth, ids: this.#sentence(text) }));
    const fixed = inserts.reduce((sum, { ids }) => sum + ids.length, head.length + room);
    const filler = length - fixed;
    if (filler < 0) throw invalidArgument('seqLen', length, `at least ${fixed}: the question and what it asks for take as many`);
    const tokens = [...head];
    const positions: number[] = [];
    let filled = 0;
    for (const { depth, ids } of inserts) {
      const until = Math.round(depth * filler);
      this.#fill(tokens, parts.sentences, until - filled);
      filled = until;
      positions.push(tokens.length);
      append(tokens, ids);
    }
    this.#fill(tokens, parts.sentences, filler - filled);
    return { tokens, text: { start: head.length, end: tokens.length }, positions };
  }

  /** Number of tokens of a text inside another one. */
  count(text: string): number {
    return this.#inside(` ${text}`).length;
  }

  /** What comes before and after the text. */
  #frame({ intro, question, answerStart }: Pick<PromptParts, 'intro' | 'question' | 'answerStart'>): {
    head: readonly number[];
    tail: readonly number[];
  } {
    const content = `${intro}\n\nText: ${MARK}\n\n${question}`;
    const whole = this.#chat
      ? this.#tokenizer.chat([{ role: 'user', content }]) + answerStart
      : `${content}\nAnswer: ${answerStart}`;
    const at = whole.indexOf(` ${MARK}`);
    if (at < 0) throw invalidArgument('chatTemplate', whole, 'a template that shows what the user says');
    return {
      head: this.#tokenizer.encode(whole.slice(0, at), !this.#chat),
      tail: this.#inside(whole.slice(at + MARK.length + 1)),
    };
  }

  /** Appends exactly `count` tokens of sentences; the last one is cut short. */
  #fill(tokens: number[], sentences: Sentences, count: number): void {
    const end = tokens.length + count;
    while (tokens.length < end) {
      const ids = this.#sentence(sentences());
      const room = end - tokens.length;
      if (ids.length <= room) append(tokens, ids);
      else append(tokens, [...ids.slice(0, room - 1), ...this.#inside('.').slice(0, 1)]);
    }
  }

  /** Ids of a sentence that follows another one. */
  #sentence(text: string): readonly number[] {
    return text.split(' ').flatMap((word) => {
      let ids = this.#words.get(word);
      if (!ids) {
        ids = this.#inside(` ${word}`);
        this.#words.set(word, ids);
      }
      return ids;
    });
  }

  /** Ids of what follows a letter. */
  #inside(text: string): readonly number[] {
    const ids = this.#tokenizer.encode(`a${text}`, false);
    const anchored = this.#anchor.every((id, i) => ids[i] === id);
    return anchored ? ids.slice(this.#anchor.length) : this.#tokenizer.encode(text, false);
  }
}

function append(tokens: number[], ids: readonly number[]): void {
  for (const id of ids) tokens.push(id);
}
