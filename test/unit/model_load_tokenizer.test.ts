import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { loadModel } from '../../src/model/load/index.js';
import { openNodeModel } from '../../src/model/load/node.js';
import { memorySource } from '../../src/model/load/source.js';
import { createTokenizer } from '../../src/model/load/tokenizer.js';
import type { Tokenizer } from '../../src/model/types.js';
import { TOKENIZERS } from './eval_make.js';
import { makeGguf, plain, rejection, type Value } from './model_load_make.js';
// Small vocabularies trained for this (Python packages tokenizers 0.23 and sentencepiece), and the ids that llama.cpp (node-llama-cpp
// 3.22.1) gives for the texts with them; `smollm2` holds its ids with the vocabulary of SmolLM2-135M-Instruct.
import fixture from './model_load_tokenizers.json' with { type: 'json' };

const { texts } = fixture;

const smollm2 = fileURLToPath(new URL('../../.build/models/SmolLM2-135M-Instruct.Q4_1.gguf', import.meta.url));

/** The tokenizer of a GGUF file with this metadata, and the smallest model around it. */
async function tokenizerOf(metadata: Record<string, Value>, architecture: 'llama' | 'phi3' = 'llama'): Promise<Tokenizer> {
  const count = (metadata['tokenizer.ggml.tokens'] as readonly string[]).length;
  const matrix = (rows: number) => ({ shape: [rows, 2], type: 0, bytes: plain('F32', new Float32Array(2 * rows)) });
  const norm = { shape: [2], type: 0, bytes: plain('F32', [1, 1]) };
  const layers: Record<string, number> =
    architecture === 'phi3'
      ? { attn_qkv: 6, attn_output: 2, ffn_up: 4, ffn_down: 2 }
      : { attn_q: 2, attn_k: 2, attn_v: 2, attn_output: 2, ffn_gate: 2, ffn_up: 2, ffn_down: 2 };
  const fields: Record<string, Value> = {
    block_count: 1,
    context_length: 16,
    embedding_length: 2,
    feed_forward_length: 2,
    'attention.head_count': 1,
    'attention.layer_norm_rms_epsilon': 1e-5,
  };
  const file = makeGguf(
    {
      'general.architecture': architecture,
      ...Object.fromEntries(Object.entries(fields).map(([name, value]) => [`${architecture}.${name}`, value])),
      ...metadata,
    },
    {
      'token_embd.weight': matrix(count),
      'output_norm.weight': norm,
      'blk.0.attn_norm.weight': norm,
      'blk.0.ffn_norm.weight': norm,
      ...Object.fromEntries(Object.entries(layers).map(([name, rows]) => [`blk.0.${name}.weight`, matrix(rows)])),
    },
  );
  const { tokenizer } = await loadModel(memorySource({ 'tiny.gguf': file }));
  if (!tokenizer) throw new Error('no tokenizer');
  return tokenizer;
}

const bpe = (pre: string): Record<string, Value> => ({ ...TOKENIZERS['smollm'], 'tokenizer.ggml.pre': pre });
const spm = (): Record<string, Value> => ({ ...TOKENIZERS['sentencepiece'] });

/**
 * Checks ids against the other implementation's, and that decoding, at once and token by token, gives the text back.
 *
 * @param exact what decoding gives, or undefined where that is not checked
 */
function check(
  tokenizer: Tokenizer,
  ids: readonly (readonly number[])[],
  exact: (text: string) => string | undefined = (text) => text,
): void {
  const seen: number[][] = texts.map((text) => tokenizer.encode(text, false));
  expect(seen).toEqual(ids);
  texts.forEach((text, i) => {
    const own = seen[i] as number[];
    const back = exact(text);
    if (back !== undefined) expect(tokenizer.decode(own, false)).toBe(back);
    const stream = tokenizer.stream();
    expect(own.map((id) => stream.push(id)).join('') + stream.end()).toBe(tokenizer.decode(own));
  });
}

