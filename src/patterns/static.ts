import { checkInteger, invalidArgument, MinferenceError } from '../errors.js';
import type { HeadPattern, HeadReport, StaticPattern } from '../scheduler/types.js';

/** Rows of a block that shares one index: a diagonal stands for a window of as many keys. */
const BLOCK = 64;
const MAX_ENTRIES = 2 ** 20;
const MAX_POSITION = 2 ** 26;

/** A run of diagonals as the kernel reads it; see shaders/lib/vertical_slash_index.wgsl. */
interface Run {
  readonly lo: number;
  readonly hi: number;
}

function range(start: number, end: number, step = 1): number[] {
  const out: number[] = [];
  for (let i = start; i < end; i += step) out.push(i);
  return out;
}

/** Joins ascending (lo, hi) pairs at most `gap` apart. */
function joinRuns(runs: readonly Run[], gap: number): Run[] {
  const joined: Run[] = [];
  for (const run of runs) {
    const last = joined.at(-1);
    if (last && run.lo - last.hi <= gap) joined[joined.length - 1] = { lo: last.lo, hi: Math.max(last.hi, run.hi) };
    else joined.push(run);
  }
  return joined;
}

/**
 * Vertical-slash attention over fixed columns and diagonals, in any order.
 *
 * A diagonal `s` (a distance between row and key) is kept for a block of 64 rows at a time, as everywhere in
 * this pattern: the block's rows see the keys `[p0 - s, p0 + 63 - s]`, where p0 is the position of its first
 * row. Diagonals less than 64 apart therefore merge into one band.
 */
export function staticVerticalSlash(columns: Iterable<number>, slashes: Iterable<number>): StaticPattern {
  const sorted = [...new Set(slashes)].sort((a, b) => a - b);
  const runs = joinRuns(
    sorted.map((s) => ({ lo: s, hi: s })),
    1,
  );
  return {
    kind: 'static_vertical_slash',
    columns: Uint32Array.from([...new Set(columns)].sort((a, b) => a - b)),
    runs: Uint32Array.from(runs.flatMap((r) => [r.lo, r.hi])),
  };
}

/** MInference's `dilated1`: the first 1024 keys, and every other diagonal of the last 8192. */
export function dilated1(): StaticPattern {
  return staticVerticalSlash(range(0, 1024), range(0, 8192, 2));
}

/** MInference's `dilated2`: the first 1024 keys, the last 2048 diagonals, and every other one of 4096 more. */
export function dilated2(): StaticPattern {
  return staticVerticalSlash(range(0, 1024), [...range(0, 2048), ...range(2048, 6144, 2)]);
}

/** What {@link strided} keeps. */
export interface StridedOptions {
  /** Distance between kept diagonals (1 or more). */
  readonly stride: number;
  /** Nearest diagonals that are all kept. Default: `stride`. */
  readonly localSize?: number;
  /** First keys that every row sees. Default 0. */
  readonly initSize?: number;
}

/**
 * The strided pattern of Sparse Transformers (arXiv 1904.10509): a local window and every `stride`-th diagonal
 * of a sequence of `kvLen` keys. Strides up to 64 are dense, since a diagonal stands for 64 keys.
 */
export function strided(kvLen: number, options: StridedOptions): StaticPattern {
  const { stride, localSize = stride, initSize = 0 } = options;
  checkInteger('kvLen', kvLen, 1, MAX_POSITION);
  checkInteger('stride', stride, 1, MAX_POSITION);
  checkInteger('localSize', localSize, 0, MAX_POSITION);
  checkInteger('initSize', initSize, 0, MAX_POSITION);
  return staticVerticalSlash(range(0, Math.min(initSize, kvLen)), [
    ...range(0, Math.min(localSize, kvLen)),
    ...range(0, kvLen, stride),
  ]);
}

/**
 * Turns the indices that a run used into patterns that use them again: later calls of the same layer then
 * estimate nothing (MInference's `static_pattern`). The heads that ran vertical-slash become static; the others, which
 * need no estimate or none that can be shared between lengths, stay as they are.
 *
 * ```ts
 * const first = await prefill.run(layer, { inspect: true });
 * await prefill.run({ ...layer, patterns: reuseIndices(first.heads) });
 * ```
 *
 * @param heads - `RunReport.heads` of a run with `inspect`.
 */
export function reuseIndices(heads: readonly HeadReport[] | undefined): HeadPattern[] {
  if (!heads) throw invalidArgument('heads', heads, 'the heads of a report of run(layer, { inspect: true })');
  return heads.map(({ pattern, index }) =>
    (pattern.kind === 'vertical_slash' || pattern.kind === 'flex_prefill') && index.kind === 'vertical_slash'
      ? { kind: 'static_vertical_slash', columns: index.columns, runs: index.runs }
      : pattern,
  );
}

/** Checks a static pattern and copies it: ascending columns without repeats, and runs that start with diagonal 0. */
export function resolveStaticPattern(argument: string, pattern: StaticPattern): StaticPattern {
  const columns = numbers(`${argument}.columns`, pattern.columns);
  const flat = numbers(`${argument}.runs`, pattern.runs);
  if (flat.length % 2 !== 0) throw invalidArgument(`${argument}.runs`, pattern.runs, 'pairs lo, hi');
  const runs: Run[] = [{ lo: 0, hi: 0 }];
  for (let i = 0; i < flat.length; i += 2) {
    const lo = flat[i] as number;
    const hi = flat[i + 1] as number;
    if (hi < lo) throw invalidArgument(`${argument}.runs[${i + 1}]`, hi, `at least ${lo}, where the run starts`);
    runs.push({ lo, hi });
  }
  const joined = joinRuns(
    runs.sort((a, b) => a.lo - b.lo),
    BLOCK,
  );
  return {
    kind: 'static_vertical_slash',
    columns: Uint32Array.from(new Set(columns)).sort(),
    runs: Uint32Array.from(joined.flatMap((r) => [r.lo, r.hi])),
  };
}

function numbers(argument: string, values: ArrayLike<number>): number[] {
  if (typeof values !== 'object' || values === null || !Number.isInteger(values.length)) {
    throw invalidArgument(argument, values, 'a list of integers');
  }
  if (values.length > MAX_ENTRIES) {
    throw new MinferenceError('limit', `${argument} has ${values.length} entries; at most ${MAX_ENTRIES} are supported`, {
      argument,
    });
  }
  return Array.from(values, (x, i) => {
    checkInteger(`${argument}[${i}]`, x, 0, MAX_POSITION);
    return x;
  });
}

/** The index words of static heads, and what their head entries say of them; see shaders/lib/vertical_slash_index.wgsl. */
export function packStaticIndex(heads: readonly StaticPattern[]): {
  readonly words: Uint32Array<ArrayBuffer>;
  readonly entries: readonly { readonly indexOffset: number; readonly args: readonly number[] }[];
} {
  const words: number[] = [];
  const entries = heads.map(({ columns, runs }) => {
    const indexOffset = words.length;
    words.push(columns.length, runs.length / 2, 0, 0);
    for (let i = 0; i < columns.length; i++) words.push(columns[i] as number);
    let prefix = 0;
    for (let i = 0; i < runs.length; i += 2) {
      const lo = runs[i] as number;
      const hi = runs[i + 1] as number;
      words.push(lo, hi, prefix);
      prefix += hi - lo + BLOCK;
    }
    return { indexOffset, args: [columns.length, runs.length / 2] };
  });
  return { words: Uint32Array.from(words), entries };
}
