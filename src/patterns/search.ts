import { checkInteger, checkOneOf, invalidArgument, MinferenceError } from '../errors.js';
import { INDEX_BLOCK } from '../kernels/attention.js';
import type { SparsePrefill } from '../scheduler/prefill.js';
import type {
  AShapePattern,
  BlockSparsePattern,
  HeadIndex,
  HeadPattern,
  StageTimes,
  VerticalSlashPattern,
} from '../scheduler/types.js';
import { checkObject, resolvePattern } from '../scheduler/validate.js';
import { allocateDensity } from './allocate.js';
import { headConfigOf, type PatternConfig } from './config.js';
import { buildIndices } from './indices.js';
import { type DenseReference, type MeasuredLayer, RecallMeter } from './recall.js';

/** A pattern that the search may choose; its budgets are scaled until it costs what the others cost. */
export type SearchPattern = AShapePattern | VerticalSlashPattern | BlockSparsePattern;

/**
 * The search space of MInference (arXiv 2407.02490, appendix on the search space): one A-shape, four
 * vertical-slash heads of different proportions, one block-sparse.
 */
export const SEARCH_SPACE: readonly SearchPattern[] = [
  { kind: 'a_shape', initSize: 1024, localSize: 4096 },
  { kind: 'vertical_slash', verticalSize: 30, slashSize: 2048 },
  { kind: 'vertical_slash', verticalSize: 100, slashSize: 1800 },
  { kind: 'vertical_slash', verticalSize: 500, slashSize: 1500 },
  { kind: 'vertical_slash', verticalSize: 3000, slashSize: 200 },
  { kind: 'block_sparse', topK: 100 },
];

/** Columns and diagonals of the vertical-slash heads of {@link allocationSpace}, in 128ths of the keys. */
const ALLOCATION_VERTICAL_SLASH = [
  [12, 0],
  [32, 0],
  [52, 0],
  [12, 3],
  [24, 4],
  [32, 7],
  [42, 10],
  [72, 26],
] as const;

/** Local keys of the A-shape heads of {@link allocationSpace}, in 128ths of the keys. */
const ALLOCATION_A_SHAPE = [4, 12, 24] as const;

/** Candidates of {@link allocationSpace}. */
const ALLOCATION_CANDIDATES = ALLOCATION_A_SHAPE.length + ALLOCATION_VERTICAL_SLASH.length + 1;

/**
 * The candidates of a search with `targetDensity`: from cheap to dear, in proportion to the length, since heads
 * differ more in how much they need than in which pattern. Diagonals past the nearest ones, which every
 * vertical-slash head keeps, cost most: each stands for a band of 127 keys a block.
 */
export function allocationSpace(keys: number): SearchPattern[] {
  const share = (n: number, of = 128): number => Math.max(1, Math.round((keys * n) / of));
  return [
    ...ALLOCATION_A_SHAPE.map((local): SearchPattern => ({ kind: 'a_shape', initSize: 16, localSize: share(local) })),
    ...ALLOCATION_VERTICAL_SLASH.map(
      ([columns, diagonals]): SearchPattern => ({
        kind: 'vertical_slash',
        verticalSize: Math.max(MIN_VERTICAL, share(columns)),
        slashSize: Math.max(NEAREST_SLASH, share(diagonals)),
      }),
    ),
    { kind: 'block_sparse', topK: share(1, 512) },
  ];
}

/** What every candidate may cost. */
export type SearchTarget =
  /** This share of what dense attention costs, 0 to 1. */
  | { readonly density: number }
  /** What this A-shape costs at the layer's length; MInference's target is 1024 and 4096. */
  | { readonly initSize: number; readonly localSize: number };

/** MInference's target. */
export const DEFAULT_TARGET = { initSize: 1024, localSize: 4096 } as const satisfies SearchTarget;

