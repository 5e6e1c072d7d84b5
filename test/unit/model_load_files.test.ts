import { describe, expect, inject, test } from 'vitest';
import { configFromHf } from '../../src/model/load/config_hf.js';
import { type LoadOptions, loadModel } from '../../src/model/load/index.js';
import { memorySource } from '../../src/model/load/source.js';
import { ropeFrequencies } from '../../src/model/rope.js';
import {
  ARCHITECTURES,
  type Architecture,
  BLOCK_LAYOUT,
  type LoadedModel,
  type ModelConfig,
  weightShapes,
} from '../../src/model/types.js';
import { dequantize, quantize } from '../../src/reference/quant.js';
import { deriveSeed, Random } from '../../src/reference/random.js';
// What transformers computes: test/fixtures/transformers_models.py.
import references from '../fixtures/transformers-models.json' with { type: 'json' };
import {
  bytesOfWeight,
  joined,
  makeGguf,
  makeSafetensors,
  plain,
  rejection,
  type Tensor,
  type Value,
} from './model_load_make.js';

/** A small model's configuration as `config.json` has it. */
const hfConfig = (architecture: Architecture): Record<string, unknown> => ({
  model_type: architecture,
  hidden_act: 'silu',
  hidden_size: 64,
  intermediate_size: 96,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 32,
  vocab_size: 50,
  rms_norm_eps: 2 ** -17,
  max_position_embeddings: 128,
  rope_theta: 500_000,
  bos_token_id: 1,
  eos_token_id: 2,
  tie_word_embeddings: architecture === 'qwen3',
});

/** The same as GGUF metadata. */
const ggufMetadata = (architecture: Architecture): Record<string, Value> => {
  const fields: Record<string, Value> = {
    block_count: 2,
    context_length: 128,
    embedding_length: 64,
    feed_forward_length: 96,
    'attention.head_count': 4,
    'attention.head_count_kv': 2,
    'attention.key_length': 32,
    'attention.value_length': 32,
    'attention.layer_norm_rms_epsilon': 2 ** -17,
    'rope.freq_base': 500_000,
  };
  return {
    'general.architecture': architecture,
    ...Object.fromEntries(Object.entries(fields).map(([name, value]) => [`${architecture}.${name}`, value])),
    'tokenizer.ggml.bos_token_id': 1,
    'tokenizer.ggml.eos_token_id': 2,
  };
};

/** Configuration that both describe. */
const expected = (architecture: Architecture): ModelConfig => ({
  architecture,
  layers: 2,
  hiddenSize: 64,
  intermediateSize: 96,
  numHeads: 4,
  numKvHeads: 2,
  headDim: 32,
  vocabSize: 50,
  rmsEps: 2 ** -17,
  tieEmbeddings: architecture === 'qwen3',
  rope: { theta: 500_000, rotaryDim: 32 },
  qkvBias: architecture === 'qwen2',
  qkNorm: architecture === 'qwen3',
  contextLength: 128,
  bosId: 1,
  eosId: 2,
  stopIds: [2],
});

const HF_NAMES: readonly (readonly [RegExp, string])[] = [
  [/^embed\./, 'model.embed_tokens.'],
  [/^norm\./, 'model.norm.'],
  [/^head\./, 'lm_head.'],
  [/^layers\.(\d+)\.attn_norm\./, 'model.layers.$1.input_layernorm.'],
  [/^layers\.(\d+)\.mlp_norm\./, 'model.layers.$1.post_attention_layernorm.'],
  [/^layers\.(\d+)\.attn\.([qk]_norm)\./, 'model.layers.$1.self_attn.$2.'],
  [/^layers\.(\d+)\.attn\.([a-z]+)\./, 'model.layers.$1.self_attn.$2_proj.'],
  [/^layers\.(\d+)\.mlp\.([a-z]+)\./, 'model.layers.$1.mlp.$2_proj.'],
];

