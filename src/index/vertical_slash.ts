import estimateSoftmax from '../../shaders/index/estimate_softmax.wgsl?raw';
import estimateSums from '../../shaders/index/estimate_sums.wgsl?raw';
import slashRuns from '../../shaders/index/slash_runs.wgsl?raw';
import slashScores from '../../shaders/index/slash_scores.wgsl?raw';
import fourNumbers from '../../shaders/lib/four_numbers.wgsl?raw';
import estimate from '../../shaders/lib/index_estimate.wgsl?raw';
import estimateParams from '../../shaders/lib/index_estimate_params.wgsl?raw';
import keptF16 from '../../shaders/lib/index_kept_f16.wgsl?raw';
import keptF32 from '../../shaders/lib/index_kept_f32.wgsl?raw';
import queriesKeys from '../../shaders/lib/index_queries_keys.wgsl?raw';
import radix from '../../shaders/lib/index_radix.wgsl?raw';
import tensors from '../../shaders/lib/index_tensors.wgsl?raw';
import { lazyShader, type ShaderSpec } from '../device/pipelines.js';
import type { DeviceProfile } from '../device/profile.js';
import type { DispatchOptions, Recorder } from '../device/recorder.js';
import { INDEX_BLOCK } from '../kernels/attention.js';
import { prelude, type StorageFormat, storageLibrary } from '../kernels/shader_text.js';
import { bindWindow, windowWords } from '../kernels/tensor.js';
import {
  type BuiltIndex,
  type BuiltIndexEntry,
  batches,
  dispatchFlops,
  divCeil,
  f32Bits,
  headRange,
  type IndexBytes,
  type IndexHead,
  type IndexLayer,
  layerSizes,
} from './layer.js';
import { type MatrixTileSize, scoreTile } from './score_tile.js';
import { FAN_IN, recordSoftmaxMerge, STATISTICS_BYTES, softmaxMergeShader } from './softmax_merge.js';
import { recordTopK, type TopKList, topKShaders, topKWorkspaceBytes } from './topk.js';

/** A head with the vertical-slash pattern. */
export interface VerticalSlashHead extends IndexHead {
  /** Columns to keep (at most one per key). */
  readonly verticalSize: number;
  /** Diagonals to keep (at least 1, at most one per key). */
  readonly slashSize: number;
}

/** Scores of columns and diagonals in GPU memory. */
export interface VerticalSlashScores {
  /** `[heads, 2, stride]` f32: of each head the column scores, then the diagonal scores. */
  readonly buffer: GPUBuffer;
  readonly stride: number;
}

/** What MInference keeps whatever it scores: the first columns and the nearest diagonals. */
const FORCED = { columns: 30, diagonals: 100 } as const;
/** Query rows that the estimate looks at. */
export const LAST_QUERIES = 64;
/** Tiles of scores, of all rows, and what threads share in shaders/index/estimate_softmax.wgsl; two workgroups for each multiprocessor. */
export const ESTIMATE_TILE: MatrixTileSize = { rows: LAST_QUERIES, scores: 'tiles', stage: 128, memory: 24_576 };
const TILE_KEYS = 128;
/** Tiles of a workgroup that keeps its rows, at most, and workgroups that a GPU with tensor cores has work for. */
const MOST_TILES = 8;
const LEAST_WORKGROUPS = 1024;
const TILE_DIAGONALS = 192;
/** Tiles of the heads that are done at a time, at least, where there are so many. */
const BATCH_TILES = 2048;
const HEADER_WORDS = 4;
/** Maxima of the shares of a tile's rows, at most (shaders/lib/index_estimate_params.wgsl). */
const SHARES_BYTES = LAST_QUERIES * 8 * 4;
const LOG2E = Math.LOG2E;

interface Shaders {
  readonly softmax: ShaderSpec;
  /** Whether a workgroup of it gains from several tiles. */
  readonly keepsRows: boolean;
  readonly merge: ShaderSpec;
  readonly sums: ShaderSpec;
  readonly slashScores: ShaderSpec;
  readonly runs: ShaderSpec;
}