describe('byte-level vocabularies of GGUF files', () => {
  for (const pre of ['gpt-2', 'smollm', 'llama-bpe', 'qwen2', 'deepseek-r1-qwen', 'gpt-4o'] as const) {
    test(`${pre} gives the ids of llama.cpp`, async () => {
      const tokenizer = await tokenizerOf(bpe(pre));
      expect(tokenizer.size).toBe(fixture.bpe.tokens.length);
      // Qwen composes characters first, which llama.cpp leaves out: the one text that this changes is checked on its own.
      if (!pre.includes('qwen')) return check(tokenizer, fixture.ids[pre]);
      texts.forEach((text, i) => {
        if (text === text.normalize('NFC')) expect(tokenizer.encode(text, false)).toEqual(fixture.ids[pre][i]);
        expect(tokenizer.decode(tokenizer.encode(text, false), false)).toBe(text.normalize('NFC'));
      });
    });
  }

  test('llama-bpe adds a BOS token, smollm none, and the file has the last word', async () => {
    expect((await tokenizerOf(bpe('llama-bpe'))).encode('a')[0]).toBe(fixture.bpe.bos);
    expect((await tokenizerOf(bpe('smollm'))).encode('a')).toHaveLength(1);
    const both = { ...bpe('smollm'), 'tokenizer.ggml.add_bos_token': true, 'tokenizer.ggml.add_eos_token': true };
    const ids = (await tokenizerOf(both)).encode('a');
    expect([ids.length, ids[0], ids[2]]).toEqual([3, fixture.bpe.bos, fixture.bpe.eos]);
  });

  test('an unknown splitting is refused by name', async () => {
    const error = await rejection(tokenizerOf(bpe('tekken')));
    expect([error.code, error.argument, error.value]).toEqual(['unsupported', 'tokenizer.ggml.pre', 'tekken']);
    expect(error.allowed).toContain('qwen2');
    expect((await rejection(tokenizerOf({ ...bpe('gpt-2'), 'tokenizer.ggml.model': 'bert' }))).argument).toBe(
      'tokenizer.ggml.model',
    );
  });
});

describe('SentencePiece vocabularies of GGUF files', () => {
  // The tokenizer library leaves a byte order mark out when it is put together from bytes.
  const withoutMark = (text: string): string => text.replace('\ufeff', '');

  test('with a first space', async () => {
    const tokenizer = await tokenizerOf(spm());
    // What follows a special token gets a first space as well, which decoding keeps.
    check(tokenizer, fixture.ids.spm, (text) => (text.includes('<|user|>') ? undefined : withoutMark(text)));
    expect(tokenizer.encode('a')[0]).toBe(1);
  });

  test('without a first space', async () => {
    check(await tokenizerOf({ ...spm(), 'tokenizer.ggml.add_space_prefix': false }), fixture.ids['spm-noprefix'], withoutMark);
  });
});

test('the control tokens of phi3 take white space along', async () => {
  const tokenizer = await tokenizerOf(
    {
      ...spm(),
      'tokenizer.ggml.tokens': [...fixture.spm.tokens, '<|endoftext|>'],
      'tokenizer.ggml.scores': Float32Array.of(...fixture.spm.scores, 0),
      'tokenizer.ggml.token_type': [
        ...fixture.spm.types.map((type, id) => (fixture.spm.tokens[id] === '<|user|>' ? 3 : type)),
        3,
      ],
    },
    'phi3',
  );
  expect(texts.map((text) => tokenizer.encode(text, false))).toEqual(fixture.ids.phi3);
});