const GGUF_NAMES: readonly (readonly [RegExp, string])[] = [
  [/^embed\./, 'token_embd.'],
  [/^norm\./, 'output_norm.'],
  [/^head\./, 'output.'],
  [/^layers\.(\d+)\.attn_norm\./, 'blk.$1.attn_norm.'],
  [/^layers\.(\d+)\.mlp_norm\./, 'blk.$1.ffn_norm.'],
  [/^layers\.(\d+)\.attn\.o\./, 'blk.$1.attn_output.'],
  [/^layers\.(\d+)\.attn\.([qkv](?:_norm)?)\./, 'blk.$1.attn_$2.'],
  [/^layers\.(\d+)\.mlp\.([a-z]+)\./, 'blk.$1.ffn_$2.'],
];

function renamed(name: string, names: typeof HF_NAMES): string {
  const rule = names.find(([pattern]) => pattern.test(name));
  return rule ? name.replace(rule[0], rule[1]) : name;
}

/** Random weights of a model, by canonical name; every number is a bf16, hence also an f16. */
function randomWeights(config: ModelConfig, seed: number): Map<string, { shape: readonly number[]; values: Float32Array }> {
  const random = new Random(seed);
  return new Map(
    [...weightShapes(config)].map(([name, shape]) => {
      const values = random.normals(shape.reduce((a, b) => a * b, 1)).map((x) => Math.round(x * 32) / 32);
      return [name, { shape, values }];
    }),
  );
}

/** Rows of each head from the half-split into the interleaved order, as converters to GGUF move them. */
function interleave(values: Float32Array, columns: number, headDim: number): Float32Array {
  const out = new Float32Array(values.length);
  const rows = values.length / columns;
  for (let row = 0; row < rows; row++) {
    const within = row % headDim;
    const half = headDim / 2;
    const to = row - within + (within < half ? 2 * within : 2 * (within - half) + 1);
    out.set(values.subarray(row * columns, (row + 1) * columns), to * columns);
  }
  return out;
}

type Weights = ReturnType<typeof randomWeights>;

/** The tensors that a file of this format and architecture would have, as numbers. */
function storedTensors(format: 'hf' | 'gguf', config: ModelConfig, weights: Weights): Weights {
  const names = format === 'hf' ? HF_NAMES : GGUF_NAMES;
  const out: Weights = new Map();
  for (const [name, { shape, values }] of weights) {
    const move = format === 'gguf' && config.architecture === 'llama' && /attn\.[qk]\.weight/.test(name);
    out.set(renamed(name, names), { shape, values: move ? interleave(values, shape[1] as number, config.headDim) : values });
  }
  if (config.architecture !== 'phi3') return out;
  const fuse = (into: string, parts: readonly string[]): void => {
    const found = parts.map((part) => out.get(part) as { shape: readonly number[]; values: Float32Array });
    for (const part of parts) out.delete(part);
    const rows = found.reduce((sum, { shape }) => sum + (shape[0] as number), 0);
    out.set(into, { shape: [rows, config.hiddenSize], values: Float32Array.from(found.flatMap(({ values }) => [...values])) });
  };
  for (let layer = 0; layer < config.layers; layer++) {
    const hf = `model.layers.${layer}.`;
    const gguf = `blk.${layer}.`;
    if (format === 'hf') {
      fuse(
        `${hf}self_attn.qkv_proj.weight`,
        ['q', 'k', 'v'].map((x) => `${hf}self_attn.${x}_proj.weight`),
      );
      fuse(
        `${hf}mlp.gate_up_proj.weight`,
        ['gate', 'up'].map((x) => `${hf}mlp.${x}_proj.weight`),
      );
    } else {
      fuse(
        `${gguf}attn_qkv.weight`,
        ['q', 'k', 'v'].map((x) => `${gguf}attn_${x}.weight`),
      );
      fuse(
        `${gguf}ffn_up.weight`,
        ['gate', 'up'].map((x) => `${gguf}ffn_${x}.weight`),
      );
    }
  }
  return out;
}

const tensorsOf = (
  stored: Weights,
  type: (name: string, shape: readonly number[]) => 'F32' | 'F16' | 'BF16',
): Record<string, Tensor> =>
  Object.fromEntries(
    [...stored].map(([name, { shape, values }]) => [
      name,
      { shape, type: type(name, shape), bytes: plain(type(name, shape), values) },
    ]),
  );

/** Number of a plain type in GGUF. */
const NUMBERS = { F32: 0, F16: 1, BF16: 30 } as const;