/** Options of {@link searchPatterns}. */
export interface SearchOptions {
  /** Candidates before scaling. Default {@link SEARCH_SPACE}; with `targetDensity`, as they are, {@link allocationSpace}. */
  readonly space?: readonly SearchPattern[];
  /**
   * Let heads cost what they need: instead of scaling every candidate to one target, choose the candidates that
   * keep most attention (or, by `criterion`, have the least error) while the mean density over all heads
   * of all layers is at most this. See {@link allocateDensity}. Not together with `target`. A finished state,
   * resumed with another limit, is allocated again without measuring anything.
   */
  readonly targetDensity?: number;
  /** Default: the A-shape of 1024 initial and 4096 local keys. */
  readonly target?: SearchTarget;
  /** How close a candidate's cost must come to the target, as a share of it. Default 0.05. */
  readonly costTolerance?: number;
  /** Choose the least output error (as in the paper) or the most attention mass kept. Default `error`, with `targetDensity` `recall`. */
  readonly criterion?: 'error' | 'recall';
  /**
   * Candidates whose loss (error, or mass lost) is at most this share above the least one count as equal, and
   * the one whose index is cheapest to build wins: A-shape, then block-sparse, then vertical-slash. Default 0.1.
   */
  readonly tieTolerance?: number;
  /** Rows before this one are not measured. Default 0. */
  readonly firstRow?: number;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: SearchProgress) => void;
  /** What an earlier, interrupted search of the same layers, target and space had found. */
  readonly resume?: SearchState;
  /** Called with all that is known after each candidate, to be saved; awaited. */
  readonly onState?: (state: SearchState) => void | Promise<void>;
}

/** Progress of a search. */
export interface SearchProgress {
  /** 0 to 1. */
  readonly fraction: number;
  readonly layer: number;
  /** Candidate of the space that was just measured. */
  readonly candidate: number;
}

/** What was measured of one candidate on one head. */
export interface CandidateResult {
  /** The candidate with its budgets scaled for this head. */
  readonly pattern: SearchPattern;
  /** Tiles of 64 x 64 pairs that the kernel computes, over those of the target; with `targetDensity`, over those of dense. */
  readonly cost: number;
  /** Query-key pairs kept over the causal total. */
  readonly density: number;
  /** Share of the attention mass kept, mean over rows. */
  readonly recall: number;
  /** Share that the worst row keeps. */
  readonly worstRecall: number;
  /** Relative output error. */
  readonly error: number;
  /**
   * GPU milliseconds, the head's part of its layer's: of the attention kernel by the tiles that it computes, of index
   * building the same for every head. Absent without timestamps.
   */
  readonly ms?: number;
}

/** What the search found for one layer: `heads[head].candidates[candidate]`. */
export interface LayerResult {
  readonly layer: number;
  readonly seqLen: number;
  /** GPU milliseconds per head of dense attention; absent without timestamps. */
  readonly denseMs?: number;
  readonly heads: readonly { readonly best: number; readonly candidates: readonly CandidateResult[] }[];
}

/** All that a search knows so far; plain JSON. */
export interface SearchState {
  readonly version: 1;
  /** Tells whether a state fits a search: its layers, space, target and criterion. */
  readonly fingerprint: string;
  readonly layers: readonly LayerResult[];
  /** Candidates of the layer under way, `[candidate][head]`. */
  readonly partial: readonly (readonly CandidateResult[])[];
}

/** Result of {@link searchPatterns}. */
export interface SearchResult {
  /** Chosen patterns in MInference's format; a head's score is the attention mass that it keeps. */
  readonly config: PatternConfig;
  readonly layers: readonly LayerResult[];
}

/** Where a search gets real q, k, v from. */
export interface SearchSource {
  /** Name of the data, for messages and for recognising a state. */
  readonly name: string;
  /** Layers, in the order of the config. */
  readonly layers: number;
  /** The inputs of one layer; `release` is called when the search is done with it. */
  readonly load: (layer: number) => Promise<{ readonly layer: MeasuredLayer; readonly release?: () => void }>;
}

const MIN_VERTICAL = 30;
const MIN_SLASH = 50;
/** The nearest diagonals, which the index builder keeps whatever they score. */
const NEAREST_SLASH = 100;
const MAX_STEPS = 12;
/** Losses this small are rounding, in f16 tensors too. */
const NOISE = 1e-3;
/** Cheapest index first. */
const INDEX_COST: Readonly<Record<SearchPattern['kind'], number>> = { a_shape: 0, block_sparse: 1, vertical_slash: 2 };

