import { checkInteger, invalidArgument, MinferenceError, show } from '../errors.js';
import type { HeadPattern } from '../scheduler/types.js';

/** Pattern names of MInference's published JSON. */
export const CONFIG_PATTERNS = ['vertical_and_slash', 'stream_llm', 'block_sparse'] as const;

/** A pattern name of MInference's published JSON. */
export type ConfigPattern = (typeof CONFIG_PATTERNS)[number];

/**
 * One head of a pattern file: `[pattern, first, second, score]`. What the two numbers mean:
 *
 * | pattern | first | second |
 * | --- | --- | --- |
 * | `vertical_and_slash` | columns | diagonals |
 * | `stream_llm` (A-shape) | initial keys | local keys |
 * | `block_sparse` | key blocks of 64 per row block (0: the default of 100) | not used |
 */
export interface HeadConfig {
  readonly pattern: ConfigPattern;
  readonly first: number;
  readonly second: number;
  /** What the search measured; its meaning depends on the search that wrote the file. */
  readonly score: number;
}

/** A pattern file: for every layer, every head's pattern. */
export interface PatternConfig {
  /** Where it came from, for messages. */
  readonly source: string;
  /** `[layer][head]` */
  readonly layers: readonly (readonly HeadConfig[])[];
}

/** Options of {@link patternsForLayer}, named after MInference's. */
export interface LayerPatternOptions {
  /** Scales the budgets: columns, diagonals, initial and local keys, key blocks. MInference's `minference_ratio`. Default 1. */
  readonly budgetRatio?: number;
  /** Layers before this one are dense. Default 0. */
  readonly startingLayer?: number;
  /**
   * Every head runs vertical-slash, with its own two numbers as columns and diagonals (1000 and 6096 for
   * block-sparse heads, whose numbers mean something else), or with the sizes given here.
   */
  readonly vsOnly?: boolean | { readonly verticalSize: number; readonly slashSize: number };
  /** Query heads of the model. Needed for layers that the file does not have: their heads get {@link DEFAULT_PATTERN}. */
  readonly numHeads?: number;
}

/** What MInference gives heads that no file mentions: vertical-slash with 1000 columns and 6096 diagonals. */
export const DEFAULT_PATTERN = { kind: 'vertical_slash', verticalSize: 1000, slashSize: 6096 } as const satisfies HeadPattern;

/** Key blocks of a block-sparse head whose file gives none, as in MInference. */
export const DEFAULT_TOP_K = 100;

/** Smallest budgets of vertical-slash heads, as in MInference. */
const MIN_VERTICAL = 30;
const MIN_SLASH = 50;
const MAX_SIZE = 2 ** 26;

function configError(source: string, where: string, value: unknown, allowed: string): MinferenceError {
  const at = where ? `${where} ` : '';
  return new MinferenceError('file', `${source}: ${at}is ${show(value)}; allowed: ${allowed}`, {
    argument: where || source,
    value,
    allowed,
  });
}

/**
 * Reads MInference's published pattern files: a list with, for every layer, an object
 * `{"<head>": ["vertical_and_slash" | "stream_llm" | "block_sparse", first, second, score]}`.
 *
 * @param json - the file's text, or what `JSON.parse` made of it.
 * @param source - the file's name, for messages.
 * @throws {@link MinferenceError} `file` that names the layer and the head.
 */
export function parsePatternConfig(json: unknown, source = 'pattern config'): PatternConfig {
  let data = json;
  if (typeof json === 'string') {
    try {
      data = JSON.parse(json) as unknown;
    } catch (cause) {
      throw new MinferenceError('file', `${source}: not JSON: ${cause instanceof Error ? cause.message : String(cause)}`, {
        cause,
      });
    }
  }
  if (!Array.isArray(data) || data.length === 0) throw configError(source, '', data, 'a list of layers');
  return { source, layers: data.map((layer: unknown, i) => parseLayer(layer, i, source)) };
}

function parseLayer(layer: unknown, index: number, source: string): HeadConfig[] {
  const where = `layer ${index}`;
  if (typeof layer !== 'object' || layer === null || Array.isArray(layer)) {
    throw configError(source, where, layer, 'an object {"<head>": [pattern, first, second, score]}');
  }
  const entries = Object.entries(layer as Record<string, unknown>);
  if (entries.length === 0) throw configError(source, where, layer, 'at least one head');
  const heads: HeadConfig[] = [];
  for (const [key, value] of entries) {
    if (!/^(0|[1-9]\d*)$/.test(key)) throw configError(source, `${where}: head name`, key, 'a head number');
    const head = Number(key);
    if (head >= entries.length) {
      throw configError(
        source,
        `${where}: head name`,
        key,
        `0 to ${entries.length - 1}, every head once (the layer has ${entries.length})`,
      );
    }
    heads[head] = parseHead(value, `${where}, head ${head}`, source);
  }
  return heads;
}

