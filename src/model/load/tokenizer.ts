import { Template } from '@huggingface/jinja';
import { Tokenizer as HfTokenizer } from '@huggingface/tokenizers';
import { invalidArgument, MinferenceError } from '../../errors.js';
import type { ChatMessage, Tokenizer } from '../types.js';
import { isRecord } from './source.js';

/** What a tokenizer is made from. */
export interface TokenizerFiles {
  /** `tokenizer.json`, parsed. */
  readonly tokenizer: Record<string, unknown>;
  /** `tokenizer_config.json`, parsed. */
  readonly config?: Record<string, unknown>;
  /** Jinja source of the chat template. */
  readonly chatTemplate?: string;
}

/** @throws `MinferenceError` `unsupported` when the tokenizer needs a part that the tokenizer library lacks */
export function createTokenizer(files: TokenizerFiles): Tokenizer {
  const config = files.config ?? {};
  let inner: HfTokenizer;
  try {
    inner = new HfTokenizer(normalized(files.tokenizer), config);
  } catch (cause) {
    throw new MinferenceError('unsupported', `tokenizer.json cannot be used (${String(cause)})`, {
      argument: 'tokenizer.json',
      cause,
    });
  }
  return new ModelTokenizer(inner, config, files.chatTemplate);
}

/**
 * The library reads "individual digits" as ASCII digits; the format means every numeric character. Says the same as a
 * split, which the library does by the letter.
 */
function normalized(tokenizer: Record<string, unknown>): Record<string, unknown> {
  const rewrite = (part: unknown): unknown => {
    if (!isRecord(part)) return part;
    if (Array.isArray(part['pretokenizers'])) return { ...part, pretokenizers: part['pretokenizers'].map(rewrite) };
    return part['type'] === 'Digits' ? splitDigits(part['individual_digits'] === true) : part;
  };
  return { ...tokenizer, pre_tokenizer: rewrite(tokenizer['pre_tokenizer']) };
}

/** Pre-tokenizer that cuts numeric characters out, each one alone or by runs. */
export function splitDigits(individual: boolean): Record<string, unknown> {
  return splitAt(individual ? '\\p{N}' : '\\p{N}+');
}

/** Pre-tokenizer that makes pieces of the matches of a pattern, and of what lies between them. */
export function splitAt(regex: string): Record<string, unknown> {
  return { type: 'Split', pattern: { Regex: regex }, behavior: 'Isolated', invert: false };
}

/** Ids that a decoding stream looks back: enough for the pieces of one character and for what a decoder does at a start. */
const LOOK_BACK = 8;

class ModelTokenizer implements Tokenizer {
  readonly size: number;
  readonly #inner: HfTokenizer;
  readonly #config: Record<string, unknown>;
  readonly #source: string | undefined;
  #template: Template | undefined;

  constructor(inner: HfTokenizer, config: Record<string, unknown>, chatTemplate: string | undefined) {
    this.#inner = inner;
    this.#config = config;
    this.#source = chatTemplate;
    this.size = inner.get_vocab(true).size;
  }

  encode(text: string, addSpecial = true): number[] {
    return this.#inner.encode(text, { add_special_tokens: addSpecial }).ids;
  }

  decode(ids: readonly number[], skipSpecial = true): string {
    const options = { skip_special_tokens: skipSpecial, clean_up_tokenization_spaces: false };
    return ids.length === 0 ? '' : this.#inner.decode([...ids], options);
  }

  stream(): { push(id: number): string; end(): string } {
    // Text of ids[start..given] went out. The ids of `start` on are decoded again each time, as a decoder may treat first ids
    // in another way (such as leaving out their space).
    const ids: number[] = [];
    let given = 0;
    const next = (final: boolean): string => {
      const start = Math.max(0, given - LOOK_BACK);
      const before = this.decode(ids.slice(start, given));
      const now = this.decode(ids.slice(start));
      // A character whose bytes are not all there decodes to a replacement character.
      if (!final && now.endsWith('\ufffd')) return '';
      given = ids.length;
      return now.slice(before.length);
    };
    return {
      push: (id) => {
        ids.push(id);
        return next(false);
      },
      end: () => next(true),
    };
  }

  idOf(token: string): number | undefined {
    return this.#inner.token_to_id(token);
  }

  chat(messages: readonly ChatMessage[], addGenerationPrompt = true): string {
    if (this.#source === undefined) {
      throw new MinferenceError('unsupported', 'the model has no chat template', { argument: 'messages' });
    }
    if (!Array.isArray(messages)) throw invalidArgument('messages', messages, 'a list of { role, content }');
    try {
      this.#template ??= new Template(this.#source);
      return this.#template.render({ ...this.#tokens(), messages, add_generation_prompt: addGenerationPrompt });
    } catch (cause) {
      throw new MinferenceError('invalid-argument', `the chat template rejects the messages (${String(cause)})`, {
        argument: 'messages',
        value: messages,
        cause,
      });
    }
  }

  /** The special tokens that templates may name. */
  #tokens(): Record<string, string> {
    const tokens: Record<string, string> = {};
    for (const [name, value] of Object.entries(this.#config)) {
      const text = isRecord(value) ? value['content'] : value;
      if (name.endsWith('_token') && typeof text === 'string') tokens[name] = text;
    }
    return tokens;
  }
}