/**
 * MInference's offline, kernel-aware pattern search (arXiv 2407.02490, section 3.2, algorithm 1).
 *
 * For each head of each layer, every candidate's budgets are scaled until its kernel computes as many tiles as
 * the target, by building the head's real index; the candidates are then run with our own kernels and
 * compared with dense attention, and the best is kept. With `targetDensity`, heads share one budget instead and
 * candidates run as they are. Runs wherever the kernels run, browsers included.
 *
 * @throws {@link MinferenceError} `invalid-argument` for bad options or a state of another search; the abort
 *   signal's reason when stopped. What was found until then has been given to `onState`.
 */
export async function searchPatterns(
  prefill: SparsePrefill,
  source: SearchSource,
  options: SearchOptions = {},
): Promise<SearchResult> {
  const search = resolveOptions(source, options);
  const { signal, fingerprint, targetDensity } = search;
  const { resume } = options;
  const candidates = search.space?.length ?? ALLOCATION_CANDIDATES;
  if (resume !== undefined) checkState(resume, fingerprint, source.layers, candidates);
  const layers: LayerResult[] = [...(resume?.layers ?? [])];
  let partial: (readonly CandidateResult[])[] = [...(resume?.partial ?? [])];
  // Copies, since the arrays grow.
  const save = async (): Promise<void> =>
    options.onState?.({ version: 1, fingerprint, layers: [...layers], partial: [...partial] });
  const meter = new RecallMeter(prefill);
  const total = source.layers * candidates;
  try {
    for (let index = layers.length; index < source.layers; index++) {
      signal?.throwIfAborted();
      const { layer, release } = await source.load(index);
      let dense: DenseReference | undefined;
      try {
        dense = await meter.reference(layer, signal ? { signal } : {});
        const { numHeads, queryOffset, seqLen } = dense.resolved;
        const targetTiles = tilesOfTarget(search.target, dense);
        const space = search.space ?? allocationSpace(queryOffset + seqLen);
        for (let candidate = partial.length; candidate < candidates; candidate++) {
          signal?.throwIfAborted();
          const pattern = space[candidate] as SearchPattern;
          const patterns =
            targetDensity === undefined
              ? await scaleToTarget(prefill, dense, pattern, targetTiles, search.costTolerance)
              : new Array<SearchPattern>(numHeads).fill(pattern);
          const { heads, stages } = await meter.measure(dense, patterns, {
            firstRow: search.firstRow,
            ...(signal ? { signal } : {}),
          });
          const { resolved } = dense;
          const tiles = heads.map((h) => kernelTiles(h.pattern, h.index, resolved));
          const allTiles = tiles.reduce((sum, n) => sum + n, 0);
          partial.push(
            heads.map((h, i) => ({
              pattern: patterns[i] as SearchPattern,
              cost: (tiles[i] as number) / targetTiles,
              density: h.density,
              recall: h.recall,
              worstRecall: h.worstRecall,
              error: h.error,
              ...(stages ? { ms: headMs(stages, (tiles[i] as number) / allTiles, heads.length) } : {}),
            })),
          );
          await save();
          options.onProgress?.({ fraction: (index * candidates + candidate + 1) / total, layer: index, candidate });
        }
        layers.push(chooseBest(index, dense, partial, search));
        partial = [];
        await save();
      } finally {
        dense?.destroy();
        release?.();
      }
    }
  } finally {
    meter.destroy();
  }
  const chosen = targetDensity === undefined ? layers : allocate(layers, targetDensity, search.criterion);
  return { config: configOf(source.name, chosen), layers: chosen };
}

/** One head's part of the GPU time of its layer. */
function headMs(stages: StageTimes, shareOfTiles: number, heads: number): number {
  return stages.kernel * shareOfTiles + (stages.estimate + stages.topk + stages.convert) / heads;
}