const asGguf = (tensors: Record<string, Tensor>): Record<string, Tensor> =>
  Object.fromEntries(
    Object.entries(tensors).map(([name, t]) => [name, { ...t, type: NUMBERS[t.type as keyof typeof NUMBERS] ?? t.type }]),
  );

type Files = Record<string, string | Uint8Array<ArrayBuffer>>;

const json = (value: unknown): string => JSON.stringify(value);

/** All weights of a model as numbers. */
async function numbers(model: LoadedModel): Promise<Map<string, Float64Array>> {
  const out = new Map<string, Float64Array>();
  for (const [name, weight] of model.weights) {
    out.set(name, dequantize(weight.type, await bytesOfWeight(weight, BLOCK_LAYOUT[weight.type].bytes)));
  }
  return out;
}

for (const architecture of ARCHITECTURES) {
  for (const type of ['F32', 'F16', 'BF16'] as const) {
    test(`${architecture} in ${type} gives the same model from safetensors, from shards and from GGUF`, async () => {
      const config = expected(architecture);
      const weights = randomWeights(config, deriveSeed(inject('seed'), architecture + type));
      const hf = tensorsOf(storedTensors('hf', config, weights), () => type);
      const gguf = tensorsOf(storedTensors('gguf', config, weights), (_, shape) => (shape.length === 1 ? 'F32' : type));
      const names = Object.keys(hf);
      const shards = [0, 1].map((n) => Object.fromEntries(Object.entries(hf).filter((_, i) => i % 2 === n)));
      const weightMap = Object.fromEntries(names.map((name, i) => [name, `part-${i % 2}.safetensors`]));
      const folders: Files[] = [
        { 'model.safetensors': makeSafetensors(hf) },
        {
          'model.safetensors.index.json': json({ weight_map: weightMap }),
          'part-0.safetensors': makeSafetensors(shards[0] ?? {}),
          'part-1.safetensors': makeSafetensors(shards[1] ?? {}),
        },
      ];
      const described = folders.map((files) => ({ 'config.json': json(hfConfig(architecture)), ...files }));
      const files: Files[] = [...described, { 'm.gguf': makeGguf(ggufMetadata(architecture), asGguf(gguf)) }];
      for (const file of files) {
        const model = await loadModel(memorySource(file));
        expect(model.config).toEqual(config);
        expect([...model.weights.keys()]).toEqual([...weights.keys()]);
        const found = await numbers(model);
        for (const [name, { shape, values }] of weights) {
          const weight = model.weights.get(name);
          expect(weight?.shape).toEqual(shape);
          expect(weight?.type).toBe(shape.length === 1 ? 'f32' : type === 'F32' ? 'f32' : 'f16');
          expect(found.get(name)).toEqual(Float64Array.from(values));
        }
      }
    });
  }
}

test('q and k of a llama GGUF score as the file means it', async () => {
  // The file's rows, rotated in the interleaved layout, and the loaded rows, rotated in the half-split one, give equal products.
  const config = expected('llama');
  const weights = randomWeights(config, inject('seed'));
  const stored = storedTensors('gguf', config, weights);
  const model = await loadModel(
    memorySource({ 'm.gguf': makeGguf(ggufMetadata('llama'), asGguf(tensorsOf(stored, () => 'F32'))) }),
  );
  const loaded = await numbers(model);
  const random = new Random(inject('seed') + 1);
  const x = random.normals(64);
  const size = config.headDim;
  const project = (w: ArrayLike<number>): number[] =>
    Array.from({ length: size }, (_, r) => x.reduce((sum, value, c) => sum + value * (w[r * 64 + c] as number), 0));
  const rotate = (h: readonly number[], position: number, pair: (d: number) => readonly [number, number]): number[] => {
    const out = [...h];
    for (let d = 0; d < size / 2; d++) {
      const [a, b] = pair(d);
      const angle = position * 500_000 ** ((-2 * d) / size);
      out[a] = (h[a] as number) * Math.cos(angle) - (h[b] as number) * Math.sin(angle);
      out[b] = (h[a] as number) * Math.sin(angle) + (h[b] as number) * Math.cos(angle);
    }
    return out;
  };
  const score = (q: ArrayLike<number>, k: ArrayLike<number>, pair: (d: number) => readonly [number, number]): number =>
    rotate(project(q), 17, pair).reduce((sum, value, i) => sum + value * (rotate(project(k), 5, pair)[i] as number), 0);
  const raw = (name: string): Float32Array => stored.get(name)?.values as Float32Array;
  const fromFile = score(raw('blk.0.attn_q.weight'), raw('blk.0.attn_k.weight'), (d) => [2 * d, 2 * d + 1]);
  const own = (name: string): Float64Array => loaded.get(`layers.0.attn.${name}.weight`) as Float64Array;
  const fromLoaded = score(own('q'), own('k'), (d) => [d, d + size / 2]);
  expect(Math.abs(fromLoaded - fromFile)).toBeLessThan(1e-9 * (1 + Math.abs(fromFile)));
});

