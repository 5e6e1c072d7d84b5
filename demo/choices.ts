import shortPatterns from '../assets/model/minference-retrieval-3m.patterns.json' with { type: 'json' };
import longPatterns from '../assets/model/minference-retrieval-3m.patterns-32k.json' with { type: 'json' };
import { LONGEST_SHORT } from '../src/cli/shipped.js';
import { methodPattern } from '../src/eval/methods.js';
import { type HeadPattern, parsePatternConfig } from '../src/index.js';
import type { ModelPatterns } from '../src/model/index.js';

/** A way to read a document, as the visitor chooses it. */
export interface Choice {
  readonly id: string;
  readonly name: string;
  /** In a sentence: what a token then attends to. */
  readonly note: string;
  /** What the heads attend to in documents of this many tokens. */
  readonly patterns: (seqLen: number) => ModelPatterns;
}

const short = parsePatternConfig(shortPatterns, 'the patterns of the model');
const long = parsePatternConfig(longPatterns, 'the patterns of the model');

const byMethod =
  (method: string) =>
  (seqLen: number): ModelPatterns =>
    methodPattern(method, seqLen) ?? { kind: 'dense' };

/** Every token attends to all before it. */
export const DENSE: Choice = {
  id: 'dense',
  name: 'Dense',
  note: 'Every token attends to every token before it.',
  patterns: byMethod('dense'),
};

/** What the visitor can compare with {@link DENSE}; the first one is the default. */
export const SPARSE: readonly Choice[] = [
  {
    id: 'searched',
    name: 'MInference, a pattern per head',
    note: 'Each head has the pattern that a search found for it in this model: A-shape, vertical-slash or block-sparse.',
    patterns: (seqLen) => (seqLen > LONGEST_SHORT ? long : short),
  },
  {
    id: 'minference',
    name: 'Vertical-slash',
    note: 'All heads: the columns and diagonals that the last 64 queries of each chunk attend to most.',
    patterns: byMethod('minference'),
  },
  {
    id: 'a_shape',
    name: 'A-shape',
    note: 'All heads: the first tokens and the nearest ones. Whatever lies between is never looked at.',
    patterns: byMethod('a_shape'),
  },
  {
    id: 'tri_shape',
    name: 'Tri-shape',
    note: 'As A-shape, but the last tokens of each chunk see everything.',
    patterns: byMethod('tri_shape'),
  },
  {
    id: 'block_sparse',
    name: 'Block-sparse',
    note: 'All heads: for each 64 tokens the few blocks of 64 whose averages match best.',
    patterns: byMethod('block_sparse'),
  },
  {
    id: 'flex_prefill',
    name: 'FlexPrefill',
    note: 'Each head chooses blocks or columns and diagonals for this text, as few as hold 90 % of its estimated attention.',
    patterns: byMethod('flex_prefill'),
  },
  {
    id: 'x_attention',
    name: 'XAttention',
    note: 'All heads: the fewest blocks of 64 by 64 that hold 90 % of the attention, estimated along antidiagonals.',
    patterns: byMethod('x_attention'),
  },
];

const count = (n: number): string => n.toLocaleString('en-US');

/** What a head attends to, in words. */
export function describePattern(pattern: HeadPattern): string {
  switch (pattern.kind) {
    case 'dense':
      return 'dense';
    case 'a_shape':
      return `A-shape, first ${count(pattern.initSize)} and nearest ${count(pattern.localSize)}`;
    case 'tri_shape':
      return `tri-shape, first ${count(pattern.initSize)} and nearest ${count(pattern.localSize)}`;
    case 'vertical_slash':
      return `vertical-slash, ${count(pattern.verticalSize)} columns and ${count(pattern.slashSize)} diagonals`;
    case 'block_sparse':
      return `block-sparse, top ${count(pattern.topK)} blocks`;
    case 'flex_prefill':
      return 'FlexPrefill';
    case 'x_attention':
      return 'XAttention';
    case 'static_vertical_slash':
      return 'fixed columns and diagonals';
  }
}