function parseHead(value: unknown, where: string, source: string): HeadConfig {
  if (!Array.isArray(value) || value.length !== 4) {
    throw configError(source, where, value, 'a list [pattern, first, second, score]');
  }
  const [pattern, first, second, score] = value as unknown[];
  if (!CONFIG_PATTERNS.includes(pattern as ConfigPattern)) {
    throw configError(source, `${where}: pattern`, pattern, CONFIG_PATTERNS.map((p) => `"${p}"`).join(', '));
  }
  for (const [name, size] of [
    ['first size', first],
    ['second size', second],
  ] as const) {
    if (typeof size !== 'number' || !Number.isInteger(size) || size < 0 || size > MAX_SIZE) {
      throw configError(source, `${where}: ${name}`, size, `an integer from 0 to ${MAX_SIZE}`);
    }
  }
  if (pattern === 'stream_llm' && second === 0)
    throw configError(source, `${where}: second size`, second, 'at least 1 local key');
  if (typeof score !== 'number' || !Number.isFinite(score))
    throw configError(source, `${where}: score`, score, 'a finite number');
  // Adding 0 makes -0 the 0 that JSON has.
  return { pattern: pattern as ConfigPattern, first: (first as number) + 0, second: (second as number) + 0, score: score + 0 };
}

/** Writes MInference's JSON, one layer per line. Reading it again gives the same config. */
export function serializePatternConfig(config: PatternConfig): string {
  const lines = config.layers.map((heads) => {
    const entries = heads.map(
      (h, i) => `"${i}": ${JSON.stringify([h.pattern, h.first, h.second, h.score]).replaceAll(',', ', ')}`,
    );
    return `{${entries.join(', ')}}`;
  });
  return `[${lines.join(',\n')}]\n`;
}

/**
 * Patterns of one layer's query heads, ready for an `AttentionLayer`.
 *
 * Vertical-slash heads get at least 30 columns and 50 diagonals, as in MInference. Budgets larger than the
 * sequence are cut by the index builders, not here.
 *
 * @throws {@link MinferenceError} `invalid-argument` for bad options or a layer that neither the file nor `numHeads` covers.
 */
export function patternsForLayer(config: PatternConfig, layer: number, options: LayerPatternOptions = {}): HeadPattern[] {
  const { numHeads } = options;
  checkLayerOptions(layer, options);
  if (numHeads !== undefined && (!Number.isInteger(numHeads) || numHeads < 1)) {
    throw invalidArgument('numHeads', numHeads, 'an integer of at least 1');
  }
  const heads = config.layers[layer];
  if (heads && numHeads !== undefined && heads.length !== numHeads) {
    throw invalidArgument('numHeads', numHeads, `${heads.length}, the heads of layer ${layer} of ${config.source}`);
  }
  if (!heads && numHeads === undefined) {
    throw invalidArgument(
      'layer',
      layer,
      `0 to ${config.layers.length - 1} (the layers of ${config.source}), or any with numHeads given`,
    );
  }
  const { verticalSize, slashSize } = DEFAULT_PATTERN;
  const unlisted: HeadConfig = { pattern: 'vertical_and_slash', first: verticalSize, second: slashSize, score: 1 };
  return (heads ?? new Array<HeadConfig>(numHeads ?? 0).fill(unlisted)).map((head) => adjusted(patternOf(head), layer, options));
}

/**
 * The same options for patterns that come from elsewhere. Patterns whose budgets follow from the input keep them:
 * `budgetRatio` changes nothing of `x_attention` and `flex_prefill`. With `vsOnly`, tri-shape's first and local sizes become columns
 * and diagonals, `flex_prefill` never chooses blocks, and `x_attention` gets {@link DEFAULT_PATTERN}; dense and static heads stay.
 * Without options, patterns stay as they are.
 *
 * @throws {@link MinferenceError} `invalid-argument` for bad options.
 */
export function adjustPatterns(
  patterns: readonly HeadPattern[],
  layer: number,
  options: Omit<LayerPatternOptions, 'numHeads'> = {},
): HeadPattern[] {
  checkLayerOptions(layer, options);
  const { budgetRatio = 1, startingLayer = 0, vsOnly = false } = options;
  if (budgetRatio === 1 && vsOnly === false && layer >= startingLayer) return [...patterns];
  return patterns.map((pattern) => adjusted(pattern, layer, options));
}

function checkLayerOptions(layer: number, options: LayerPatternOptions): void {
  const { budgetRatio = 1, startingLayer = 0, vsOnly = false } = options;
  if (!Number.isInteger(layer) || layer < 0) throw invalidArgument('layer', layer, 'an integer of at least 0');
  if (typeof budgetRatio !== 'number' || !(budgetRatio > 0) || !Number.isFinite(budgetRatio)) {
    throw invalidArgument('budgetRatio', budgetRatio, 'a finite number above 0');
  }
  if (!Number.isInteger(startingLayer)) throw invalidArgument('startingLayer', startingLayer, 'an integer');
  if (typeof vsOnly === 'boolean') return;
  if (typeof vsOnly !== 'object' || vsOnly === null) {
    throw invalidArgument('vsOnly', vsOnly, 'true, false, or { verticalSize, slashSize }');
  }
  checkInteger('vsOnly.verticalSize', vsOnly.verticalSize, 0, MAX_SIZE);
  checkInteger('vsOnly.slashSize', vsOnly.slashSize, 0, MAX_SIZE);
}