describe('quantised tensors of GGUF files', () => {
  /** Numbers of the types in GGUF. */
  const types = { q4_0: 2, q4_1: 3, q5_0: 6, q5_1: 7, q8_0: 8, q2_k: 10, q3_k: 11, q4_k: 12, q5_k: 13, q6_k: 14 } as const;
  for (const [type, number] of Object.entries(types) as [keyof typeof types, number][]) {
    for (const architecture of ['llama', 'phi3'] as const) {
      test(`${type} of a ${architecture} model`, async () => {
        const config = { ...expected(architecture), hiddenSize: 256, intermediateSize: 512, headDim: 64, vocabSize: 33 };
        const random = new Random(deriveSeed(inject('seed'), type + architecture));
        const layout = BLOCK_LAYOUT[type];
        // Each row of blocks is random bytes: what counts is where it goes.
        const canonical = new Map<string, Uint8Array>();
        const stored: Record<string, Tensor> = {};
        const rowsOf = new Map<string, Uint8Array[]>();
        for (const [name, shape] of weightShapes(config)) {
          const [rows = 1, columns = 1] = shape;
          if (shape.length === 1) {
            stored[renamed(name, GGUF_NAMES)] = { shape, type: 0, bytes: plain('F32', random.normals(rows)) };
            continue;
          }
          const rowBytes = (columns / layout.elements) * layout.bytes;
          const list = Array.from({ length: rows }, () => Uint8Array.from({ length: rowBytes }, () => random.integer(0, 255)));
          canonical.set(name, joined(list));
          const order = Array.from({ length: rows }, (_, i) => i);
          if (architecture === 'llama' && /attn\.[qk]\./.test(name)) {
            interleave(Float32Array.from(order), 1, config.headDim).forEach((from, to) => {
              order[to] = from;
            });
          }
          rowsOf.set(
            renamed(name, GGUF_NAMES),
            order.map((row) => list[row] as Uint8Array),
          );
        }
        if (architecture === 'phi3') {
          for (const blk of ['blk.0.', 'blk.1.']) {
            const take = (name: string): Uint8Array[] => {
              const rows = rowsOf.get(blk + name) ?? [];
              rowsOf.delete(blk + name);
              return rows;
            };
            rowsOf.set(`${blk}attn_qkv.weight`, [...take('attn_q.weight'), ...take('attn_k.weight'), ...take('attn_v.weight')]);
            rowsOf.set(`${blk}ffn_up.weight`, [...take('ffn_gate.weight'), ...take('ffn_up.weight')]);
          }
        }
        for (const [name, rows] of rowsOf) {
          const columns = ((rows[0]?.length ?? 0) / layout.bytes) * layout.elements;
          stored[name] = { shape: [rows.length, columns], type: number, bytes: joined(rows) };
        }
        const metadata = { ...ggufMetadata(architecture) };
        for (const [name, value] of Object.entries({
          embedding_length: 256,
          feed_forward_length: 512,
          'attention.key_length': 64,
          'attention.value_length': 64,
        })) {
          metadata[`${architecture}.${name}`] = value;
        }
        const model = await loadModel(memorySource({ 'm.gguf': makeGguf(metadata, stored) }));
        for (const [name, bytes] of canonical) {
          const weight = model.weights.get(name);
          expect([weight?.type, weight?.byteLength]).toEqual([type, bytes.length]);
          if (weight) expect(Buffer.compare(await bytesOfWeight(weight, layout.bytes), bytes)).toBe(0);
        }
      });
    }
  }

  test('long tensors come in chunks', async () => {
    // 9 MiB of q8_0 in the embedding: more than two chunks.
    const rows = 140_001;
    const config = expected('qwen3');
    const random = new Random(inject('seed'));
    const weights = randomWeights(config, inject('seed'));
    const stored = asGguf(tensorsOf(storedTensors('gguf', config, weights), () => 'F32'));
    const values = random.normals(64);
    const row = quantize('q8_0', values);
    const bytes = new Uint8Array(Buffer.alloc(rows * row.length, row));
    stored['token_embd.weight'] = { shape: [rows, 64], type: 8, bytes };
    const model = await loadModel(memorySource({ 'm.gguf': makeGguf(ggufMetadata('qwen3'), stored) }));
    expect(model.config.vocabSize).toBe(rows);
    const weight = model.weights.get('embed.weight');
    if (!weight) throw new Error('no embedding');
    let chunks = 0;
    for await (const chunk of weight.read()) {
      expect(chunk.length).toBeLessThanOrEqual(4 * 2 ** 20);
      chunks++;
    }
    expect(chunks).toBeGreaterThan(2);
    expect(Buffer.compare(await bytesOfWeight(weight, 34), bytes)).toBe(0);
    const abort = AbortSignal.abort(new Error('enough'));
    await expect(weight.read(abort)[Symbol.asyncIterator]().next()).rejects.toThrow('enough');
  });
});

