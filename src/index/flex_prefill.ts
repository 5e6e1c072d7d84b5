import cumulativeDigit from '../../shaders/index/cumulative_digit.wgsl?raw';
import cumulativeHistogram from '../../shaders/index/cumulative_histogram.wgsl?raw';
import flexBlockSoftmax from '../../shaders/index/flex_block_softmax.wgsl?raw';
import flexBlocks from '../../shaders/index/flex_blocks.wgsl?raw';
import flexDecide from '../../shaders/index/flex_decide.wgsl?raw';
import flexVerticalSlash from '../../shaders/index/flex_vertical_slash.wgsl?raw';
import cumulative from '../../shaders/lib/index_cumulative.wgsl?raw';
import radix from '../../shaders/lib/index_radix.wgsl?raw';
import mergeStatistics from '../../shaders/lib/merge_statistics.wgsl?raw';
import { lazyShader, type ShaderSpec } from '../device/pipelines.js';
import type { DeviceProfile } from '../device/profile.js';
import type { BufferRange, Recorder } from '../device/recorder.js';
import { INDEX_BLOCK } from '../kernels/attention.js';
import { prelude, type StorageFormat, storageLibrary } from '../kernels/shader_text.js';
import { bindWindow, windowWords } from '../kernels/tensor.js';
import { blockScoreShaders, cutStrips, paddedRows, recordMeanPool, type Strip, TILE_KEYS } from './block_sparse.js';
import {
  type BuiltIndex,
  type BuiltIndexEntry,
  divCeil,
  f32Bits,
  headRange,
  type IndexBytes,
  type IndexHead,
  type IndexLayer,
  layerSizes,
} from './layer.js';
import { LAST_QUERIES, recordVerticalSlashScores, verticalSlashScoreBytes, verticalSlashScoreShaders } from './vertical_slash.js';

/** A head whose pattern FlexPrefill chooses. */
export interface FlexPrefillHead extends IndexHead {
  /** Share of the estimated attention to keep, above 0, up to 1. */
  readonly gamma: number;
  /** Distance of the estimated from the true block distribution below which a head is query-aware. */
  readonly tau: number;
  /** Columns, diagonals, or nearest keys that are kept at least. */
  readonly minBudget: number;
}

/** The index of {@link recordFlexPrefillIndex}: of each head the chosen pattern's, and an empty one of the other. */
export interface FlexPrefillIndex extends BuiltIndex {
  /** What the vertical-slash kernel reads: `args = [column room, run room, ...]`, then the block entry's offset and args. */
  readonly entries: readonly BuiltIndexEntry[];
  /** What the block-sparse kernel reads: `args = [room, start of the counts]`. */
  readonly blockEntries: readonly BuiltIndexEntry[];
}

/** Most key blocks that a row block of a query-aware head keeps: bounds the index of long sequences (262,144 keys). */
export const MAX_KEPT_BLOCKS = 4096;

/** First columns and nearest diagonals that are always kept: one block, as in FlexPrefill. */
const FLEX_FORCED = INDEX_BLOCK;

// As in shaders/lib/index_radix.wgsl and cumulative_histogram.wgsl.
const CHUNK = 4096;
const BINS = 2048;
const DIGITS = [0, 1, 2] as const;
const HEADER_WORDS = 4;
/** Columns by sum and by count, diagonals by sum and by count. */
const LISTS = 4;
/** A list's total mass is at most this. */
const MAX_MASS = 2 ** 30;

interface Shaders {
  readonly pool: ShaderSpec;
  readonly decide: ShaderSpec;
  readonly histogram: readonly ShaderSpec[];
  readonly digit: readonly ShaderSpec[];
  readonly verticalSlash: ShaderSpec;
  readonly scores: ShaderSpec;
  readonly tileRows: number;
  readonly softmax: ShaderSpec;
  readonly blocks: ShaderSpec;
}