/** Whether what the passes of the estimate hand on is f16: where the products that it comes from are. */
function keepsHalves(profile: DeviceProfile, storage: StorageFormat): boolean {
  return profile.matrix !== undefined && storage === 'f16';
}

/** Bytes of the probabilities of a tile between the passes. */
function probabilityBytes({ profile, storage }: IndexLayer): number {
  return LAST_QUERIES * TILE_KEYS * (keepsHalves(profile, storage) ? 2 : 4);
}

/** Bytes of all that is kept of a tile between the passes. */
function keptTileBytes(layer: IndexLayer): number {
  return probabilityBytes(layer) + SHARES_BYTES;
}

/** Tiles that a workgroup of the first pass does, of so many: one, or as many as leave so many workgroups. */
function tilesOfWorkgroup({ keepsRows }: Shaders, tiles: number, workgroups: number): number {
  return keepsRows ? Math.max(1, Math.min(MOST_TILES, Math.floor(tiles / workgroups))) : 1;
}

function shadersFor(profile: DeviceProfile, headDim: number, storage: StorageFormat): Shaders {
  const tile = scoreTile(profile, headDim, storage, ESTIMATE_TILE);
  const halves = keepsHalves(profile, storage);
  const kept = halves ? keptF16 : keptF32;
  const keptTag = `${halves ? 'f16' : 'f32'} kept in ${2 * tile.parts} shares`;
  return {
    keepsRows: tile.keepsRows,
    softmax: lazyShader(
      {
        label: `vertical-slash estimate: softmax D=${headDim} ${storage} ${tile.tag}, ${keptTag}`,
        bindings: ['uniform', 'uniform', 'read', 'read', 'read', 'write', 'write', 'write'],
      },
      () =>
        [
          tile.directives +
            prelude({
              f16: storage === 'f16',
              constants: { HEAD_DIM: headDim, ...tile.constants, KEPT_PARTS: tile.parts },
            }),
          storageLibrary(tile.storage),
          tile.code,
          tensors,
          fourNumbers,
          queriesKeys,
          estimateParams,
          kept,
          estimate,
          estimateSoftmax,
        ].join('\n'),
    ),
    merge: softmaxMergeShader,
    sums: lazyShader(
      { label: `vertical-slash estimate: sums, ${keptTag}`, bindings: ['uniform', 'read', 'write', 'write', 'read', 'read'] },
      () => [prelude({ constants: { KEPT_PARTS: tile.parts } }), estimateParams, kept, estimateSums].join('\n'),
    ),
    slashScores: { label: 'vertical-slash estimate: diagonals', code: slashScores, bindings: ['uniform', 'read', 'write'] },
    runs: { label: 'vertical-slash runs', code: [radix, slashRuns].join('\n'), bindings: ['read', 'read', 'write'] },
  };
}

/** The shaders of {@link recordVerticalSlashScores}. */
export function verticalSlashScoreShaders(profile: DeviceProfile, headDim: number, storage: StorageFormat): ShaderSpec[] {
  const { softmax, merge, sums, slashScores: diagonals } = shadersFor(profile, headDim, storage);
  return [softmax, merge, sums, diagonals];
}

/** Bytes that {@link recordVerticalSlashScores} takes for this many heads: while it runs, and of its result. */
export function verticalSlashScoreBytes(layer: IndexLayer, heads: number): { readonly peak: number; readonly scores: number } {
  const one = { head: 0, kvHead: 0, verticalSize: 0, slashSize: 1 };
  const s = batchSizes(layer.k.rows, new Array<VerticalSlashHead>(heads).fill(one));
  const kept = heads * keptTileCount(layer, heads) * keptTileBytes(layer);
  return { peak: kept + s.statistics + Math.max(2 * s.groups, s.merged + s.scores + s.diagonals), scores: s.scores };
}

