/** Small models with small vocabularies, for tests. */
import { Random } from '../../src/reference/random.js';
import { makeGguf, plain, type Tensor, type Value } from './model_load_make.js';
import fixture from './model_load_tokenizers.json' with { type: 'json' };

/** GGUF metadata of tokenizers, by name. */
export const TOKENIZERS: Readonly<Record<string, Record<string, Value>>> = {
  ...Object.fromEntries(
    ['smollm', 'llama-bpe', 'qwen2'].map((pre) => [
      pre,
      {
        'tokenizer.ggml.model': 'gpt2',
        'tokenizer.ggml.pre': pre,
        'tokenizer.ggml.tokens': fixture.bpe.tokens,
        'tokenizer.ggml.token_type': fixture.bpe.types,
        'tokenizer.ggml.merges': fixture.bpe.merges,
        'tokenizer.ggml.bos_token_id': fixture.bpe.bos,
        'tokenizer.ggml.eos_token_id': fixture.bpe.eos,
      },
    ]),
  ),
  sentencepiece: {
    'tokenizer.ggml.model': 'llama',
    'tokenizer.ggml.tokens': fixture.spm.tokens,
    'tokenizer.ggml.scores': Float32Array.from(fixture.spm.scores),
    'tokenizer.ggml.token_type': fixture.spm.types,
    'tokenizer.ggml.bos_token_id': 1,
    'tokenizer.ggml.eos_token_id': 2,
    'tokenizer.ggml.unknown_token_id': 0,
  },
};

/** A chat template: each role on a line of its own. */
export const TEMPLATE =
  "{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}";

/** A GGUF file: a Llama of two layers with random weights, and one of {@link TOKENIZERS}. */
export function tinyModel(tokenizer: string, metadata: Record<string, Value> = {}): Uint8Array<ArrayBuffer> {
  const random = new Random(7);
  const own = TOKENIZERS[tokenizer] ?? {};
  const vocab = (own['tokenizer.ggml.tokens'] as readonly string[]).length;
  const [hidden, inner, kv] = [64, 96, 32];
  const matrix = (rows: number, columns: number): Tensor => ({
    shape: [rows, columns],
    type: 0,
    bytes: plain('F32', random.normals(rows * columns, 1 / Math.sqrt(columns))),
  });
  const norm: Tensor = { shape: [hidden], type: 0, bytes: plain('F32', new Float32Array(hidden).fill(1)) };
  const layers = [0, 1].flatMap((layer) =>
    Object.entries({
      attn_norm: norm,
      attn_q: matrix(hidden, hidden),
      attn_k: matrix(kv, hidden),
      attn_v: matrix(kv, hidden),
      attn_output: matrix(hidden, hidden),
      ffn_norm: norm,
      ffn_gate: matrix(inner, hidden),
      ffn_up: matrix(inner, hidden),
      ffn_down: matrix(hidden, inner),
    }).map(([name, tensor]) => [`blk.${layer}.${name}.weight`, tensor]),
  );
  return makeGguf(
    {
      'general.architecture': 'llama',
      'general.name': 'Tiny',
      'llama.block_count': 2,
      'llama.context_length': 4096,
      'llama.embedding_length': hidden,
      'llama.feed_forward_length': inner,
      'llama.attention.head_count': 2,
      'llama.attention.head_count_kv': 1,
      'llama.attention.layer_norm_rms_epsilon': 1e-5,
      ...own,
      ...metadata,
    },
    { 'token_embd.weight': matrix(vocab, hidden), 'output_norm.weight': norm, ...Object.fromEntries(layers) },
  );
}