function shadersFor(profile: DeviceProfile, headDim: number, storage: StorageFormat): Shaders {
  const perDigit = (shader: ShaderSpec): ShaderSpec[] => DIGITS.map((digit) => ({ ...shader, constants: { DIGIT: digit } }));
  return {
    ...blockScoreShaders(profile, headDim, storage, true),
    decide: lazyShader(
      {
        label: `flex-prefill estimate: decide D=${headDim} ${storage}`,
        bindings: ['uniform', 'read', 'read', 'read', 'read', 'write', 'write', 'write'],
      },
      () =>
        [
          prelude({ f16: storage === 'f16', constants: { HEAD_DIM: headDim } }),
          storageLibrary(storage),
          mergeStatistics,
          flexDecide,
        ].join('\n'),
    ),
    histogram: perDigit({
      label: 'cumulative selection: histogram',
      code: [radix, cumulative, cumulativeHistogram].join('\n'),
      bindings: ['uniform', 'read', 'read', 'write'],
    }),
    digit: perDigit({
      label: 'cumulative selection: digit',
      code: [radix, cumulative, cumulativeDigit].join('\n'),
      bindings: ['uniform', 'read', 'write'],
    }),
    verticalSlash: {
      label: 'flex-prefill vertical-slash',
      code: [radix, cumulative, flexVerticalSlash].join('\n'),
      bindings: ['uniform', 'read', 'read', 'read', 'read', 'write', 'write'],
    },
    softmax: {
      label: 'flex-prefill estimate: block softmax',
      code: [mergeStatistics, flexBlockSoftmax].join('\n'),
      bindings: ['uniform', 'read', 'write'],
    },
    blocks: {
      label: 'flex-prefill blocks',
      code: [radix, flexBlocks].join('\n'),
      bindings: ['uniform', 'read', 'read', 'read', 'write'],
    },
  };
}

/** Every shader that {@link recordFlexPrefillIndex} may use for this head size and storage format. */
export function flexPrefillIndexShaders(profile: DeviceProfile, headDim: number, storage: StorageFormat): ShaderSpec[] {
  const { histogram, digit, tileRows: _, ...others } = shadersFor(profile, headDim, storage);
  return [...verticalSlashScoreShaders(profile, headDim, storage), ...Object.values(others), ...histogram, ...digit];
}

/** Sizes of one layer's index, in words per head. */
function indexSizes(layer: IndexLayer, maxBlocks: number) {
  const visible = layer.queryOffset + layer.q.rows;
  const qBlocks = divCeil(layer.q.rows, INDEX_BLOCK);
  const kBlocks = divCeil(visible, INDEX_BLOCK);
  const room = Math.min(kBlocks, maxBlocks);
  // Runs are more than 64 diagonals apart.
  const runRoom = divCeil(visible, INDEX_BLOCK + 1);
  const verticalSlash = HEADER_WORDS + visible + 3 * runRoom;
  return { visible, qBlocks, kBlocks, room, runRoom, verticalSlash, words: verticalSlash + qBlocks * room + qBlocks };
}

/** Most key blocks per row block unless given: {@link MAX_KEPT_BLOCKS}, or what lets the index of a head fit one binding. */
function mostBlocks(layer: IndexLayer): number {
  const { maxStorageBufferBindingSize, maxBufferSize } = layer.profile.limits;
  const { verticalSlash, qBlocks } = indexSizes(layer, 0);
  const room = Math.min(maxStorageBufferBindingSize, maxBufferSize) / 4 - verticalSlash - qBlocks;
  return Math.max(1, Math.min(MAX_KEPT_BLOCKS, Math.floor(room / qBlocks)));
}

/** Workspace in bytes, and the strips of row blocks whose scores are in memory at once. */
function planWorkspace(layer: IndexLayer, heads: readonly FlexPrefillHead[], maxBlocks: number) {
  const { keys, headDim } = layerSizes(layer);
  const { qBlocks, kBlocks } = indexSizes(layer, maxBlocks);
  const kvHeads = [...new Set(heads.map((h) => h.kvHead))];
  const { limits } = layer.profile;
  const qbar = heads.length * qBlocks * headDim * 4;
  const kbar = kvHeads.length * divCeil(keys, INDEX_BLOCK) * headDim * 4;
  const strips = cutStrips(
    layer,
    heads.length,
    Math.min(layer.workspaceLimit / 2, limits.maxStorageBufferBindingSize, limits.maxBufferSize),
  );
  const scores = strips.reduce((most, s) => Math.max(most, heads.length * paddedRows(s) * s.stride * 4), 0);
  const estimate = verticalSlashScoreBytes(layer, heads.length);
  const histogram = (lists: number): number => heads.length * lists * DIGITS.length * BINS * 4;
  const diagonals = heads.length * kBlocks * 4;
  const stages = [estimate.peak, kbar + estimate.scores + histogram(LISTS) + diagonals, kbar + qbar + scores + histogram(1)];
  return { kvHeads, qbar, kbar, strips, scores, diagonals, histogram, transient: Math.max(...stages) };
}

/**
 * Memory of {@link recordFlexPrefillIndex}. The index of a head takes one word per visible key, 3 per 65 diagonals, and
 * `nb * (min(nbk, 4096) + 1)` words for `nb` blocks of 64 rows and `nbk` visible blocks of 64 keys, less where a binding holds
 * less. The workspace is that of
 * the vertical-slash estimate, then the block scores: all `nb * nbk` of each head, or strips of them within half of
 * `workspaceLimit`.
 */
