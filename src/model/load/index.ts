/**
 * Loads language models: Hugging Face folders and GGUF files, from a URL, a hub, memory, or (with `./node.js`) a path.
 *
 * @packageDocumentation
 */
import { invalidArgument } from '../../errors.js';
import type { LoadedModel, ModelConfig, Tokenizer } from '../types.js';
import { type CacheOptions, type CacheStore, cachedSource } from './cache.js';
import { configFromGguf } from './config_gguf.js';
import { configFromHf } from './config_hf.js';
import { readGguf } from './gguf.js';
import { type HubOptions, hubSource, urlSource } from './http.js';
import { readSafetensorsModel } from './safetensors.js';
import { damaged, isRecord, type ModelSource, missingFile, readJson, readText, statOf } from './source.js';
import { createTokenizer, type TokenizerFiles } from './tokenizer.js';
import { tokenizerFromGguf } from './tokenizer_gguf.js';
import { findWeights } from './weights.js';

export { browserStore, type CacheOptions, type CacheStore, cachedSource, type LoadProgress } from './cache.js';
export { type HttpOptions, type HubOptions, hubSource, urlSource } from './http.js';
export { type FileInfo, type ModelSource, memorySource } from './source.js';
export { createTokenizer, type TokenizerFiles } from './tokenizer.js';

/** Options of {@link loadModel}. */
export interface LoadOptions {
  /** GGUF file to load, where there are several or a folder would be preferred. */
  readonly file?: string;
  /** Whether to load the tokenizer; default true. */
  readonly tokenizer?: boolean;
  readonly signal?: AbortSignal;
}

/** Options of {@link openModel}. */
export interface OpenOptions extends LoadOptions, HubOptions, CacheOptions {
  /**
   * Where downloads are kept, for example `await browserStore()`; without it, weights are read over the network each time. A hub's
   * model in the cache opens without the network.
   */
  readonly cache?: CacheStore;
}

/**
 * Loads a model by name.
 *
 * @param model a URL of a GGUF file or of a model folder, or a hub id: `owner/name`, `owner/name@revision`, `owner/name/file.gguf`
 * @throws `MinferenceError` `file` when something is missing or damaged, `unsupported` when the model is of a kind that does not load;
 * or the signal's reason
 */
export async function openModel(model: string | URL, options: OpenOptions = {}): Promise<LoadedModel> {
  const { source, file } = await locate(String(model), options);
  const stored = options.cache ? cachedSource(source, options.cache, options) : source;
  return loadModel(stored, { ...options, file: options.file ?? file });
}

/** The source that a name means, and the file in it. */
async function locate(model: string, options: OpenOptions): Promise<{ source: ModelSource; file?: string }> {
  if (/^https?:/i.test(model)) {
    const url = new URL(model);
    const match = /^(.*\/)([^/]+\.gguf)$/i.exec(url.pathname);
    if (!match) return { source: urlSource(url, options) };
    url.pathname = match[1] as string;
    return { source: urlSource(url, options), file: decodeURIComponent(match[2] as string) };
  }
  const match = /^([\w.-]+\/[\w.-]+)(?:@([\w.-]+))?(?:\/(.+\.gguf))?$/i.exec(model);
  if (!match) throw invalidArgument('model', model, 'a URL, "owner/name", "owner/name@revision" or "owner/name/file.gguf"');
  const [, id = '', revision = options.revision, file] = match;
  return { source: await hubSource(id, { ...options, revision }), file };
}

/**
 * Loads the model of a source: reads the descriptions and the tensor directory, not the weights themselves. The source is
 * closed with the model, and when this fails.
 */
export async function loadModel(source: ModelSource, options: LoadOptions = {}): Promise<LoadedModel> {
  try {
    const file = options.file ?? (await ggufOf(source, options.signal));
    return file === undefined ? await loadFolder(source, options) : await loadGguf(source, file, options);
  } catch (error) {
    await source.close();
    throw error;
  }
}

/** The GGUF file to load, or undefined when the source has a folder with safetensors. */
async function ggufOf(source: ModelSource, signal: AbortSignal | undefined): Promise<string | undefined> {
  for (const name of ['model.safetensors', 'model.safetensors.index.json']) {
    if (await statOf(source, name, signal)) return undefined;
  }
  const files = source.names?.filter((name) => name.toLowerCase().endsWith('.gguf')) ?? [];
  if (files.length > 1) throw invalidArgument('file', undefined, files.join(', '));
  if (files.length === 0) throw missingFile(source, source.names ? 'model.safetensors or *.gguf' : 'model.safetensors');
  return files[0];
}

async function loadGguf(source: ModelSource, file: string, options: LoadOptions): Promise<LoadedModel> {
  const header = await readGguf(source, file, options.signal);
  const config = await configFromGguf(header, options.signal);
  return made(
    source,
    config,
    findWeights('gguf', config, header.tensors),
    options.tokenizer !== false && tokenizerFromGguf(header),
  );
}

async function loadFolder(source: ModelSource, options: LoadOptions): Promise<LoadedModel> {
  const { signal } = options;
  const config = await readJson(source, 'config.json', signal);
  if (config === undefined) throw missingFile(source, 'config.json');
  const [generation, tokenizerConfig, template, tokenizer] = await Promise.all([
    readJson(source, 'generation_config.json', signal),
    readJson(source, 'tokenizer_config.json', signal),
    readText(source, 'chat_template.jinja', signal),
    options.tokenizer === false ? undefined : readJson(source, 'tokenizer.json', signal),
  ]);
  const tensors = await readSafetensorsModel(source, signal);
  const parsed = configFromHf({ config, generation, tokenizer: tokenizerConfig, template }, tensors.has('lm_head.weight'));
  if (tokenizer !== undefined && !isRecord(tokenizer)) throw damaged(source, 'tokenizer.json', 'it is not a JSON object');
  const files: TokenizerFiles | undefined = tokenizer && {
    tokenizer,
    ...(isRecord(tokenizerConfig) ? { config: tokenizerConfig } : {}),
    ...(parsed.chatTemplate === undefined ? {} : { chatTemplate: parsed.chatTemplate }),
  };
  return made(source, parsed, findWeights('hf', parsed, tensors), files);
}

function made(
  source: ModelSource,
  config: ModelConfig,
  weights: LoadedModel['weights'],
  tokenizer: TokenizerFiles | undefined | false,
): LoadedModel {
  const made: Tokenizer | undefined = tokenizer ? createTokenizer(tokenizer) : undefined;
  return { config, weights, ...(made ? { tokenizer: made } : {}), close: () => source.close() };
}