test('a tokenizer.json gives the ids of the same vocabulary', () => {
  const tokenizer = createTokenizer({
    tokenizer: {
      added_tokens: fixture.bpe.tokens.slice(-3).map((content, i) => ({ id: fixture.bpe.bos + i, content, special: true })),
      normalizer: null,
      pre_tokenizer: {
        type: 'Sequence',
        pretokenizers: [
          { type: 'Digits', individual_digits: true },
          { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
        ],
      },
      post_processor: null,
      decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
      model: {
        type: 'BPE',
        vocab: Object.fromEntries(fixture.bpe.tokens.map((token, id) => [token, id])),
        merges: fixture.bpe.merges,
      },
    },
  });
  check(tokenizer, fixture.ids.smollm);
});

describe('decoding as a stream', () => {
  test('gives characters when their last byte is there', async () => {
    const tokenizer = await tokenizerOf(bpe('gpt-2'));
    const stream = tokenizer.stream();
    const pieces = tokenizer.encode('é🤷x', false).map((id) => stream.push(id));
    expect(pieces.join('') + stream.end()).toBe('é🤷x');
    expect(pieces.every((piece) => !piece.includes('\ufffd'))).toBe(true);
  });

  test('gives what is left of a broken character at the end', async () => {
    const tokenizer = await tokenizerOf(bpe('gpt-2'));
    const stream = tokenizer.stream();
    const [first = -1] = tokenizer.encode('\u{1f9ff}', false);
    expect([stream.push(first), stream.end()]).toEqual(['', '\ufffd']);
  });
});

describe('chat templates', () => {
  const make = (chatTemplate?: string): Tokenizer =>
    createTokenizer({
      tokenizer: {
        model: { type: 'BPE', vocab: { a: 0, '<s>': 1 }, merges: [] },
        added_tokens: [],
        normalizer: null,
        pre_tokenizer: null,
        post_processor: null,
        decoder: null,
      },
      config: { bos_token: { content: '<s>' } },
      chatTemplate,
    });

  test('see the messages, the prompt flag and the special tokens', () => {
    const template =
      '{{ bos_token }}{% for m in messages %}[{{ m.role }}:{{ m.content | trim }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}';
    const messages = [{ role: 'user', content: ' hi ' }];
    expect(make(template).chat(messages)).toBe('<s>[user:hi]>');
    expect(make(template).chat(messages, false)).toBe('<s>[user:hi]');
  });

  test('that reject messages, or are not there, raise typed errors', async () => {
    const raising = make("{{ raise_exception('roles must alternate') }}");
    const error = await rejection(Promise.resolve().then(() => raising.chat([])));
    expect([error.code, error.argument]).toEqual(['invalid-argument', 'messages']);
    expect(error.message).toContain('roles must alternate');
    expect((await rejection(Promise.resolve().then(() => make().chat([])))).code).toBe('unsupported');
  });
});

const missing = existsSync(smollm2) ? '' : 'skipped: no SmolLM2 file (run scripts/fetch_smollm2.sh): ';

describe.skipIf(missing)(`${missing}SmolLM2-135M-Instruct`, () => {
  test('configuration, weights and tokenizer', async () => {
    const model = await openNodeModel(smollm2);
    const { chatTemplate, rmsEps, ...config } = model.config;
    expect(config).toEqual({
      architecture: 'llama',
      name: 'Smollm2 135M 8k Lc100K Mix1 Ep2',
      layers: 30,
      hiddenSize: 576,
      intermediateSize: 1536,
      numHeads: 9,
      numKvHeads: 3,
      headDim: 64,
      vocabSize: 49152,
      tieEmbeddings: true,
      rope: { theta: 100_000, rotaryDim: 64 },
      qkvBias: false,
      qkNorm: false,
      contextLength: 8192,
      bosId: 1,
      eosId: 2,
      stopIds: [2, 0],
    });
    expect(rmsEps).toBeCloseTo(1e-5, 10);
    expect(chatTemplate).toContain('<|im_start|>');
    expect(model.weights.size).toBe(272);
    expect(model.weights.get('embed.weight')).toMatchObject({ shape: [49152, 576], type: 'q8_0', byteLength: 30_081_024 });
    expect(model.weights.get('layers.29.mlp.down.weight')).toMatchObject({ shape: [576, 1536], type: 'q4_1' });

    const { tokenizer } = model;
    if (!tokenizer) throw new Error('no tokenizer');
    check(tokenizer, fixture.smollm2);
    expect(tokenizer.idOf('<|im_end|>')).toBe(2);
    expect(tokenizer.decode([1, 19556, 2])).toBe('Hello');
    expect(tokenizer.chat([{ role: 'user', content: 'Hi' }])).toBe(
      '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' +
        '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n',
    );
    await model.close();
  });
});
