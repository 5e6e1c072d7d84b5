import { invalidArgument, MinferenceError } from '../errors.js';
import { type LayerPatternOptions, type PatternConfig, parsePatternConfig } from './config.js';

/** A model whose pattern file is known by name. */
export interface ModelEntry {
  /** Names that mean this model, the usual one first; compared without case and without the organisation. */
  readonly names: readonly string[];
  /** File name of its pattern config. */
  readonly file: string;
  readonly layers: number;
  readonly heads: number;
  /** Options that suit the model. */
  readonly options: LayerPatternOptions;
}

/** Models with a pattern file: those of MInference, whose files it publishes, and one whose file ships with this package. */
export const MODELS: readonly ModelEntry[] = [
  {
    names: ['meta-llama/Llama-3.1-8B-Instruct', 'meta-llama/Meta-Llama-3.1-8B-Instruct'],
    file: 'Llama_3.1_8B_Instruct_128k_kv_out_v32_fit_o_best_pattern.json',
    layers: 32,
    heads: 32,
    options: {},
  },
  {
    names: [
      'gradientai/Llama-3-8B-Instruct-262k',
      'gradientai/Llama-3-8B-Instruct-Gradient-262k',
      'gradientai/Llama-3-8B-Instruct-Gradient-1048k',
      'gradientai/Llama-3-8B-Instruct-Gradient-4194k',
    ],
    file: 'Llama_3_8B_Instruct_262k_kv_out_v32_fit_o_best_pattern.json',
    layers: 32,
    heads: 32,
    options: {},
  },
  {
    names: ['microsoft/Phi-3-mini-128k-instruct'],
    file: 'Phi_3_mini_128k_instruct_kv_out_v32_fit_o_best_pattern.json',
    layers: 32,
    heads: 32,
    options: {},
  },
  {
    names: ['Qwen/Qwen2-7B-Instruct'],
    file: 'Qwen2_7B_Instruct_128k_instruct_kv_out_v32_fit_o_best_pattern.json',
    layers: 28,
    heads: 28,
    options: {},
  },
  {
    names: ['Qwen/Qwen2.5-7B-Instruct-1M'],
    file: 'Qwen2.5_7B_Instruct_1M.json',
    layers: 28,
    heads: 28,
    options: {},
  },
  {
    names: ['HuggingFaceTB/SmolLM2-135M-Instruct'],
    file: 'smollm2-135m.json',
    layers: 30,
    heads: 9,
    options: {},
  },
  {
    names: ['Qwen/Qwen2.5-7B-Instruct'],
    file: 'Qwen2.5_7B_Instruct_128k_instruct_kv_out_v32_fit_o_best_pattern.json',
    layers: 28,
    heads: 28,
    options: {},
  },
  {
    names: ['Qwen/Qwen2.5-14B-Instruct-1M'],
    file: 'Qwen2.5_14B_Instruct_1M.json',
    layers: 48,
    heads: 40,
    options: {},
  },
  {
    names: ['Qwen/Qwen2.5-32B-Instruct'],
    file: 'Qwen2.5_32B_Instruct_128k_kv_out_v32_fit_o_best_pattern.json',
    layers: 64,
    heads: 40,
    options: {},
  },
  {
    names: ['Qwen/Qwen2.5-72B-Instruct'],
    file: 'Qwen2.5_72B_Instruct_128k_kv_out_v32_fit_o_best_pattern.json',
    layers: 80,
    heads: 64,
    options: {},
  },
  {
    names: ['Qwen/Qwen3-0.6B'],
    file: 'Qwen3_0.6B_128k_instruct_kv_out_v32_fit_o_best_pattern.json',
    layers: 28,
    heads: 16,
    options: {},
  },
  {
    names: ['Qwen/Qwen3-8B'],
    file: 'Qwen3_8B_128k_kv_out_v32_fit_o_best_pattern.json',
    layers: 36,
    heads: 32,
    options: {},
  },
  {
    names: ['Qwen/Qwen3-32B'],
    file: 'Qwen3_32B_128k_kv_out_v32_fit_o_best_pattern.json',
    layers: 64,
    heads: 64,
    options: {},
  },
  {
    names: ['01-ai/Yi-9B-200K'],
    file: 'Yi_9B_200k_kv_out_v32_fit_o_best_pattern.json',
    layers: 48,
    heads: 32,
    options: {},
  },
  {
    names: ['THUDM/glm-4-9b-chat-1m'],
    file: 'GLM_4_9B_1M_instruct_kv_out_v32_fit_o_best_pattern.json',
    layers: 40,
    heads: 32,
    options: {},
  },
  {
    names: ['meta-llama/Llama-3.1-70B-Instruct', 'meta-llama/Meta-Llama-3.1-70B-Instruct'],
    file: 'Llama_3.1_70B_Instruct_128k_kv_out_v32_fit_o_best_pattern_v2.json',
    layers: 80,
    heads: 64,
    options: {},
  },
  {
    names: ['gradientai/Llama-3-70B-Instruct-Gradient-262k', 'gradientai/Llama-3-70B-Instruct-Gradient-1048k'],
    file: 'Llama_3_70B_Instruct_262k_kv_out_v32_fit_o_best_pattern.json',
    layers: 80,
    heads: 64,
    options: {},
  },
];

/** Gets a pattern file by name: its text or its parsed JSON. */
export type ConfigLoader = (file: string) => Promise<unknown>;

const shortName = (name: string): string => name.toLowerCase().split('/').at(-1) ?? '';

/** The registry entry of a model name, or `undefined`. */
export function findModel(name: string): ModelEntry | undefined {
  return MODELS.find((m) => m.names.some((n) => shortName(n) === shortName(name)));
}

/**
 * Loads the pattern file of a model by the model's name.
 *
 * ```ts
 * const { config, options } = await configForModel('Llama-3.1-8B-Instruct', 'https://example.org/configs/');
 * const patterns = patternsForLayer(config, layer, options);
 * ```
 *
 * @param load - a function that gets a file, or the URL of the folder that holds the files.
 * @throws {@link MinferenceError} `invalid-argument` for an unknown model, `file` when the file is missing,
 *   damaged, or has other layers or heads than the model.
 */
export async function configForModel(
  name: string,
  load: ConfigLoader | string | URL,
): Promise<{ readonly config: PatternConfig; readonly options: LayerPatternOptions; readonly model: ModelEntry }> {
  const model = findModel(name);
  if (!model) throw invalidArgument('model', name, MODELS.flatMap((m) => m.names).join(', '));
  const get: ConfigLoader = typeof load === 'function' ? load : (file) => fetchText(new URL(file, load));
  let json: unknown;
  try {
    json = await get(model.file);
  } catch (cause) {
    throw new MinferenceError('file', `${model.file}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
  const config = parsePatternConfig(json, model.file);
  const wrong = config.layers.findIndex((l) => l.length !== model.heads);
  if (config.layers.length !== model.layers || wrong >= 0) {
    const found = wrong < 0 ? `${config.layers.length} layers` : `${config.layers[wrong]?.length} heads in layer ${wrong}`;
    throw new MinferenceError(
      'file',
      `${model.file} has ${found}; ${model.names[0]} has ${model.layers} layers of ${model.heads} heads`,
    );
  }
  return { config, options: model.options, model };
}

async function fetchText(url: URL): Promise<string> {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`HTTP status ${response.status}`);
  return response.text();
}
