import { ARCHITECTURES, type Architecture, type ModelConfig, type RopeConfig, type RopeScaling } from '../types.js';
import { Fields } from './fields.js';
import { isRecord, unsupported } from './source.js';

/** The files of a Hugging Face model folder that describe it, parsed; all but `config` may be missing. */
export interface HfDescription {
  /** `config.json`. */
  readonly config: unknown;
  /** `generation_config.json`. */
  readonly generation?: unknown;
  /** `tokenizer_config.json`. */
  readonly tokenizer?: unknown;
  /** `chat_template.jinja`, as text. */
  readonly template?: string;
}

/** Other names of architectures: Mistral is Llama, in some models with a window. */
const ALIASES: Readonly<Record<string, Architecture>> = { mistral: 'llama' };
/** The window of a Mistral whose file says none; null says that there is none. */
const MISTRAL_WINDOW = 4096;

/**
 * The configuration that `config.json` and its companions describe.
 *
 * @param hasHead whether the files have an output head of their own
 */
export function configFromHf(files: HfDescription, hasHead: boolean): ModelConfig {
  if (!isRecord(files.config)) throw unsupported('config.json', files.config, 'a JSON object');
  const f = Fields.of('config.json: ', files.config);
  const type = f.text('model_type') ?? '';
  const architecture = (ALIASES[type] ?? type) as Architecture;
  if (!ARCHITECTURES.includes(architecture)) throw f.error('model_type', [...ARCHITECTURES, ...Object.keys(ALIASES)].join(', '));
  f.only('hidden_act', 'silu');
  f.only('mlp_bias', false);
  f.only('use_sliding_window', false);
  if (architecture === 'llama' || architecture === 'phi3') f.only('attention_bias', false);
  if (f.has('quantization_config')) throw f.error('quantization_config', 'none (quantised weights load from GGUF files)');

  const numHeads = f.count('num_attention_heads');
  const numKvHeads = f.count('num_key_value_heads', numHeads);
  if (numHeads % numKvHeads) throw f.error('num_key_value_heads', `a divisor of num_attention_heads, ${numHeads}`);
  const hiddenSize = f.count('hidden_size');
  const headDim = f.count('head_dim', hiddenSize / numHeads);
  const positions = f.count('max_position_embeddings');
  const rope = ropeOf(f, headDim, positions);
  const contextLength = contextOf(rope.scaling, positions);
  // Other windows do not apply: they are switched off (checked above), or the architecture lacks them.
  let window: number | undefined;
  if (type === 'phi3' || type === 'mistral') window = f.optionalCount('sliding_window');
  if (type === 'mistral' && files.config['sliding_window'] === undefined) window = MISTRAL_WINDOW;

  const generation = isRecord(files.generation) ? Fields.of('generation_config.json: ', files.generation) : undefined;
  const stops = [...idsOf(f, 'eos_token_id'), ...(generation ? idsOf(generation, 'eos_token_id') : [])];
  const tokenizer = isRecord(files.tokenizer) ? files.tokenizer : {};
  const template = files.template ?? templateOf(tokenizer['chat_template']);
  const bosId = idsOf(f, 'bos_token_id')[0];
  return {
    architecture,
    name: f.text('_name_or_path') || undefined,
    layers: f.count('num_hidden_layers'),
    hiddenSize,
    intermediateSize: f.count('intermediate_size'),
    numHeads,
    numKvHeads,
    headDim,
    vocabSize: f.count('vocab_size'),
    rmsEps: f.positive('rms_norm_eps', 1e-6),
    tieEmbeddings: f.flag('tie_word_embeddings', !hasHead),
    rope,
    qkvBias: architecture === 'qwen2' || (architecture === 'qwen3' && f.flag('attention_bias', false)),
    qkNorm: architecture === 'qwen3',
    contextLength,
    ...(window !== undefined && window < contextLength ? { slidingWindow: window } : {}),
    ...(bosId === undefined ? {} : { bosId }),
    ...(stops[0] === undefined ? {} : { eosId: stops[0] }),
    stopIds: [...new Set(stops)],
    ...(template === undefined ? {} : { chatTemplate: template }),
  };
}

/** A field that is an id or a list of ids. */
function idsOf(f: Fields, name: string): number[] {
  const value = f.raw(name) ?? [];
  const ids = Array.isArray(value) ? value : [value];
  if (!ids.every((id) => Number.isSafeInteger(id) && id >= 0)) throw f.error(name, 'a token id or a list of them');
  return ids as number[];
}

