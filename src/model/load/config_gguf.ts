import { ARCHITECTURES, type Architecture, type ModelConfig, type RopeConfig } from '../types.js';
import { longropeAttentionFactor } from './config_hf.js';
import { Fields } from './fields.js';
import type { GgufHeader } from './gguf.js';
import { readBytes, unsupported } from './source.js';

/** Tokens that end an answer where they are control tokens, whatever the file calls its end of text. */
const STOP_TOKENS = ['<|im_end|>', '<|eot_id|>', '<|eom_id|>', '<|end|>', '<|endoftext|>', '<|end_of_text|>'];

/** Type of control tokens in `tokenizer.ggml.token_type`. */
const CONTROL = 3;

/** The configuration that the metadata of a GGUF file describes. */
export async function configFromGguf(header: GgufHeader, signal?: AbortSignal): Promise<ModelConfig> {
  const general = new Fields('', (name) => header.metadata.get(name));
  const architecture = general.text('general.architecture') as Architecture;
  if (!ARCHITECTURES.includes(architecture)) throw general.error('general.architecture', ARCHITECTURES.join(', '));
  general.only('split.count', 0, 1);
  const f = new Fields(`${architecture}.`, (name) => header.metadata.get(`${architecture}.${name}`));
  f.only('expert_count', 0);

  const numHeads = f.count('attention.head_count');
  const numKvHeads = f.count('attention.head_count_kv', numHeads);
  if (numHeads % numKvHeads) throw f.error('attention.head_count_kv', `a divisor of attention.head_count, ${numHeads}`);
  const hiddenSize = f.count('embedding_length');
  const headDim = f.count('attention.key_length', hiddenSize / numHeads);
  f.only('attention.value_length', headDim);
  const contextLength = f.count('context_length');
  const window = f.optionalCount('attention.sliding_window', 0) || undefined;
  const vocabSize = header.tensors.get('token_embd.weight')?.shape[0];
  if (vocabSize === undefined) throw unsupported('tensor token_embd.weight', undefined, 'a matrix');

  const token = new Fields('tokenizer.ggml.', (name) => header.metadata.get(`tokenizer.ggml.${name}`));
  const bosId = token.optionalCount('bos_token_id', 0);
  const eosId = token.optionalCount('eos_token_id', 0);
  const template = general.text('tokenizer.chat_template');
  const name = general.text('general.name');
  return {
    architecture,
    ...(name === undefined ? {} : { name }),
    layers: f.count('block_count'),
    hiddenSize,
    intermediateSize: f.count('feed_forward_length'),
    numHeads,
    numKvHeads,
    headDim,
    vocabSize,
    rmsEps: f.positive('attention.layer_norm_rms_epsilon'),
    tieEmbeddings: !header.tensors.has('output.weight'),
    rope: await ropeOf(f, header, headDim, contextLength, signal),
    qkvBias: header.tensors.has('blk.0.attn_q.bias'),
    qkNorm: architecture === 'qwen3',
    contextLength,
    ...(window !== undefined && window < contextLength ? { slidingWindow: window } : {}),
    ...(bosId === undefined ? {} : { bosId }),
    ...(eosId === undefined ? {} : { eosId }),
    stopIds: stopIdsOf(token, eosId),
    ...(template === undefined ? {} : { chatTemplate: template }),
  };
}

function stopIdsOf(token: Fields, eosId: number | undefined): number[] {
  const ids = new Set<number>();
  for (const id of [eosId, token.optionalCount('eot_token_id', 0), token.optionalCount('eom_token_id', 0)]) {
    if (id !== undefined) ids.add(id);
  }
  const tokens = token.raw('tokens');
  const types = token.raw('token_type');
  if (Array.isArray(tokens) && Array.isArray(types)) {
    tokens.forEach((text, id) => {
      if (types[id] === CONTROL && STOP_TOKENS.includes(text as string)) ids.add(id);
    });
  }
  return [...ids];
}

async function ropeOf(
  f: Fields,
  header: GgufHeader,
  headDim: number,
  contextLength: number,
  signal: AbortSignal | undefined,
): Promise<RopeConfig> {
  const theta = f.positive('rope.freq_base', 10_000);
  const rotaryDim = f.count('rope.dimension_count', headDim);
  if (rotaryDim > headDim || rotaryDim % 2) throw f.error('rope.dimension_count', `an even number up to ${headDim}`);
  const original = f.optionalCount('rope.scaling.original_context_length', 0) || contextLength;

  const factors = async (name: string): Promise<number[] | undefined> => {
    const tensor = header.tensors.get(name);
    if (!tensor) return undefined;
    if (tensor.dtype !== 'F32') throw unsupported(`type of tensor ${name}`, tensor.dtype, 'F32');
    const bytes = await readBytes(tensor.source, tensor.file, tensor.begin, tensor.end, signal);
    const view = new DataView(bytes.buffer);
    const values = Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
    return new Fields('tensor ', () => values).positives(name, rotaryDim / 2);
  };
  const shortFactor = await factors('rope_factors_short.weight');
  const longFactor = await factors('rope_factors_long.weight');
  if (shortFactor && longFactor) {
    const attentionFactor = f.positive('rope.scaling.attn_factor', longropeAttentionFactor(contextLength / original, original));
    return {
      theta,
      rotaryDim,
      scaling: { type: 'longrope', shortFactor, longFactor, originalContextLength: original, attentionFactor },
    };
  }
  const everywhere = await factors('rope_freqs.weight');
  if (everywhere) return { theta, rotaryDim, scaling: { type: 'factors', factors: everywhere } };

  const legacy = f.has('rope.scale_linear') ? f.positive('rope.scale_linear') : 1;
  const type = f.text('rope.scaling.type') ?? (legacy === 1 ? 'none' : 'linear');
  const factor = f.positive('rope.scaling.factor', legacy);
  if (type === 'none' || factor === 1) return { theta, rotaryDim };
  if (type === 'linear') return { theta, rotaryDim, scaling: { type, factor } };
  if (type !== 'yarn') throw f.error('rope.scaling.type', 'none, linear, yarn (longrope with the tensors rope_factors_*)');
  return {
    theta,
    rotaryDim,
    scaling: {
      type,
      factor,
      betaFast: f.positive('rope.scaling.yarn_beta_fast', 32),
      betaSlow: f.positive('rope.scaling.yarn_beta_slow', 1),
      originalContextLength: original,
      attentionFactor: f.positive('rope.scaling.attn_factor', 1) * (1 + 0.1 * Math.log(factor)),
      truncate: true,
    },
  };
}