/** The same layers with the choice that {@link allocateDensity} makes over all their heads. */
function allocate(layers: readonly LayerResult[], limit: number, criterion: Criterion): LayerResult[] {
  const heads = layers.flatMap((l) => l.heads);
  const choices = heads.map((h) => h.candidates.map((c) => ({ density: c.density, value: -lossOf(c, criterion) })));
  const best = allocateDensity(choices, limit);
  let next = 0;
  return layers.map((l) => ({ ...l, heads: l.heads.map((h) => ({ ...h, best: best[next++] as number })) }));
}

type Criterion = 'error' | 'recall';

/** What a candidate is blamed for: its error, or the attention mass that it loses. */
const lossOf = (c: CandidateResult, criterion: Criterion): number => (criterion === 'error' ? c.error : 1 - c.recall);

/** A finished search in MInference's format. */
function configOf(source: string, layers: readonly LayerResult[]): PatternConfig {
  return {
    source,
    layers: layers.map((l) =>
      l.heads.map(({ best, candidates }) => {
        const { pattern, recall } = candidates[best] as CandidateResult;
        return headConfigOf(pattern, recall);
      }),
    ),
  };
}

interface ResolvedSearch {
  /** Absent: that of {@link allocationSpace} at the layer's length. */
  readonly space: readonly SearchPattern[] | undefined;
  readonly target: SearchTarget;
  readonly targetDensity: number | undefined;
  readonly costTolerance: number;
  readonly criterion: Criterion;
  readonly tieTolerance: number;
  readonly firstRow: number;
  readonly signal: AbortSignal | undefined;
  readonly fingerprint: string;
}

function resolveOptions(source: SearchSource, options: SearchOptions): ResolvedSearch {
  if (typeof source !== 'object' || source === null)
    throw invalidArgument('source', source, 'an object with name, layers and load');
  checkObject('options', options);
  if (typeof source.load !== 'function') throw invalidArgument('source.load', source.load, 'a function');
  const { targetDensity, costTolerance = 0.05, tieTolerance = 0.1, firstRow = 0, signal } = options;
  const allocates = targetDensity !== undefined;
  const { space = allocates ? undefined : SEARCH_SPACE, criterion = allocates ? 'recall' : 'error' } = options;
  if (allocates && !(typeof targetDensity === 'number' && targetDensity > 0 && targetDensity <= 1)) {
    throw invalidArgument('targetDensity', targetDensity, 'a number above 0, up to 1');
  }
  if (allocates && options.target) throw invalidArgument('target', options.target, 'undefined, with targetDensity');
  const target = allocates ? { density: 1 } : (options.target ?? DEFAULT_TARGET);
  checkInteger('source.layers', source.layers, 1, 4096);
  if (space && (!Array.isArray(space) || space.length === 0)) throw invalidArgument('space', space, 'at least one pattern');
  for (const [i, p] of (space ?? []).entries()) {
    const { kind } = resolvePattern(`space[${i}]`, p);
    checkOneOf(`space[${i}].kind`, kind, ['a_shape', 'vertical_slash', 'block_sparse']);
  }
  checkTarget(target);
  checkOneOf('criterion', criterion, ['error', 'recall']);
  for (const [name, x] of [
    ['costTolerance', costTolerance],
    ['tieTolerance', tieTolerance],
  ] as const) {
    if (typeof x !== 'number' || !(x >= 0)) throw invalidArgument(name, x, 'a number of at least 0');
  }
  checkInteger('firstRow', firstRow, 0, 2 ** 26);
  const fingerprint = JSON.stringify({
    source: source.name,
    layers: source.layers,
    // The default depends on the layer's length; any length tells it apart.
    space: space ?? allocationSpace(8192),
    target,
    // What allocation measures does not depend on the limit.
    ...(allocates ? { allocates } : { costTolerance, criterion, tieTolerance }),
    firstRow,
  });
  return { space, target, targetDensity, costTolerance, criterion, tieTolerance, firstRow, signal, fingerprint };
}

