import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { invalidArgument, MinferenceError } from '../errors.js';
import {
  CONFIG_PATTERNS,
  type LayerPatternOptions,
  type PatternConfig,
  parsePatternConfig,
  summarizePatternConfig,
} from '../patterns/config.js';
import { configForModel, findModel, MODELS, type ModelEntry } from '../patterns/models.js';
import type { CliContext, CommandResult, RegisterCommand } from './app.js';
import { assetPath } from './assets.js';
import { formatCount, formatTable } from './format.js';

/** A pattern file, and what is known of the model that it was asked for by. */
export interface FoundConfig {
  readonly config: PatternConfig;
  /** Options that suit the model; none for a file. */
  readonly options: LayerPatternOptions;
  readonly model?: ModelEntry;
}

/**
 * Reads a pattern file; a name that is no file but a model's means the model's own pattern file.
 *
 * @param folder - folder or URL that has the files of models. Default: those that ship with the package.
 * @throws {@link MinferenceError} `file` when it cannot be read or is damaged.
 */
export async function findConfig(pathOrModel: string, folder?: string): Promise<FoundConfig> {
  const model = existsSync(pathOrModel) ? undefined : findModel(pathOrModel);
  if (!model) return { config: parsePatternConfig(await readText(pathOrModel), pathOrModel), options: {} };
  if (folder !== undefined && /^https?:\/\//.test(folder))
    return configForModel(pathOrModel, new URL(folder.replace(/\/*$/, '/')));
  const shipped = shippedPath(model);
  if (folder === undefined && shipped === undefined) {
    throw new MinferenceError(
      'file',
      `${pathOrModel}: ${model.file} does not ship with this package; give the path of that file, or the folder or URL that has it with --configs`,
      { argument: pathOrModel },
    );
  }
  return configForModel(pathOrModel, (file) => readText(folder === undefined ? (shipped as string) : join(folder, file)));
}

/** Reads a pattern file, or the one that ships for a model of this name. */
export async function readConfigFile(pathOrModel: string): Promise<PatternConfig> {
  return (await findConfig(pathOrModel)).config;
}

async function readText(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (cause) {
    throw new MinferenceError('file', `${path}: cannot be read (${cause instanceof Error ? cause.message : String(cause)})`, {
      argument: path,
      cause,
    });
  }
}

/** Where a model's pattern file ships, if it does. */
function shippedPath(model: ModelEntry): string | undefined {
  try {
    return assetPath(join('configs', model.file), '--configs');
  } catch {
    return undefined;
  }
}

interface ConfigCommandOptions {
  readonly configs?: string;
}

/** Adds `minference config`: what a pattern file holds, and which models have one. */
export const registerConfig: RegisterCommand = (program, action) => {
  program
    .command('config')
    .description("check a pattern configuration in MInference's format and show what it holds; without one, list the models")
    .argument('[file]', 'JSON file, or the name of a model')
    .option('--configs <folder>', "folder or URL that has the models' files, for example MInference's minference/configs")
    .action((file: string | undefined, options: ConfigCommandOptions) =>
      action<ConfigCommandOptions & { readonly file: string | undefined }>(show)({ ...options, file }),
    );
};

async function show(
  _context: CliContext,
  { file, configs }: ConfigCommandOptions & { file: string | undefined },
): Promise<CommandResult> {
  if (file === undefined) {
    if (configs !== undefined) throw invalidArgument('--configs', configs, 'with the name of a model');
    return listModels();
  }
  const { config, model } = await findConfig(file, configs);
  const summary = summarizePatternConfig(config);
  const heads = summary.headsPerLayer === undefined ? 'a varying number of' : formatCount(summary.headsPerLayer);
  const used = CONFIG_PATTERNS.filter((p) => summary.patterns[p] > 0).map((p) => `${formatCount(summary.patterns[p])} ${p}`);
  const overview = formatTable([
    ['file', config.source],
    ...(model ? [['model', model.names[0] as string]] : []),
    ['size', `${formatCount(summary.layers)} layers of ${heads} heads, ${formatCount(summary.heads)} heads in all`],
    ['patterns', used.join(', ')],
    ['mean score', summary.meanScore.toPrecision(4)],
  ]);
  const mix = formatTable(
    [
      ['pattern', 'first', 'second', 'heads', ''],
      ...summary.mix.map((m) => [
        m.pattern,
        formatCount(m.first),
        formatCount(m.second),
        formatCount(m.heads),
        '#'.repeat(Math.max(1, Math.round((40 * m.heads) / summary.heads))),
      ]),
    ],
    [1, 2, 3],
  );
  return {
    text: `${overview}\n${mix}`,
    json: { file: config.source, ...(model ? { model: model.names[0] } : {}), ...summary },
  };
}

function listModels(): CommandResult {
  const models = MODELS.map((m) => ({ ...m, ships: shippedPath(m) !== undefined }));
  const table = formatTable(
    [
      ['model', 'layers', 'heads', 'file'],
      ...models.flatMap((m) =>
        m.names.map((name, i) => [
          name,
          formatCount(m.layers),
          formatCount(m.heads),
          i > 0 ? 'the same' : `${m.file}${m.ships ? ' (ships)' : ''}`,
        ]),
      ),
    ],
    [1, 2],
  );
  return { text: table, json: { models } };
}