/** Every shader that {@link recordVerticalSlashIndex} may use for this head size and storage format. */
export function verticalSlashIndexShaders(profile: DeviceProfile, headDim: number, storage: StorageFormat): ShaderSpec[] {
  const own = shadersFor(profile, headDim, storage);
  const topk = topKShaders();
  return [own.softmax, own.merge, own.sums, own.slashScores, ...topk.histogram, topk.count, topk.scatter, own.runs];
}

/** Bytes of each buffer for a batch of heads. */
function batchSizes(keys: number, heads: readonly VerticalSlashHead[]) {
  const tiles = divCeil(keys, TILE_KEYS);
  const groups = divCeil(tiles, FAN_IN);
  const rows = heads.length * STATISTICS_BYTES;
  let selected = 0;
  for (const h of heads) selected += columnCount(keys, h) + slashCount(keys, h);
  return {
    tiles,
    statistics: rows * tiles,
    groups: rows * groups,
    merged: rows,
    scores: heads.length * 2 * tiles * TILE_KEYS * 4,
    diagonals: heads.length * tiles * TILE_DIAGONALS * 4,
    selected: selected * 4,
    topk: topKWorkspaceBytes(2 * heads.length, keys),
  };
}

/** Tiles of all heads together whose probabilities may be kept between the passes: what fits half of the workspace. */
function keptTileRoom(layer: IndexLayer): number {
  const { limits } = layer.profile;
  return Math.min(layer.workspaceLimit / 2, limits.maxStorageBufferBindingSize, limits.maxBufferSize) / keptTileBytes(layer);
}

/** Tiles of each head whose probabilities are kept between the passes, one at least. */
function keptTileCount(layer: IndexLayer, heads: number): number {
  return Math.min(divCeil(layer.k.rows, TILE_KEYS), Math.max(1, Math.floor(keptTileRoom(layer) / heads)));
}

/** Workspace of a batch of heads beside the kept probabilities. */
function transientBytes(keys: number, heads: readonly VerticalSlashHead[]): number {
  const s = batchSizes(keys, heads);
  const merging = s.statistics + 2 * s.groups;
  const summing = s.statistics + s.merged + s.scores + s.diagonals;
  const selecting = s.scores + s.selected + s.topk;
  return Math.max(merging, summing, selecting);
}

function headBatches(layer: IndexLayer, heads: readonly VerticalSlashHead[]): VerticalSlashHead[][] {
  const { keys } = layerSizes(layer);
  const limits = layer.profile.limits;
  const binding = Math.min(limits.maxStorageBufferBindingSize, limits.maxBufferSize);
  let perHead = 1;
  let largest = 1;
  for (const head of heads) {
    const s = batchSizes(keys, [head]);
    perHead = Math.max(perHead, transientBytes(keys, [head]));
    largest = Math.max(largest, s.scores, s.diagonals, s.statistics);
  }
  // As many heads as can keep all their probabilities, so that none are computed twice, but enough work for a GPU.
  const tiles = divCeil(keys, TILE_KEYS);
  const keeping = Math.max(Math.floor(keptTileRoom(layer) / tiles), divCeil(BATCH_TILES, tiles));
  return batches(heads, Math.min(layer.workspaceLimit / 2 / perHead, binding / largest, keeping));
}

function columnCount(keys: number, head: VerticalSlashHead): number {
  return Math.min(head.verticalSize, keys);
}

function slashCount(keys: number, head: VerticalSlashHead): number {
  return Math.min(Math.max(head.slashSize, 1), keys);
}

/** Runs are more than 64 diagonals apart, so few fit. */
function runRoom(keys: number, head: VerticalSlashHead): number {
  return Math.min(slashCount(keys, head), divCeil(keys, INDEX_BLOCK + 1));
}

function indexWords(keys: number, head: VerticalSlashHead): number {
  return HEADER_WORDS + columnCount(keys, head) + 3 * runRoom(keys, head);
}

