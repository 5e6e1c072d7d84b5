import { InvalidArgumentError } from 'commander';
import { invalidArgument } from '../errors.js';
import { patternsForLayer } from '../patterns/config.js';
import { dilated1, dilated2 } from '../patterns/static.js';
import type { HeadPattern } from '../scheduler/types.js';
import { resolvePattern } from '../scheduler/validate.js';
import { readConfigFile } from './config.js';

/** How `--pattern` is written, for help texts. */
export const PATTERN_SYNTAX = `Patterns (--pattern), with MInference's defaults; several joined by "+" are given
to the heads in turn:
  dense                       full causal attention
  a_shape:1024,4096           first keys, local keys (also: stream_llm)
  vertical_slash:1000,6096    columns, diagonals (also: vertical_and_slash)
  block_sparse:100            blocks of 64 keys per block of 64 rows
  tri_shape:128,3968,100      as a_shape, and the last rows see everything
  dilated1, dilated2          fixed diagonals
  x_attention:8,0.9           stride (8 or 16), share of the estimated attention
  a_shape+vertical_slash:500,3000+block_sparse:64    a mix, head by head`;

interface PatternForm {
  readonly defaults: readonly number[];
  readonly make: (a: number, b: number, c: number) => HeadPattern;
}

const verticalSlash: PatternForm = {
  defaults: [1000, 6096],
  make: (verticalSize, slashSize) => ({ kind: 'vertical_slash', verticalSize, slashSize }),
};
const aShape: PatternForm = { defaults: [1024, 4096], make: (initSize, localSize) => ({ kind: 'a_shape', initSize, localSize }) };

/** Pattern names, those of MInference's configuration files among them. */
const FORMS: Readonly<Record<string, PatternForm>> = {
  dense: { defaults: [], make: () => ({ kind: 'dense' }) },
  a_shape: aShape,
  stream_llm: aShape,
  tri_shape: {
    defaults: [128, 3968, 100],
    make: (initSize, localSize, lastSize) => ({ kind: 'tri_shape', initSize, localSize, lastSize }),
  },
  vertical_slash: verticalSlash,
  vertical_and_slash: verticalSlash,
  block_sparse: { defaults: [100], make: (topK) => ({ kind: 'block_sparse', topK }) },
  x_attention: {
    defaults: [8, 0.9],
    make: (stride, threshold) => ({ kind: 'x_attention', stride: stride as 8 | 16, threshold }),
  },
  dilated1: { defaults: [], make: dilated1 },
  dilated2: { defaults: [], make: dilated2 },
};

/** Reads `a_shape:1024,4096+block_sparse`: the patterns that the heads get in turn. Throws commander's usage error. */
export function parsePatterns(text: string): HeadPattern[] {
  return text.split('+').map((part) => {
    const [name = '', sizes, ...rest] = part.trim().split(':');
    const form = Object.hasOwn(FORMS, name) ? FORMS[name] : undefined;
    if (!form) throw new InvalidArgumentError(`Unknown pattern "${name}". Allowed: ${Object.keys(FORMS).join(', ')}.`);
    const given = sizes === undefined ? [] : sizes.split(',');
    const usage = `"${part.trim()}": write ${[name, form.defaults.join(',')].filter(Boolean).join(':')} or the like.`;
    if (rest.length > 0 || (sizes !== undefined && given.length !== form.defaults.length)) throw new InvalidArgumentError(usage);
    if (!given.every((x) => /^\d+(\.\d+)?$/.test(x))) throw new InvalidArgumentError(usage);
    const [a = 0, b = 0, c = 0] = sizes === undefined ? form.defaults : given.map(Number);
    try {
      return resolvePattern(name, form.make(a, b, c));
    } catch (error) {
      throw new InvalidArgumentError(error instanceof Error ? error.message : String(error));
    }
  });
}

/** A pattern as `--pattern` takes it; the fixed ones in words. */
export function patternText(pattern: HeadPattern): string {
  switch (pattern.kind) {
    case 'dense':
      return 'dense';
    case 'a_shape':
      return `a_shape:${pattern.initSize},${pattern.localSize}`;
    case 'vertical_slash':
      return `vertical_slash:${pattern.verticalSize},${pattern.slashSize}`;
    case 'block_sparse':
      return `block_sparse:${pattern.topK}`;
    case 'tri_shape':
      return `tri_shape:${pattern.initSize},${pattern.localSize},${pattern.lastSize}`;
    case 'x_attention':
      return `x_attention:${pattern.stride},${pattern.threshold}`;
    case 'static_vertical_slash':
      return `static (${pattern.columns.length} columns, ${pattern.runs.length / 2} runs)`;
  }
}

/**
 * The patterns of one layer of a configuration file in MInference's format.
 *
 * @throws {@link MinferenceError} `file`, or `invalid-argument` when there is no such layer.
 */
export async function readPatternConfig(path: string, layer: number): Promise<HeadPattern[]> {
  const config = await readConfigFile(path);
  if (layer >= config.layers.length)
    throw invalidArgument('--layer', layer, `0 to ${config.layers.length - 1}, the layers of ${path}`);
  return patternsForLayer(config, layer);
}