function checkTarget(target: SearchTarget): void {
  if (typeof target !== 'object' || target === null) {
    throw invalidArgument('target', target, '{ density } or { initSize, localSize }');
  }
  if (!('density' in target)) {
    checkInteger('target.initSize', target.initSize, 0, 2 ** 26);
    checkInteger('target.localSize', target.localSize, 1, 2 ** 26);
  } else if (typeof target.density !== 'number' || !(target.density > 0 && target.density <= 1)) {
    throw invalidArgument('target.density', target.density, 'a number above 0, up to 1');
  }
}

/**
 * Checks that a state is whole and belongs to this search: it may come from a file.
 *
 * @throws {@link MinferenceError} `invalid-argument`.
 */
function checkState(state: SearchState, fingerprint: string, layers: number, candidates: number): void {
  const whole = (results: unknown): boolean =>
    Array.isArray(results) &&
    results.every((r: Partial<CandidateResult> | null) =>
      [r?.cost, r?.density, r?.recall, r?.worstRecall, r?.error].every((x) => typeof x === 'number'),
    );
  if (typeof state !== 'object' || state === null || state.version !== 1) {
    throw invalidArgument('resume', state, 'the state of a search, of version 1');
  }
  if (state.fingerprint !== fingerprint) {
    throw invalidArgument('resume', state.fingerprint, `the state of a search of ${fingerprint}`);
  }
  const done =
    Array.isArray(state.layers) &&
    state.layers.length <= layers &&
    state.layers.every(
      (l: Partial<LayerResult> | null) =>
        Array.isArray(l?.heads) && l.heads.every((h) => whole(h?.candidates) && h.candidates[h.best] !== undefined),
    );
  if (!done) throw invalidArgument('resume.layers', state.layers, `what a search of ${layers} layers found`);
  if (!Array.isArray(state.partial) || state.partial.length > candidates || !state.partial.every(whole)) {
    throw invalidArgument('resume.partial', state.partial, `results of at most ${candidates} candidates`);
  }
}

/** Rows and keys of a layer, as cost counts need them. */
interface CostShape {
  readonly seqLen: number;
  readonly queryOffset: number;
}

/**
 * Tiles of 64 rows by 64 keys that the attention kernel computes: its cost. Counted as the kernels walk:
 * a part-filled tile costs as much as a full one.
 */
export function kernelTiles(pattern: HeadPattern, index: HeadIndex, shape: CostShape): number {
  const { seqLen, queryOffset } = shape;
  let tiles = 0;
  for (let row0 = 0, block = 0; row0 < seqLen; row0 += INDEX_BLOCK, block++) {
    const first = queryOffset + row0;
    const end = queryOffset + Math.min(row0 + INDEX_BLOCK, seqLen);
    if (index.kind === 'block_sparse') {
      tiles += index.blocks[block]?.length ?? 0;
    } else if (index.kind === 'vertical_slash') {
      const blockEnd = first + INDEX_BLOCK - 1;
      let keys = 0;
      for (let r = 0; r + 1 < index.runs.length && (index.runs[r] as number) <= blockEnd; r += 2) {
        const lo = index.runs[r] as number;
        keys += Math.min((index.runs[r + 1] as number) - lo + INDEX_BLOCK, blockEnd - lo + 1);
      }
      let columns = 0;
      while (columns < index.columns.length && (index.columns[columns] as number) < end) columns++;
      tiles += Math.ceil(keys / INDEX_BLOCK) + Math.ceil(columns / INDEX_BLOCK);
    } else if (pattern.kind === 'a_shape') {
      const init = Math.min(pattern.initSize, end);
      const start = Math.min(Math.max(first + 1 - pattern.localSize, init), end);
      tiles += Math.ceil(init / INDEX_BLOCK) + Math.ceil((end - start) / INDEX_BLOCK);
    } else {
      tiles += Math.ceil(end / INDEX_BLOCK);
    }
  }
  return tiles;
}

function tilesOfTarget(target: SearchTarget, { resolved }: DenseReference): number {
  if ('density' in target) return Math.max(1, target.density * kernelTiles({ kind: 'dense' }, { kind: 'dense' }, resolved));
  return kernelTiles({ kind: 'a_shape', ...target }, { kind: 'a_shape' }, resolved);
}