export function flexPrefillWorkspaceBytes(
  layer: IndexLayer,
  heads: readonly FlexPrefillHead[],
  maxBlocks = mostBlocks(layer),
): IndexBytes {
  const { transient } = planWorkspace(layer, heads, maxBlocks);
  return { transient, index: heads.length * indexSizes(layer, maxBlocks).words * 4 };
}

/** Largest power of two that keeps a list of this total within {@link MAX_MASS}. */
function massScale(total: number): number {
  return MAX_MASS / 2 ** Math.ceil(Math.log2(total));
}

/**
 * Records FlexPrefill's choice of pattern and index for some heads (arXiv 2502.20766, algorithms 1 to 4), without readback:
 *
 * - attention of the last 64 query rows, pooled over key blocks, against the softmax of pooled q and k: their
 *   Jensen-Shannon distance below `tau` makes a head query-aware, else it is vertical-slash;
 * - vertical-slash: the fewest columns that hold `gamma` of those rows' attention, at least `minBudget`, the first 64 among them;
 *   and as many diagonals as it takes to hold `gamma` of it, at least `minBudget`, but in the best whole blocks of 64;
 * - query-aware: the fewest blocks that hold `gamma` of the estimated attention of all row blocks together, among them for each
 *   row block key block 0, the diagonal, and the nearest `minBudget` keys.
 *
 * Every head gets both indices, of which one is empty.
 *
 * @param maxBlocks - most key blocks per row block, for a bounded index; the best are kept. Default: 4096, or what a binding
 *   holds.
 */