/** What a file's entry says, before any options. */
function patternOf({ pattern, first, second }: HeadConfig): HeadPattern {
  if (pattern === 'vertical_and_slash') return { kind: 'vertical_slash', verticalSize: first, slashSize: second };
  if (pattern === 'stream_llm') return { kind: 'a_shape', initSize: first, localSize: second };
  return { kind: 'block_sparse', topK: first || DEFAULT_TOP_K };
}

/** A pattern after the options of its layer. */
function adjusted(pattern: HeadPattern, layer: number, options: LayerPatternOptions): HeadPattern {
  const { budgetRatio = 1, startingLayer = 0, vsOnly = false } = options;
  if (layer < startingLayer) return { kind: 'dense' };
  const scale = (size: number): number => Math.floor(size * budgetRatio);
  const verticalSlash = ({ verticalSize, slashSize }: { verticalSize: number; slashSize: number }): HeadPattern => ({
    kind: 'vertical_slash',
    verticalSize: Math.max(MIN_VERTICAL, scale(verticalSize)),
    slashSize: Math.max(MIN_SLASH, scale(slashSize)),
  });
  const given = typeof vsOnly === 'object' ? vsOnly : undefined;
  switch (pattern.kind) {
    case 'vertical_slash':
      return verticalSlash(given ?? pattern);
    case 'a_shape':
    case 'tri_shape': {
      const { initSize, localSize } = pattern;
      if (vsOnly) return verticalSlash(given ?? { verticalSize: initSize, slashSize: localSize });
      return { ...pattern, initSize: scale(initSize), localSize: Math.max(1, scale(localSize)) };
    }
    case 'block_sparse':
      return vsOnly ? verticalSlash(given ?? DEFAULT_PATTERN) : { kind: 'block_sparse', topK: Math.max(1, scale(pattern.topK)) };
    case 'x_attention':
      return vsOnly ? verticalSlash(given ?? DEFAULT_PATTERN) : pattern;
    case 'flex_prefill':
      if (given) return verticalSlash(given);
      return vsOnly ? { ...pattern, tau: 0 } : pattern;
    default:
      return pattern;
  }
}

/** The file entry of a pattern, where MInference's format can say it. */
export function headConfigOf(pattern: HeadPattern, score: number): HeadConfig {
  switch (pattern.kind) {
    case 'vertical_slash':
      return { pattern: 'vertical_and_slash', first: pattern.verticalSize, second: pattern.slashSize, score };
    case 'a_shape':
      return { pattern: 'stream_llm', first: pattern.initSize, second: pattern.localSize, score };
    case 'block_sparse':
      return { pattern: 'block_sparse', first: pattern.topK, second: 1, score };
    default:
      throw invalidArgument(
        'pattern.kind',
        pattern.kind,
        '"vertical_slash", "a_shape", "block_sparse" (the file format knows no other)',
      );
  }
}

/** How often each pattern occurs with each pair of sizes. */
export interface PatternMixEntry {
  readonly pattern: ConfigPattern;
  readonly first: number;
  readonly second: number;
  /** Heads of all layers. */
  readonly heads: number;
}

/** What a pattern file holds, at a glance. */
export interface PatternSummary {
  readonly layers: number;
  /** Heads of each layer, when all have the same number. */
  readonly headsPerLayer: number | undefined;
  readonly heads: number;
  /** Heads per pattern. */
  readonly patterns: Readonly<Record<ConfigPattern, number>>;
  /** Pattern and sizes, most frequent first. */
  readonly mix: readonly PatternMixEntry[];
  readonly meanScore: number;
}

/** Counts the patterns and budgets of a pattern file. */
export function summarizePatternConfig(config: PatternConfig): PatternSummary {
  const all = config.layers.flat();
  const patterns: Record<ConfigPattern, number> = { vertical_and_slash: 0, stream_llm: 0, block_sparse: 0 };
  const mix = new Map<string, PatternMixEntry>();
  for (const { pattern, first, second } of all) {
    patterns[pattern]++;
    const key = `${pattern} ${first} ${second}`;
    mix.set(key, { pattern, first, second, heads: (mix.get(key)?.heads ?? 0) + 1 });
  }
  const headsPerLayer = config.layers[0]?.length;
  return {
    layers: config.layers.length,
    headsPerLayer: config.layers.every((l) => l.length === headsPerLayer) ? headsPerLayer : undefined,
    heads: all.length,
    patterns,
    mix: [...mix.values()].sort((a, b) => b.heads - a.heads || a.first - b.first || a.second - b.second),
    meanScore: all.reduce((sum, h) => sum + h.score, 0) / all.length,
  };
}