describe('config.json', () => {
  const of = (changes: Record<string, unknown>, hasHead = true, more = {}): ModelConfig =>
    configFromHf({ config: { ...hfConfig('llama'), ...changes }, ...more }, hasHead);

  test('scaling of the rotary frequencies, old and new spelling', () => {
    const llama3 = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 64 };
    const own = { type: 'llama3', factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalContextLength: 64 };
    expect(of({ rope_scaling: { ...llama3, rope_type: 'llama3' } }).rope).toEqual({
      theta: 500_000,
      rotaryDim: 32,
      scaling: own,
    });
    const parameters = { ...llama3, rope_type: 'llama3', rope_theta: 7 };
    expect(of({ rope_theta: undefined, rope_parameters: parameters }).rope).toEqual({ theta: 7, rotaryDim: 32, scaling: own });
    expect(of({ rope_scaling: { type: 'linear', factor: 2 } }).rope.scaling).toEqual({ type: 'linear', factor: 2 });
    expect(of({ rope_parameters: { rope_type: 'default', rope_theta: 9 } }).rope).toEqual({ theta: 9, rotaryDim: 32 });
    expect(of({ rope_scaling: null }).rope.scaling).toBeUndefined();
    const dynamic = of({ rope_scaling: { type: 'dynamic', factor: 2 } });
    expect(dynamic.rope.scaling).toEqual({ type: 'dynamic', factor: 2, originalContextLength: 128 });
    expect(dynamic.contextLength).toBe(256);
    const yarn = of({ rope_scaling: { type: 'yarn', factor: 4, original_max_position_embeddings: 128 } });
    expect(yarn.rope.scaling).toEqual({
      type: 'yarn',
      factor: 4,
      betaFast: 32,
      betaSlow: 1,
      originalContextLength: 128,
      attentionFactor: 0.1 * Math.log(4) + 1,
      truncate: true,
    });
    expect(yarn.contextLength).toBe(512);
  });

  test('LongRoPE, a partial rotation and the window of phi3', () => {
    const factors = { short_factor: Array(12).fill(1.5), long_factor: Array(12).fill(3) };
    const config = of({
      model_type: 'phi3',
      partial_rotary_factor: 0.75,
      original_max_position_embeddings: 32,
      sliding_window: 100,
      rope_scaling: { type: 'longrope', ...factors },
    });
    expect(config.rope).toEqual({
      theta: 500_000,
      rotaryDim: 24,
      scaling: {
        type: 'longrope',
        shortFactor: factors.short_factor,
        longFactor: factors.long_factor,
        originalContextLength: 32,
        attentionFactor: Math.sqrt(1 + Math.log(4) / Math.log(32)),
      },
    });
    expect(config.slidingWindow).toBe(100);
    expect(of({ model_type: 'phi3', sliding_window: 200 }).slidingWindow).toBeUndefined();
  });

  test('mistral is llama, with a window unless the file says null', () => {
    const llama = of({});
    expect(of({ model_type: 'mistral', sliding_window: null })).toEqual(llama);
    expect(of({ model_type: 'mistral', sliding_window: 100 })).toEqual({ ...llama, slidingWindow: 100 });
    const long = { model_type: 'mistral', max_position_embeddings: 32_768 };
    expect(of(long).slidingWindow).toBe(4096);
    expect(of({ ...long, sliding_window: null }).slidingWindow).toBeUndefined();
    expect(of({ sliding_window: 100 })).toEqual(llama);
  });

  test('defaults, stop ids and templates', () => {
    expect(of({ tie_word_embeddings: undefined }, true).tieEmbeddings).toBe(false);
    expect(of({ tie_word_embeddings: undefined }, false).tieEmbeddings).toBe(true);
    expect(of({ head_dim: undefined }).headDim).toBe(16);
    expect(of({ num_key_value_heads: undefined }).numKvHeads).toBe(4);
    const generation = { eos_token_id: [2, 7, 9] };
    expect(of({}, true, { generation }).stopIds).toEqual([2, 7, 9]);
    expect(of({}, true, { tokenizer: { chat_template: 'x' } }).chatTemplate).toBe('x');
    const named = [
      { name: 'rag', template: 'y' },
      { name: 'default', template: 'z' },
    ];
    expect(of({}, true, { tokenizer: { chat_template: named } }).chatTemplate).toBe('z');
    expect(of({}, true, { tokenizer: { chat_template: named }, template: 't' }).chatTemplate).toBe('t');
  });

  for (const [name, { config, at }] of Object.entries(references.rope)) {
    test(`rotary frequencies are those of transformers: ${name}`, () => {
      const { rope } = configFromHf({ config }, true);
      for (const { length, factor, frequencies } of at) {
        const own = ropeFrequencies(rope, length);
        expect(own.frequencies).toHaveLength(frequencies.length);
        // transformers computes them in f32.
        frequencies.forEach((f, d) => expect(Math.abs((own.frequencies[d] ?? 0) / f - 1), `${length}, ${d}`).toBeLessThan(5e-6));
        expect(own.factor).toBeCloseTo(factor, 9);
      }
    });
  }

  const refused: readonly [Record<string, unknown>, string][] = [
    [{ model_type: 'mamba' }, 'model_type'],
    [{ hidden_act: 'gelu' }, 'hidden_act'],
    [{ attention_bias: true }, 'attention_bias'],
    [{ mlp_bias: true }, 'mlp_bias'],
    [{ use_sliding_window: true }, 'use_sliding_window'],
    [{ quantization_config: { bits: 4 } }, 'quantization_config'],
    [{ num_hidden_layers: 0 }, 'num_hidden_layers'],
    [{ num_hidden_layers: '2' }, 'num_hidden_layers'],
    [{ num_key_value_heads: 3 }, 'num_key_value_heads'],
    [{ head_dim: undefined, hidden_size: 65 }, 'head_dim'],
    [{ rms_norm_eps: -1 }, 'rms_norm_eps'],
    [{ partial_rotary_factor: 1.5 }, 'partial_rotary_factor'],
    [{ eos_token_id: 'end' }, 'eos_token_id'],
    [{ rope_scaling: { type: 'spiral' } }, 'rope_scaling.type'],
    [{ rope_scaling: { type: 'longrope', short_factor: [1], long_factor: [1] } }, 'rope_scaling.short_factor'],
    [{ rope_scaling: 3 }, 'rope_scaling'],
  ];
  for (const [changes, field] of refused) {
    test(`refuses ${json(changes)}`, async () => {
      const error = await rejection(Promise.resolve().then(() => of(changes)));
      expect([error.code, error.argument]).toEqual(['unsupported', `config.json: ${field}`]);
      expect(error.allowed).not.toBe('');
    });
  }
});

