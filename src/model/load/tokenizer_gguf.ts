import { Fields } from './fields.js';
import type { GgufHeader } from './gguf.js';
import { splitAt, splitDigits, type TokenizerFiles } from './tokenizer.js';

/** Values of `tokenizer.ggml.token_type`. */
const UNKNOWN = 2;
const CONTROL = 3;
const USER_DEFINED = 4;

type Part = Record<string, unknown>;

/** Byte-level coding, after GPT-2's own splitting where asked for. */
const byteLevel = (useRegex: boolean): Part => ({
  type: 'ByteLevel',
  add_prefix_space: false,
  trim_offsets: true,
  use_regex: useRegex,
});

/** GPT-4's word pattern, with numbers in runs of at most `digits`. */
const words = (digits: string): string =>
  `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;

/** GPT-4o's word pattern: words end where lower case turns into upper case. */
const CASED_WORDS = (() => {
  const upper = '[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]';
  const lower = '[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]';
  const before = '[^\\r\\n\\p{L}\\p{N}]?';
  const suffix = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?";
  return `${before}${upper}*${lower}+${suffix}|${before}${upper}+${lower}*${suffix}|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;
})();

/** How a vocabulary splits text before it merges bytes. */
interface Splitting {
  readonly parts: readonly Part[];
  readonly normalizer?: Part;
  /** A piece that is a token as a whole is that token, whatever its merges. */
  readonly wholePieces?: boolean;
  /** A BOS token is added unless the file says otherwise. */
  readonly bos?: boolean;
}

const LLAMA3: Splitting = { parts: [splitAt(words('{1,3}')), byteLevel(false)], wholePieces: true, bos: true };
const QWEN2: Splitting = { parts: [splitAt(words('')), byteLevel(false)], normalizer: { type: 'NFC' } };

/** By `tokenizer.ggml.pre`. */
const SPLITTINGS: Readonly<Record<string, Splitting>> = {
  'gpt-2': { parts: [byteLevel(true)] },
  smollm: { parts: [splitDigits(true), byteLevel(true)] },
  'llama-bpe': LLAMA3,
  llama3: LLAMA3,
  qwen2: QWEN2,
  'deepseek-r1-qwen': QWEN2,
  'gpt-4o': { parts: [splitAt(CASED_WORDS), byteLevel(false)] },
};

/** The metadata of a GGUF file about its tokenizer, as the files that a model folder would have; undefined when there are none. */
export function tokenizerFromGguf(header: GgufHeader): TokenizerFiles | undefined {
  const f = new Fields('tokenizer.ggml.', (name) => header.metadata.get(`tokenizer.ggml.${name}`));
  if (!f.has('model')) return undefined;
  const tokens = texts(f, 'tokens');
  const types = f.raw('token_type');
  const typeOf = (id: number): unknown => (Array.isArray(types) ? types[id] : undefined);
  const vocab: Record<string, number> = Object.create(null) as Record<string, number>;
  tokens.forEach((token, id) => {
    vocab[token] ??= id;
  });
  const named = (name: string): string | undefined => tokens[f.optionalCount(`${name}_token_id`, 0) ?? -1];
  const bos = named('bos');
  const eos = named('eos');
  const unknown = named('unknown');

  const parts =
    f.text('model') === 'llama' ? spmParts(f, tokens, vocab) : f.text('model') === 'gpt2' ? bpeParts(f, vocab) : undefined;
  if (!parts) throw f.error('model', 'gpt2, llama');
  const first = f.flag('add_bos_token', parts.bos) && bos !== undefined ? [bos] : [];
  const last = f.flag('add_eos_token', false) && eos !== undefined ? [eos] : [];
  const special = (token: string): Part => ({ SpecialToken: { id: token, type_id: 0 } });
  const phi3 = header.metadata.get('general.architecture') === 'phi3' && f.text('model') === 'llama';
  const added = tokens.flatMap((content, id) => {
    const type = typeOf(id);
    if (type !== CONTROL && type !== USER_DEFINED && type !== UNKNOWN) return [];
    // The control tokens of phi3's turns take the white space after them along; files cannot say so.
    const rstrip = phi3 && type === CONTROL && !['<s>', '<|endoftext|>'].includes(content);
    const flags = { single_word: false, lstrip: false, rstrip, normalized: false };
    return [{ id, content, ...flags, special: type !== USER_DEFINED }];
  });
  const template = header.metadata.get('tokenizer.chat_template');
  return {
    tokenizer: {
      version: '1.0',
      added_tokens: added,
      normalizer: parts.normalizer,
      pre_tokenizer: parts.preTokenizer,
      post_processor: {
        type: 'TemplateProcessing',
        single: [...first.map(special), { Sequence: { id: 'A', type_id: 0 } }, ...last.map(special)],
        pair: [],
        special_tokens: Object.fromEntries(
          [...first, ...last].map((token) => [token, { id: token, ids: [vocab[token]], tokens: [token] }]),
        ),
      },
      decoder: parts.decoder,
      model: parts.model,
    },
    config: {
      ...(bos === undefined ? {} : { bos_token: bos }),
      ...(eos === undefined ? {} : { eos_token: eos }),
      ...(unknown === undefined ? {} : { unk_token: unknown }),
    },
    ...(typeof template === 'string' ? { chatTemplate: template } : {}),
  };
}