/**
 * Memory of {@link recordVerticalSlashIndex}. Per head of a batch the workspace is 18 bytes per key (plus
 * 49 KiB, 4 bytes per kept column or diagonal, and rounding to whole tiles of 128 keys), and for the kept probabilities 272 bytes
 * per key (144 for f16 tensors in the matrix tier) or half of `workspaceLimit`, whichever is less; the index is
 * `4 + verticalSize + 3 * min(slashSize, ceil(Nk / 65))` words.
 */
export function verticalSlashWorkspaceBytes(layer: IndexLayer, heads: readonly VerticalSlashHead[]): IndexBytes {
  const { keys } = layerSizes(layer);
  let transient = 0;
  for (const batch of headBatches(layer, heads)) {
    const kept = batch.length * keptTileCount(layer, batch.length) * keptTileBytes(layer);
    transient = Math.max(transient, transientBytes(keys, batch) + kept);
  }
  let words = 0;
  for (const head of heads) words += indexWords(keys, head);
  return { transient, index: words * 4 };
}

/**
 * Records the scores of all columns and diagonals (MInference, arXiv 2407.02490, section 3.2): the
 * attention probabilities of the last `R = min(64, N)` query rows, summed along columns
 * (`vertical[j] = sum_r A[r, j]`) and diagonals (`slash[d] = sum_r A[r, p_r - d]`). Forced ones, by default the
 * first 30 columns and the nearest 100 diagonals, get `+inf`.
 *
 * All heads are done at once; {@link recordVerticalSlashIndex} splits them into batches.
 *
 * @param workgroups - that a GPU should have work for, before one of them does several tiles of keys
 */
export function recordVerticalSlashScores(
  rec: Recorder,
  layer: IndexLayer,
  heads: readonly IndexHead[],
  forced: { readonly columns: number; readonly diagonals: number } = FORCED,
  workgroups = LEAST_WORKGROUPS,
): VerticalSlashScores {
  const { rows: n, keys, headDim } = layerSizes(layer);
  const shaders = shadersFor(layer.profile, headDim, layer.storage);
  const sizes = batchSizes(
    keys,
    heads.map((h) => ({ ...h, verticalSize: 0, slashSize: 1 })),
  );
  const { tiles } = sizes;
  const rows = Math.min(LAST_QUERIES, n);
  const firstRow = n - rows;
  const firstPosition = layer.queryOffset + firstRow;
  const [qStart, qEnd] = headRange(heads.map((h) => h.head));
  const [kStart, kEnd] = headRange(heads.map((h) => h.kvHead));
  const q = bindWindow(rec.device, 'q', layer.q, qStart, qEnd, firstRow, n);
  const k = bindWindow(rec.device, 'k', layer.k, kStart, kEnd);
  const headTable = rec.constant(heads.flatMap((h) => [h.head, h.kvHead]));

  const tileFlops = heads.length * 2 * LAST_QUERIES * TILE_KEYS * headDim;
  const tilesAtOnce = Math.max(1, Math.floor(dispatchFlops(layer.profile) / tileFlops));
  const keptTiles = keptTileCount(layer, heads.length);
  const kept = rec.workspace('estimate: kept probabilities', heads.length * keptTiles * probabilityBytes(layer));
  const shares = rec.workspace('estimate: maxima of shares', heads.length * keptTiles * SHARES_BYTES);
  /** Dispatches a pass for tiles from `start` to `end`, so many a workgroup; probabilities of those from `keptFirst` on are kept. */
  const pass = (
    shader: ShaderSpec,
    start: number,
    end: number,
    keptFirst: number,
    tilesEach: number,
    ...buffers: DispatchOptions['bindings']
  ): void => {
    for (let first = start; first < end; first += tilesAtOnce) {
      const count = Math.min(tilesAtOnce, end - first);
      const params = rec.constant([
        rows,
        firstRow,
        firstPosition,
        tiles,
        first,
        f32Bits(layer.scale * LOG2E),
        forced.columns,
        keptTiles,
        keptFirst,
        first + count,
        tilesEach,
        1,
      ]);
      rec.dispatch({
        stage: 'estimate',
        shader,
        bindings: [params, ...buffers],
        workgroups: [divCeil(count, tilesEach), heads.length],
        flops: count * tileFlops,
      });
    }
  };

  // Softmax statistics of every tile, merged until one entry per row is left.
  const tileStatistics = rec.workspace('estimate: tile softmax', sizes.statistics);
  const tensors = rec.constant(windowWords(q, k));
  const softmax = (start: number, end: number, keptFirst: number): void =>
    pass(
      shaders.softmax,
      start,
      end,
      keptFirst,
      tilesOfWorkgroup(shaders, heads.length * (end - start), workgroups),
      tensors,
      q.range,
      k.range,
      headTable,
      tileStatistics,
      kept,
      shares,
    );
  softmax(0, tiles, 0);
  const statistics = recordSoftmaxMerge(rec, tileStatistics, heads.length, tiles);

  const scores = rec.workspace('estimate: scores', sizes.scores);
  const diagonals = rec.workspace('estimate: diagonals', sizes.diagonals);
  for (let first = 0; first < tiles; first += keptTiles) {
    const end = Math.min(first + keptTiles, tiles);
    if (first > 0) softmax(first, end, first);
    pass(shaders.sums, first, end, first, 1, statistics, scores, diagonals, kept, shares);
  }
  rec.release(statistics, tileStatistics, kept, shares);
  rec.dispatch({
    stage: 'estimate',
    shader: shaders.slashScores,
    bindings: [rec.constant([firstPosition, tiles, keys, forced.diagonals]), diagonals, scores],
    workgroups: [divCeil(keys, 256), heads.length],
  });
  rec.release(diagonals);
  return { buffer: scores, stride: tiles * TILE_KEYS };
}