describe('GGUF metadata', () => {
  const load = (metadata: Record<string, Value>, tensors: Record<string, Tensor> = {}, options: LoadOptions = {}) => {
    const config = expected('llama');
    const stored = asGguf(tensorsOf(storedTensors('gguf', config, randomWeights(config, 1)), () => 'F32'));
    const file = makeGguf({ ...ggufMetadata('llama'), ...metadata }, { ...stored, ...tensors });
    return loadModel(memorySource({ 'm.gguf': file }), options);
  };
  const f32 = (values: readonly number[]): Tensor => ({ shape: [values.length], type: 0, bytes: plain('F32', values) });

  test('scaling of the rotary frequencies', async () => {
    const factors = Array.from({ length: 16 }, (_, i) => 1 + i / 4);
    const scaling = async (metadata: Record<string, Value>, tensors: Record<string, Tensor> = {}) =>
      (await load(metadata, tensors)).config.rope.scaling;
    expect(await scaling({}, { 'rope_freqs.weight': f32(factors) })).toEqual({ type: 'factors', factors });
    expect(await scaling({ 'llama.rope.scaling.type': 'linear', 'llama.rope.scaling.factor': 2 })).toEqual({
      type: 'linear',
      factor: 2,
    });
    expect(
      await scaling({
        'llama.rope.scaling.type': 'yarn',
        'llama.rope.scaling.factor': 4,
        'llama.rope.scaling.original_context_length': 32,
      }),
    ).toMatchObject({ type: 'yarn', factor: 4, originalContextLength: 32, attentionFactor: 1 + 0.1 * Math.log(4) });
    expect(
      await scaling(
        { 'llama.rope.scaling.original_context_length': 32, 'llama.rope.scaling.attn_factor': 1.25 },
        { 'rope_factors_short.weight': f32(factors), 'rope_factors_long.weight': f32(factors.map((x) => 2 * x)) },
      ),
    ).toEqual({
      type: 'longrope',
      shortFactor: factors,
      longFactor: factors.map((x) => 2 * x),
      originalContextLength: 32,
      attentionFactor: 1.25,
    });
  });

  test('stop ids come from the file and from well-known control tokens', async () => {
    const tokens = { 'tokenizer.ggml.tokens': ['a', '<|im_end|>', '<|eot_id|>'], 'tokenizer.ggml.token_type': [1, 3, 1] };
    const { config } = await load({ ...tokens, 'tokenizer.ggml.eot_token_id': 7 }, {}, { tokenizer: false });
    expect(config.stopIds).toEqual([2, 7, 1]);
  });

  const refused: readonly [string, Record<string, Value>, Record<string, Tensor>, string][] = [
    ['another architecture', { 'general.architecture': 'mamba' }, {}, 'general.architecture'],
    ['experts', { 'llama.expert_count': 8 }, {}, 'llama.expert_count'],
    ['a split file', { 'split.count': 3 }, {}, 'split.count'],
    [
      'a scaling it does not know',
      { 'llama.rope.scaling.type': 'spiral', 'llama.rope.scaling.factor': 2 },
      {},
      'llama.rope.scaling.type',
    ],
    ['values of another size', { 'llama.attention.value_length': 64 }, {}, 'llama.attention.value_length'],
    ['head counts by layer', { 'llama.attention.head_count': [4, 8] }, {}, 'llama.attention.head_count'],
    ['a surplus tensor', {}, { 'blk.0.attn_q.scale': f32([1]) }, 'tensor'],
    ['a tensor of a wrong shape', {}, { 'output_norm.weight': f32([1, 2]) }, 'shape of tensor output_norm.weight'],
    [
      'a tensor type',
      {},
      { 'blk.1.ffn_up.weight': { shape: [96, 64], type: 20, bytes: new Uint8Array(64) } },
      'type of tensor blk.1.ffn_up.weight',
    ],
    [
      'rows that are no whole blocks',
      {},
      { 'blk.1.ffn_up.weight': { shape: [96, 64], type: 12, bytes: new Uint8Array(64) } },
      'row length of tensor blk.1.ffn_up.weight',
    ],
  ];
  for (const [what, metadata, tensors, field] of refused) {
    test(`refuses ${what}`, async () => {
      const error = await rejection(load(metadata, tensors));
      expect([error.code, error.argument]).toEqual(['unsupported', field]);
      expect(error.allowed).not.toBe('');
    });
  }

  test('a header that grows beyond the first read', async () => {
    const long = Array.from({ length: 150_000 }, (_, i) => `token ${i} é`);
    const { config } = await load(
      { 'tokenizer.ggml.tokens': long, 'general.name': 'é'.repeat(700_000) },
      {},
      { tokenizer: false },
    );
    expect(config.name).toBe('é'.repeat(700_000));
  });
});