export function recordFlexPrefillIndex(
  rec: Recorder,
  layer: IndexLayer,
  heads: readonly FlexPrefillHead[],
  maxBlocks = mostBlocks(layer),
): FlexPrefillIndex {
  const { headDim, rows: n, keys } = layerSizes(layer);
  const shaders = shadersFor(layer.profile, headDim, layer.storage);
  const sizes = indexSizes(layer, maxBlocks);
  const { visible, qBlocks, kBlocks, room, runRoom } = sizes;
  const plan = planWorkspace(layer, heads, maxBlocks);
  const poolBlocks = divCeil(keys, INDEX_BLOCK);
  const index = rec.workspace('flex-prefill index', heads.length * sizes.words * 4);
  const blockEntries = heads.map((_, i) => ({
    indexOffset: i * sizes.words + sizes.verticalSlash,
    args: [room, qBlocks * room],
  }));
  const entries = blockEntries.map((blocks, i) => ({
    indexOffset: i * sizes.words,
    args: [visible, runRoom, blocks.indexOffset, ...blocks.args],
  }));

  // What pattern each head has.
  const rows = Math.min(LAST_QUERIES, n);
  const scores = recordVerticalSlashScores(rec, layer, heads, { columns: 0, diagonals: 0 });
  const kbar = rec.workspace('pooled k', plan.kbar);
  recordMeanPool(rec, shaders.pool, 'k', layer.k, plan.kvHeads, poolBlocks, kbar);
  const chosen = rec.workspace('flex-prefill: chosen', heads.length * 16);
  const searches = rec.workspace('flex-prefill: searches', heads.length * LISTS * 16);
  const blockSearches = rec.workspace('flex-prefill: block searches', heads.length * 16);
  const slack = (gamma: number, total: number): number => Math.floor((1 - gamma) * total * massScale(total));
  const headTable = heads.flatMap((h, i) => [
    h.head,
    plan.kvHeads.indexOf(h.kvHead),
    blockEntries[i]?.indexOffset ?? 0,
    f32Bits(h.tau),
    slack(h.gamma, rows),
    visible - Math.min(visible, Math.max(1, h.minBudget)),
    slack(h.gamma, qBlocks),
    // In a bounded index, leave room for key block 0 and the diagonal.
    Math.min(divCeil(h.minBudget, INDEX_BLOCK), room < kBlocks ? Math.max(0, room - 3) : kBlocks),
  ]);
  const [qStart, qEnd] = headRange(heads.map((h) => h.head));
  const q = bindWindow(rec.device, 'q', layer.q, qStart, qEnd, n - rows, n);
  const decideParams = [rows, n - rows, kBlocks, poolBlocks, scores.stride, f32Bits(layer.scale * Math.LOG2E), ...windowWords(q)];
  rec.dispatch({
    stage: 'estimate',
    shader: shaders.decide,
    bindings: [
      rec.constant(decideParams),
      q.range,
      kbar,
      rec.constant(headTable),
      scores.buffer,
      chosen,
      searches,
      blockSearches,
    ],
    workgroups: [heads.length],
    flops: heads.length * kBlocks * 4 * headDim,
  });

  // Columns and diagonals.
  const lists = heads.length * LISTS;
  const listParams = cumulativeParams(rec, scores.stride, visible, FLEX_FORCED, 2, massScale(rows));
  let histogram = rec.workspace('cumulative histogram', plan.histogram(LISTS));
  rec.clear('topk', histogram, 0, plan.histogram(LISTS));
  for (const digit of DIGITS) {
    recordHistogram(digit, listParams, scores.buffer, searches, lists, visible);
    recordDigit(digit, listParams, searches, lists);
  }
  rec.release(histogram);
  const diagonals = rec.workspace('blocks of diagonals', plan.diagonals);
  const offsets = rec.constant(entries.map((e) => e.indexOffset));
  rec.dispatch({
    stage: 'convert',
    shader: shaders.verticalSlash,
    bindings: [listParams, scores.buffer, searches, chosen, offsets, diagonals, index],
    workgroups: [2, heads.length],
  });
  rec.release(scores.buffer, diagonals, searches);

  // Blocks. Scores that do not fit memory together are computed again for each digit.
  const qbar = rec.workspace('pooled q', plan.qbar);
  recordMeanPool(
    rec,
    shaders.pool,
    'q',
    layer.q,
    heads.map((h) => h.head),
    qBlocks,
    qbar,
  );
  const blockScores = rec.workspace('block scores', plan.scores);
  histogram = rec.workspace('cumulative histogram', plan.histogram(1));
  rec.clear('topk', histogram, 0, plan.histogram(1));
  const again = plan.strips.length > 1;
  for (const digit of DIGITS) {
    for (const strip of plan.strips) {
      if (again || digit === 0) recordScores(strip);
      const count = strip.count * strip.stride;
      const stripParams = cumulativeParams(rec, paddedRows(strip) * strip.stride, count, 0, 1, massScale(qBlocks));
      recordHistogram(digit, stripParams, blockScores, blockSearches, heads.length, count);
    }
    recordDigit(digit, cumulativeParams(rec, 0, 0, 0, 1, massScale(qBlocks)), blockSearches, heads.length);
  }
  for (const strip of plan.strips) {
    if (again) recordScores(strip);
    const words = [strip.first, qBlocks, paddedRows(strip), strip.stride, layer.queryOffset, n, room, 2 ** 30];
    rec.dispatch({
      stage: 'topk',
      shader: shaders.blocks,
      bindings: [rec.constant(words), chosen, blockSearches, blockScores, index],
      workgroups: [strip.count, heads.length],
    });
  }
  rec.release(histogram, blockScores, qbar, kbar, chosen, blockSearches);
  return { buffer: index, entries, blockEntries, bytes: heads.length * sizes.words * 4 };

  function recordHistogram(
    digit: (typeof DIGITS)[number],
    params: BufferRange,
    from: GPUBuffer,
    states: GPUBuffer,
    count: number,
    longest: number,
  ): void {
    rec.dispatch({
      stage: 'topk',
      shader: shaders.histogram[digit] as ShaderSpec,
      bindings: [params, from, states, histogram],
      workgroups: [divCeil(longest, CHUNK), count],
    });
  }

  function recordDigit(digit: (typeof DIGITS)[number], params: BufferRange, states: GPUBuffer, count: number): void {
    rec.dispatch({
      stage: 'topk',
      shader: shaders.digit[digit] as ShaderSpec,
      bindings: [params, histogram, states],
      workgroups: [count],
    });
  }

  function recordScores(strip: Strip): void {
    const stripRows = paddedRows(strip);
    rec.dispatch({
      stage: 'estimate',
      shader: shaders.scores,
      bindings: [
        rec.constant([strip.first, qBlocks, poolBlocks, stripRows, strip.stride, layer.queryOffset, n]),
        qbar,
        kbar,
        chosen,
        blockScores,
      ],
      workgroups: [strip.stride / TILE_KEYS, stripRows / shaders.tileRows, heads.length],
      flops: heads.length * stripRows * strip.stride * 2 * headDim,
    });
    const words = [strip.first, stripRows, strip.stride, layer.queryOffset, n, f32Bits(layer.scale * Math.LOG2E)];
    rec.dispatch({
      stage: 'estimate',
      shader: shaders.softmax,
      bindings: [rec.constant(words), chosen, blockScores],
      workgroups: [strip.count, heads.length],
    });
  }
}

/** The uniform of the cumulative selection's steps, see shaders/lib/index_cumulative.wgsl. */
function cumulativeParams(
  rec: Recorder,
  listStride: number,
  count: number,
  forced: number,
  copies: 1 | 2,
  scale: number,
): BufferRange {
  return rec.constant([listStride, count, forced, copies, f32Bits(scale)]);
}