/** The parts in which the two kinds of tokenizer differ. */
interface Parts {
  readonly normalizer: Part | null;
  readonly preTokenizer: Part | null;
  readonly decoder: Part;
  readonly model: Part;
  /** Whether a BOS token is added unless the file says otherwise. */
  readonly bos: boolean;
}

/** Byte-level BPE, as GPT-2's. */
function bpeParts(f: Fields, vocab: Record<string, number>): Parts {
  const name = f.text('pre');
  const splitting = name !== undefined && Object.hasOwn(SPLITTINGS, name) ? SPLITTINGS[name] : undefined;
  if (!splitting) throw f.error('pre', Object.keys(SPLITTINGS).join(', '));
  const merges = texts(f, 'merges').map((merge) => {
    // The space between the two parts; a part may begin with none, as bytes are coded without spaces.
    const space = merge.indexOf(' ', 1);
    return [merge.slice(0, space), merge.slice(space + 1)];
  });
  return {
    normalizer: splitting.normalizer ?? null,
    preTokenizer: { type: 'Sequence', pretokenizers: splitting.parts },
    decoder: byteLevel(true),
    model: { type: 'BPE', vocab, merges, ignore_merges: splitting.wholePieces ?? false },
    bos: splitting.bos ?? false,
  };
}

/** SentencePiece BPE: two neighbours merge whenever their union is a token, best score first; what is no token falls back to bytes. */
function spmParts(f: Fields, tokens: readonly string[], vocab: Record<string, number>): Parts {
  const scores = f.raw('scores');
  if (!Array.isArray(scores) || scores.length !== tokens.length) throw f.error('scores', `a list of ${tokens.length} numbers`);
  const merges: { left: string; right: string; score: number; order: number }[] = [];
  tokens.forEach((token, id) => {
    for (let cut = 1; cut < token.length; cut++) {
      const left = token.slice(0, cut);
      const right = token.slice(cut);
      if (vocab[left] !== undefined && vocab[right] !== undefined) {
        merges.push({ left, right, score: scores[id] as number, order: id });
      }
    }
  });
  merges.sort((a, b) => b.score - a.score || a.order - b.order);
  const prefix = f.flag('add_space_prefix', true);
  const unknown = tokens[f.optionalCount('unknown_token_id', 0) ?? 0];
  return {
    normalizer: {
      type: 'Sequence',
      normalizers: [
        ...(prefix ? [{ type: 'Prepend', prepend: '\u2581' }] : []),
        { type: 'Replace', pattern: { String: ' ' }, content: '\u2581' },
      ],
    },
    preTokenizer: null,
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '\u2581' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        ...(prefix ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
      ],
    },
    model: {
      type: 'BPE',
      vocab,
      merges: merges.map(({ left, right }) => [left, right]),
      unk_token: unknown,
      fuse_unk: true,
      byte_fallback: true,
    },
    bos: true,
  };
}

function texts(f: Fields, name: string): string[] {
  const value = f.raw(name);
  if (!Array.isArray(value) || !value.every((x) => typeof x === 'string')) throw f.error(name, 'a list of strings');
  return value as string[];
}