describe('damaged files', () => {
  const config = expected('llama');
  const weights = randomWeights(config, 1);
  const hf = tensorsOf(storedTensors('hf', config, weights), () => 'F32');
  const gguf = makeGguf(ggufMetadata('llama'), asGguf(tensorsOf(storedTensors('gguf', config, weights), () => 'F32')));
  const safetensors = makeSafetensors(hf);
  const cfg = json(hfConfig('llama'));
  const shouting = (bytes: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> =>
    Uint8Array.from(bytes, (b, i) => (i < 4 ? b ^ 32 : b));
  const folder = (file: Uint8Array<ArrayBuffer>) => ({ 'config.json': cfg, 'model.safetensors': file });
  const { 'lm_head.weight': _, ...headless } = hf;
  const huge = {
    ...hf,
    'model.embed_tokens.weight': { shape: [50, 64], type: 'BF16', bytes: plain('BF16', Array(3200).fill(1e6)) },
  };

  const cases: readonly [string, Files, RegExp, 'file' | 'unsupported'][] = [
    ['a GGUF file of other bytes', { 'm.gguf': shouting(gguf) }, /begin with "GGUF"/, 'file'],
    ['a GGUF header cut off', { 'm.gguf': gguf.slice(0, 300) }, /m\.gguf: its header is cut off/, 'file'],
    ['GGUF data cut off', { 'm.gguf': gguf.slice(0, -40) }, /ends at byte \d+, but the file has \d+/, 'file'],
    ['an empty GGUF file', { 'm.gguf': new Uint8Array(0) }, /cut off/, 'file'],
    ['safetensors data cut off', folder(safetensors.slice(0, -1)), /cut off/, 'file'],
    ['a safetensors header cut off', folder(safetensors.slice(0, 100)), /header claims/, 'file'],
    ['an empty safetensors file', folder(new Uint8Array(3)), /too few/, 'file'],
    [
      'a shard that lacks a tensor',
      { 'config.json': cfg, 'model.safetensors.index.json': json({ weight_map: { x: 'a' } }), a: safetensors },
      /lacks the tensor "x"/,
      'file',
    ],
    ['a config.json that is no JSON', { ...folder(safetensors), 'config.json': '{' }, /config\.json: it is not JSON/, 'file'],
    ['a folder without config.json', { 'model.safetensors': safetensors }, /has no file config\.json/, 'file'],
    ['a folder without a model', { 'README.md': 'x' }, /has no file .*it has README\.md/, 'file'],
    [
      'a missing tensor',
      folder(makeSafetensors(headless)),
      /lm_head\.weight is undefined; allowed: a \[50, 64\] tensor/,
      'unsupported',
    ],
    [
      'a type that does not load',
      folder(makeSafetensors({ ...hf, 'model.norm.weight': { shape: [64], type: 'I8', bytes: new Uint8Array(64) } })),
      /model\.norm\.weight is "I8"; allowed: F32, F16, BF16/,
      'unsupported',
    ],
  ];
  for (const [what, files, message, code] of cases) {
    test(`${what} is refused`, async () => {
      const error = await rejection(loadModel(memorySource(files)));
      expect(error.message).toMatch(message);
      expect(error.code).toBe(code);
    });
  }

  test('a bf16 that no f16 holds is refused when it is read', async () => {
    const model = await loadModel(memorySource(folder(makeSafetensors(huge))));
    const error = await rejection(numbers(model));
    expect(error.message).toContain('model.embed_tokens.weight');
  });

  test('several GGUF files want a choice', async () => {
    const files = { 'a.gguf': gguf, 'b.gguf': gguf };
    const error = await rejection(loadModel(memorySource(files)));
    expect([error.argument, error.allowed]).toEqual(['file', 'a.gguf, b.gguf']);
    expect((await loadModel(memorySource(files), { file: 'b.gguf' })).config).toEqual(config);
  });
});
