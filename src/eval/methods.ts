import type { ModelPatterns } from '../model/runtime.js';
import type { HeadPattern } from '../scheduler/types.js';

/** A way to prefill, under a name. */
export interface EvalMethod {
  readonly name: string;
  /** What the heads attend to in prompts of this many tokens. */
  readonly patterns: (seqLen: number) => ModelPatterns;
}

const between = (low: number, x: number, high: number): number => Math.max(low, Math.min(high, Math.round(x)));
const localSize = (n: number): number => between(128, n / 8, 4096);
const initSize = (n: number): number => between(64, n / 32, 1024);

/** One pattern for all heads, with budgets that grow with the length up to the ones that the methods' authors use. */
const METHOD_PATTERNS: Readonly<Record<string, (seqLen: number) => HeadPattern>> = {
  dense: () => ({ kind: 'dense' }),
  minference: (n) => ({
    kind: 'vertical_slash',
    verticalSize: between(30, n / 8, 1000),
    slashSize: between(128, (3 * n) / 64, 6096),
  }),
  a_shape: (n) => ({ kind: 'a_shape', initSize: initSize(n), localSize: localSize(n) }),
  tri_shape: (n) => ({
    kind: 'tri_shape',
    initSize: between(64, n / 32, 128),
    localSize: between(128, n / 8, 3968),
    lastSize: 100,
  }),
  block_sparse: (n) => ({ kind: 'block_sparse', topK: between(4, n / 512, 100) }),
  x_attention: () => ({ kind: 'x_attention', stride: 8, threshold: 0.9 }),
  flex_prefill: (n) => ({ kind: 'flex_prefill', gamma: 0.9, tau: 0.1, minBudget: between(64, n / 16, 1024) }),
};

/** Names that {@link methodPattern} knows. `minference` is vertical-slash for all heads. */
export const METHODS: readonly string[] = Object.keys(METHOD_PATTERNS);

/** The pattern of a method for prompts of this many tokens; undefined for an unknown name. */
export function methodPattern(name: string, seqLen: number): HeadPattern | undefined {
  return Object.hasOwn(METHOD_PATTERNS, name) ? METHOD_PATTERNS[name]?.(seqLen) : undefined;
}