/** A candidate's budgets times `factor`. */
function scaled(pattern: SearchPattern, factor: number): SearchPattern {
  const times = (size: number, min: number): number => Math.max(min, Math.round(size * factor));
  switch (pattern.kind) {
    case 'a_shape':
      return { kind: 'a_shape', initSize: times(pattern.initSize, 0), localSize: times(pattern.localSize, 1) };
    case 'vertical_slash':
      return {
        kind: 'vertical_slash',
        verticalSize: times(pattern.verticalSize, MIN_VERTICAL),
        slashSize: times(pattern.slashSize, MIN_SLASH),
      };
    case 'block_sparse':
      return { kind: 'block_sparse', topK: times(pattern.topK, 1) };
  }
}

const sameSizes = (a: SearchPattern, b: SearchPattern): boolean => JSON.stringify(a) === JSON.stringify(b);

/**
 * For every head the candidate with the largest budgets that cost at most the target (up to the tolerance):
 * a bisection over the factor, for all heads at once, with the indices that the GPU builds for them.
 */
async function scaleToTarget(
  prefill: SparsePrefill,
  dense: DenseReference,
  pattern: SearchPattern,
  targetTiles: number,
  tolerance: number,
): Promise<SearchPattern[]> {
  const { resolved } = dense;
  const heads = Array.from({ length: resolved.numHeads }, () => ({
    low: 0,
    high: Number.POSITIVE_INFINITY,
    factor: 1,
    done: false,
    best: scaled(pattern, 0),
  }));
  for (let step = 0; step < MAX_STEPS && heads.some((h) => !h.done); step++) {
    const trial = heads.map((h) => (h.done ? h.best : scaled(pattern, h.factor)));
    const indices = await buildIndices(prefill, resolved, trial);
    heads.forEach((h, i) => {
      if (h.done) return;
      const cost = kernelTiles(trial[i] as SearchPattern, indices[i] as HeadIndex, resolved) / targetTiles;
      if (cost <= 1) {
        h.best = trial[i] as SearchPattern;
        h.low = h.factor;
      } else {
        h.high = h.factor;
      }
      // Budgets beyond the sequence cost nothing more: the target may be out of reach.
      h.done = (cost <= 1 && cost >= 1 - tolerance) || (cost <= 1 && h.factor > 64);
      const next = Number.isFinite(h.high) ? (h.low + h.high) / 2 : h.factor * 2;
      if (sameSizes(scaled(pattern, next), scaled(pattern, h.low)) && Number.isFinite(h.high)) h.done = true;
      h.factor = next;
    });
  }
  return heads.map((h) => h.best);
}

function chooseBest(
  layer: number,
  dense: DenseReference,
  byCandidate: readonly (readonly CandidateResult[])[],
  search: ResolvedSearch,
): LayerResult {
  const { numHeads, seqLen } = dense.resolved;
  const loss = (c: CandidateResult): number => lossOf(c, search.criterion);
  const heads = Array.from({ length: numHeads }, (_, head) => {
    const candidates = byCandidate.map((results) => results[head] as CandidateResult);
    if (candidates.some((c) => !Number.isFinite(loss(c)))) {
      throw new MinferenceError(
        'gpu',
        `layer ${layer}, head ${head}: a candidate's error is not a number; are q, k and v finite?`,
      );
    }
    const least = Math.min(...candidates.map(loss));
    let best = -1;
    candidates.forEach((c, i) => {
      if (loss(c) > least * (1 + search.tieTolerance) + NOISE) return;
      const current = candidates[best];
      const better =
        !current ||
        INDEX_COST[c.pattern.kind] < INDEX_COST[current.pattern.kind] ||
        (INDEX_COST[c.pattern.kind] === INDEX_COST[current.pattern.kind] && loss(c) < loss(current));
      if (better) best = i;
    });
    return { best, candidates };
  });
  return { layer, seqLen, ...(dense.gpuMs === undefined ? {} : { denseMs: dense.gpuMs / numHeads }), heads };
}