/**
 * Records the building of the vertical-slash index of some heads (MInference, arXiv 2407.02490, section 3.2):
 * scores ({@link recordVerticalSlashScores}), the top `verticalSize` columns and `slashSize` diagonals, and the
 * conversion of the diagonals to runs. The format is that of shaders/lib/vertical_slash_index.wgsl, with
 * `args = [columnRoom, runRoom]`. The host learns nothing of the result: no readback.
 */
export function recordVerticalSlashIndex(rec: Recorder, layer: IndexLayer, heads: readonly VerticalSlashHead[]): BuiltIndex {
  const { keys, headDim } = layerSizes(layer);
  const { runs } = shadersFor(layer.profile, headDim, layer.storage);
  const entries: BuiltIndexEntry[] = [];
  let words = 0;
  for (const head of heads) {
    entries.push({ indexOffset: words, args: [columnCount(keys, head), runRoom(keys, head)] });
    words += indexWords(keys, head);
  }
  const buffer = rec.workspace('vertical-slash index', words * 4);
  let entry = 0;
  for (const batch of headBatches(layer, heads)) {
    const scores = recordVerticalSlashScores(rec, layer, batch);
    const lists: TopKList[] = [];
    const runTable: number[] = [];
    let selectedWords = 0;
    for (const [slot, head] of batch.entries()) {
      const columns = columnCount(keys, head);
      const slashes = slashCount(keys, head);
      const start = 2 * slot * scores.stride;
      const output = selectedWords;
      if (columns > 0) lists.push({ start, count: keys, k: columns, output });
      lists.push({ start: start + scores.stride, count: keys, k: slashes, output: output + columns });
      runTable.push(entries[entry]?.indexOffset ?? 0, columns, output, columns, output + columns, slashes, 0, 0);
      selectedWords += columns + slashes;
      entry += 1;
    }
    const selected = rec.workspace('selected columns and diagonals', selectedWords * 4);
    recordTopK(rec, { scores: scores.buffer, lists, output: selected });
    rec.release(scores.buffer);
    rec.dispatch({
      stage: 'convert',
      shader: runs,
      bindings: [rec.constant(runTable), selected, buffer],
      workgroups: [batch.length],
    });
    rec.release(selected);
  }
  return { buffer, entries, bytes: words * 4 };
}