/** A chat template: text, or the default one of a list of named ones. */
function templateOf(value: unknown): string | undefined {
  if (typeof value === 'string') return value;
  if (!Array.isArray(value)) return undefined;
  const named = value.find((entry) => isRecord(entry) && entry['name'] === 'default');
  return isRecord(named) && typeof named['template'] === 'string' ? named['template'] : undefined;
}

/** Reads `rope_theta` and `rope_scaling`, or `rope_parameters`, which newer files have in their place. */
function ropeOf(f: Fields, headDim: number, positions: number): RopeConfig {
  const parameters = f.object('rope_parameters');
  const scaling = parameters ?? f.object('rope_scaling');
  const theta = parameters?.has('rope_theta') ? parameters.positive('rope_theta') : f.positive('rope_theta', 10_000);
  const holder = parameters?.has('partial_rotary_factor') ? parameters : f;
  const rotaryDim = Math.floor(headDim * holder.positive('partial_rotary_factor', 1));
  if (rotaryDim > headDim || rotaryDim % 2) throw holder.error('partial_rotary_factor', `what leaves an even part of ${headDim}`);
  if (!scaling) return { theta, rotaryDim };
  const typeName = scaling.has('rope_type') ? 'rope_type' : 'type';
  const original = (): number =>
    scaling.optionalCount('original_max_position_embeddings') ?? f.count('original_max_position_embeddings', positions);
  const scaled = (s: RopeScaling): RopeConfig => ({ theta, rotaryDim, scaling: s });
  switch (scaling.text(typeName)) {
    case undefined:
    case 'default':
      return { theta, rotaryDim };
    case 'linear':
      return scaled({ type: 'linear', factor: scaling.positive('factor') });
    case 'dynamic':
      return scaled({ type: 'dynamic', factor: scaling.positive('factor'), originalContextLength: positions });
    case 'llama3':
      return scaled({
        type: 'llama3',
        factor: scaling.positive('factor'),
        lowFreqFactor: scaling.positive('low_freq_factor'),
        highFreqFactor: scaling.positive('high_freq_factor'),
        originalContextLength: original(),
      });
    case 'yarn': {
      const factor = scaling.positive('factor');
      return scaled({
        type: 'yarn',
        factor,
        betaFast: scaling.positive('beta_fast', 32),
        betaSlow: scaling.positive('beta_slow', 1),
        originalContextLength: original(),
        attentionFactor: scaling.positive('attention_factor', yarnAttentionFactor(scaling, factor)),
        truncate: scaling.flag('truncate', true),
      });
    }
    // Early files of phi3 call it "su".
    case 'su':
    case 'longrope': {
      const originalContextLength = original();
      const factor = f.has('original_max_position_embeddings')
        ? positions / originalContextLength
        : scaling.positive('factor', positions / originalContextLength);
      return scaled({
        type: 'longrope',
        shortFactor: scaling.positives('short_factor', rotaryDim / 2),
        longFactor: scaling.positives('long_factor', rotaryDim / 2),
        originalContextLength,
        attentionFactor: scaling.positive('attention_factor', longropeAttentionFactor(factor, originalContextLength)),
      });
    }
    default:
      throw scaling.error(typeName, 'default, linear, dynamic, llama3, yarn, longrope');
  }
}

/** What YaRN multiplies cos and sin by for a stretch `factor`: 1 + 0.1 m ln(factor), as a ratio of two where both m are given. */
function yarnAttentionFactor(scaling: Fields, factor: number): number {
  const magnitude = (m: number): number => (factor <= 1 ? 1 : 0.1 * m * Math.log(factor) + 1);
  if (!scaling.raw('mscale') || !scaling.raw('mscale_all_dim')) return magnitude(1);
  return magnitude(scaling.positive('mscale')) / magnitude(scaling.positive('mscale_all_dim'));
}

/** What LongRoPE multiplies cos and sin by: sqrt(1 + ln(factor) / ln(L)). */
export function longropeAttentionFactor(factor: number, originalContextLength: number): number {
  return factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(originalContextLength));
}

/** Files with YaRN or dynamic scaling may state the length before the stretch. */
function contextOf(scaling: RopeScaling | undefined, positions: number): number {
  if (scaling?.type !== 'yarn' && scaling?.type !== 'dynamic') return positions;
  return Math.max(positions, Math.floor(scaling.factor * scaling.originalContextLength));
}
