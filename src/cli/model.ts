import { type Command, Option } from 'commander';
import { MinferenceError } from '../errors.js';
import type { LoadProgress } from '../model/load/cache.js';
import { openNodeModel } from '../model/load/node.js';
import { LanguageModel, type LanguageModelOptions } from '../model/runtime.js';
import type { LoadedModel, Tokenizer } from '../model/types.js';
import type { CliContext } from './app.js';
import { addDeviceOptions, type DeviceOptions, integer } from './device.js';
import { formatBytes, formatPercent } from './format.js';
import type { Progress } from './progress.js';

/** Options of every command that runs a whole model. */
export interface ModelOptions extends DeviceOptions {
  readonly model: string;
  readonly file?: string;
  readonly chunk?: number;
  readonly denseBelow?: number;
}

/**
 * Adds `--model` and how it runs.
 *
 * @param fallback what is used without `--model`, in words; without one, `--model` must be given
 */
export function addModelOptions(command: Command, fallback?: string): Command {
  const model = new Option(
    '--model <model>',
    `GGUF file, folder with config.json and safetensors, URL of either, or hub id (owner/name, owner/name/file.gguf; HF_TOKEN and HF_ENDPOINT count)${
      fallback === undefined ? '' : `; default: ${fallback}`
    }`,
  );
  return addDeviceOptions(
    command
      .addOption(fallback === undefined ? model.makeOptionMandatory() : model)
      .option('--file <name>', 'GGUF file, where a folder or hub model has several')
      .addOption(new Option('--chunk <n>', 'tokens of a prompt that run together').argParser(integer(1, 65_535)))
      .addOption(new Option('--dense-below <n>', 'positions before it attend densely').argParser(integer(0, 2 ** 26))),
  );
}

/** A model whose files are open, with its tokenizer. */
export interface CliModel {
  readonly loaded: LoadedModel;
  readonly tokenizer: Tokenizer;
  /** Is told of downloads, which go on while weights are read. */
  readonly downloads: { report: (progress: LoadProgress) => void };
}

/** Opens the files of `--model`, downloading them if need be, and closes them afterwards. */
export async function withModelFiles<T>(
  context: CliContext,
  options: ModelOptions,
  body: (model: CliModel) => Promise<T>,
): Promise<T> {
  let progress: Progress | undefined;
  const downloads: CliModel['downloads'] = {
    report: ({ file, loaded, total }) => {
      if (loaded === total) return;
      progress ??= context.progress('download');
      progress.update(loaded / total, `${file}, ${formatBytes(loaded)} of ${formatBytes(total)}`);
    },
  };
  // As Hugging Face's own tools have them.
  const { HF_TOKEN: token, HF_ENDPOINT: endpoint } = process.env;
  const opened = openNodeModel(options.model, {
    signal: context.signal,
    ...(token ? { token } : {}),
    ...(endpoint ? { endpoint } : {}),
    ...(options.file === undefined ? {} : { file: options.file }),
    onProgress: (p) => downloads.report(p),
  });
  const loaded = await opened.finally(() => progress?.stop());
  try {
    const { tokenizer } = loaded;
    if (!tokenizer) {
      throw new MinferenceError('file', `${options.model} has no tokenizer`, { argument: '--model', value: options.model });
    }
    return await body({ loaded, tokenizer, downloads });
  } finally {
    await loaded.close();
  }
}

/** Puts a model's weights on the device, with a progress bar. */
export async function loadWeights(
  context: CliContext,
  device: GPUDevice,
  { loaded, downloads }: CliModel,
  options: ModelOptions,
  settings: Pick<LanguageModelOptions, 'contextLength' | 'patterns' | 'denseBelow'>,
): Promise<LanguageModel> {
  const progress = context.progress('load');
  let done = 0;
  downloads.report = ({ file, loaded, total }) => progress.update(done, `downloading ${file}: ${formatPercent(loaded / total)}`);
  try {
    return await LanguageModel.load(device, loaded, {
      ...settings,
      tier: options.tier,
      signal: context.signal,
      ...(options.chunk === undefined ? {} : { chunkSize: options.chunk }),
      ...(options.denseBelow === undefined ? {} : { denseBelow: options.denseBelow }),
      onProgress: ({ fraction, bytes, totalBytes }) => {
        done = fraction;
        progress.update(fraction, `${formatBytes(bytes)} of ${formatBytes(totalBytes)}`);
      },
    });
  } finally {
    downloads.report = () => {};
    progress.stop();
  }
}

/** Bytes that a model holds on the GPU. */
export function memoryOf(model: LanguageModel) {
  const { weights, cache, activations, attention } = model.memory();
  return { weights, cache, activations: activations.allocatedBytes, attention: attention.allocatedBytes };
}
