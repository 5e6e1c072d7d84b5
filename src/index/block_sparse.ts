import blockScores from '../../shaders/index/block_scores.wgsl?raw';
import blockTopk from '../../shaders/index/block_topk.wgsl?raw';
import meanPool from '../../shaders/index/mean_pool.wgsl?raw';
import means from '../../shaders/lib/block_means.wgsl?raw';
import splitMeans from '../../shaders/lib/block_means_split.wgsl?raw';
import orderedScores from '../../shaders/lib/block_scores_ordered.wgsl?raw';
import rawScores from '../../shaders/lib/block_scores_raw.wgsl?raw';
import radix from '../../shaders/lib/index_radix.wgsl?raw';
import { lazyShader, type ShaderSpec } from '../device/pipelines.js';
import type { DeviceProfile } from '../device/profile.js';
import type { Recorder } from '../device/recorder.js';
import { INDEX_BLOCK } from '../kernels/attention.js';
import { prelude, type StorageFormat, storageLibrary } from '../kernels/shader_text.js';
import { bindWindow, type Tensor, windowWords } from '../kernels/tensor.js';
import {
  type BuiltIndex,
  type BuiltIndexEntry,
  batches,
  dispatchFlops,
  divCeil,
  headRange,
  type IndexBytes,
  type IndexHead,
  type IndexLayer,
  layerSizes,
} from './layer.js';
import { type MatrixTileSize, scoreTile } from './score_tile.js';

/** A head with the block-sparse pattern. */
export interface BlockSparseHead extends IndexHead {
  /** Key blocks to keep per row block, at least 1. */
  readonly topK: number;
}

/** Rows of scores are whole tiles, of 64 rows or, on matrices, of 128. */
const STRIP_ROWS = 128;
export const TILE_KEYS = 128;
/** Widest first dimension of a pooling grid. */
const GRID_X = 32768;
/** Scores with the greatest of each eight, against scores alone. */
const WITH_MAXIMA = 9 / 8;
/** Most row blocks of a strip. */
const MAX_STRIP = 16384;

interface Shaders {
  readonly pool: ShaderSpec;
  readonly scores: ShaderSpec;
  readonly topk: ShaderSpec;
  /** Rows of a tile of scores. */
  readonly tileRows: number;
}

/** Tiles of scores on matrices; the kernel keeps nothing beside them. */
export const BLOCK_SCORE_TILE: MatrixTileSize = { rows: STRIP_ROWS, scores: 'squares', stage: 1 };

/** Head sizes that a product of means takes on matrices, which multiply f16: see shaders/lib/block_means_split.wgsl. */
export const SPLIT_PRODUCTS = 3;

/**
 * The shaders of the estimate; `raw` scores are written as they are, see shaders/index/block_scores.wgsl, and computed from means
 * in f32, which other kernels read too.
 */
export function blockScoreShaders(
  profile: DeviceProfile,
  headDim: number,
  storage: StorageFormat,
  raw: boolean,
): Omit<Shaders, 'topk'> {
  const { matrix: _, ...plain } = profile;
  const tile = scoreTile(raw ? plain : profile, SPLIT_PRODUCTS * headDim, storage, BLOCK_SCORE_TILE);
  const split = tile.onMatrices;
  const write = raw ? rawScores : orderedScores;
  const constants = { HEAD_DIM: (split ? SPLIT_PRODUCTS : 1) * headDim, ...tile.constants };
  return {
    tileRows: tile.rows,
    pool: lazyShader(
      {
        label: `block-sparse estimate: mean pool D=${headDim} ${storage}${split ? ' split' : ''}`,
        bindings: ['uniform', 'read', 'read', 'write'],
      },
      () =>
        [
          prelude({ f16: storage === 'f16', constants: { HEAD_DIM: headDim, SPLIT: split ? 1 : 0 } }),
          storageLibrary(storage),
          meanPool,
        ].join('\n'),
    ),
    scores: lazyShader(
      {
        label: `block-sparse estimate: scores D=${headDim} ${tile.tag}${raw ? ' raw' : ''}`,
        bindings: ['uniform', 'read', 'read', 'read', 'write', ...(raw ? [] : (['write'] as const))],
      },
      () => [tile.directives + prelude({ constants }), tile.code, split ? splitMeans : means, blockScores, write].join('\n'),
    ),
  };
}

function shadersFor(profile: DeviceProfile, headDim: number, storage: StorageFormat): Shaders {
  return {
    ...blockScoreShaders(profile, headDim, storage, false),
    topk: {
      label: 'block-sparse top-k',
      code: [radix, blockTopk].join('\n'),
      bindings: ['uniform', 'read', 'read', 'read', 'write'],
    },
  };
}

/** Every shader that {@link recordBlockSparseIndex} may use for this head size and storage format. */
export function blockSparseIndexShaders(profile: DeviceProfile, headDim: number, storage: StorageFormat): ShaderSpec[] {
  const { pool, scores, topk } = shadersFor(profile, headDim, storage);
  return [pool, scores, topk];
}

/** Row blocks whose scores are in memory at once. */
export interface Strip {
  readonly first: number;
  readonly count: number;
  /** Elements between rows of the score buffer. */
  readonly stride: number;
}

interface Plan {
  readonly qBlocks: number;
  readonly kBlocks: number;
  readonly heads: readonly BlockSparseHead[];
  readonly kvHeads: readonly number[];
  readonly qbarBytes: number;
  readonly kbarBytes: number;
  readonly strips: readonly Strip[];
  readonly scoreBytes: number;
}

/** Rows of a strip, in whole tiles. */
export function paddedRows(strip: Strip): number {
  return divCeil(strip.count, STRIP_ROWS) * STRIP_ROWS;
}

/** Key blocks that the row blocks before `end` can see. */
function visibleBlocks(layer: IndexLayer, end: number): number {
  const rows = Math.min(end * INDEX_BLOCK, layer.q.rows);
  return divCeil(layer.queryOffset + rows, INDEX_BLOCK);
}

/** Cuts the row blocks into strips whose scores take at most `limit` bytes where one tile of rows allows that. */
export function cutStrips(layer: IndexLayer, heads: number, limit: number): Strip[] {
  const qBlocks = divCeil(layer.q.rows, INDEX_BLOCK);
  const stripFlops = dispatchFlops(layer.profile);
  const pairFlops = heads * 2 * layer.q.headDim;
  const strips: Strip[] = [];
  let first = 0;
  while (first < qBlocks) {
    let strip: Strip | undefined;
    for (let count = STRIP_ROWS; count <= MAX_STRIP; count += STRIP_ROWS) {
      const end = Math.min(first + count, qBlocks);
      const stride = divCeil(visibleBlocks(layer, end), TILE_KEYS) * TILE_KEYS;
      const wanted: Strip = { first, count: end - first, stride };
      const pairs = paddedRows(wanted) * stride;
      if (strip && (pairs * heads * 4 > limit || pairs * pairFlops > stripFlops)) break;
      strip = wanted;
      if (end === qBlocks) break;
    }
    if (!strip) break;
    strips.push(strip);
    first += strip.count;
  }
  return strips;
}

function planBatch(layer: IndexLayer, heads: readonly BlockSparseHead[]): Plan {
  const { rows, keys, headDim } = layerSizes(layer);
  const qBlocks = divCeil(rows, INDEX_BLOCK);
  const kBlocks = divCeil(keys, INDEX_BLOCK);
  const kvHeads = [...new Set(heads.map((h) => h.kvHead))];
  const qbarBytes = heads.length * qBlocks * headDim * 4;
  const kbarBytes = kvHeads.length * kBlocks * headDim * 4;
  const limits = layer.profile.limits;
  const budget = Math.min(
    (layer.workspaceLimit - qbarBytes - kbarBytes) / WITH_MAXIMA,
    limits.maxStorageBufferBindingSize,
    limits.maxBufferSize,
  );
  const strips = cutStrips(layer, heads.length, budget);
  const scoreBytes = strips.reduce((most, s) => Math.max(most, heads.length * paddedRows(s) * s.stride * 4), 0);
  return { qBlocks, kBlocks, heads, kvHeads, qbarBytes, kbarBytes, strips, scoreBytes };
}

function headBatches(layer: IndexLayer, heads: readonly BlockSparseHead[]): BlockSparseHead[][] {
  const { rows, keys, headDim } = layerSizes(layer);
  const limits = layer.profile.limits;
  const binding = Math.min(limits.maxStorageBufferBindingSize, limits.maxBufferSize);
  const qbar = divCeil(rows, INDEX_BLOCK) * headDim * 4;
  const kbar = divCeil(keys, INDEX_BLOCK) * headDim * 4;
  // Scores of at least one tile of rows.
  const scores = STRIP_ROWS * divCeil(keys, INDEX_BLOCK * TILE_KEYS) * TILE_KEYS * 4;
  return batches(
    heads,
    Math.min(layer.workspaceLimit / (qbar + kbar + scores * WITH_MAXIMA), binding / Math.max(qbar, kbar, scores)),
  );
}

/** Key blocks kept per row block: at least the diagonal, at most all. */
function keptBlocks(layer: IndexLayer, head: BlockSparseHead): number {
  const forced = layer.queryOffset % INDEX_BLOCK === 0 ? 1 : 2;
  return Math.min(Math.max(head.topK, forced), divCeil(layer.k.rows, INDEX_BLOCK));
}

/**
 * Memory of {@link recordBlockSparseIndex}. With `nb` blocks of 64 rows and `nbk` blocks of 64 keys the index
 * takes `nb * K'` words per head. The workspace of a batch of heads is `4 * D * nb` bytes per head and `4 * D * nbk`
 * per key head for the means, and what is left of `workspaceLimit` for strips of block scores (at least 128
 * rows of 9/8 `nbk` words per head, so one head of 4M keys takes 36 MiB more than its means).
 */
export function blockSparseWorkspaceBytes(layer: IndexLayer, heads: readonly BlockSparseHead[]): IndexBytes {
  let transient = 0;
  for (const batch of headBatches(layer, heads)) {
    const plan = planBatch(layer, batch);
    transient = Math.max(transient, plan.qbarBytes + plan.kbarBytes + plan.scoreBytes * WITH_MAXIMA);
  }
  const qBlocks = divCeil(layer.q.rows, INDEX_BLOCK);
  let words = 0;
  for (const head of heads) words += qBlocks * keptBlocks(layer, head);
  return { transient, index: words * 4 };
}

/** Records the means of blocks of 64 rows of some heads of q or k. */
export function recordMeanPool(
  rec: Recorder,
  shader: ShaderSpec,
  name: string,
  tensor: Tensor,
  heads: readonly number[],
  blocks: number,
  output: GPUBuffer,
): void {
  const [start, end] = headRange(heads);
  const window = bindWindow(rec.device, name, tensor, start, end);
  const params = rec.constant([tensor.rows, blocks, ...windowWords(window)]);
  const x = Math.min(blocks, GRID_X);
  rec.dispatch({
    stage: 'estimate',
    shader,
    bindings: [params, window.range, rec.constant(heads), output],
    workgroups: [x, divCeil(blocks, x), heads.length],
    flops: heads.length * tensor.rows * tensor.headDim,
  });
}

/**
 * Records the building of the block-sparse index of some heads (MInference, arXiv 2407.02490, section 3.2):
 * means of blocks of 64 query rows and 64 keys, the products of all causal pairs of means, and per row
 * block the `K' = max(topK, forced)` best key blocks, those of the diagonal always among them. The format
 * is that of shaders/block_sparse.wgsl, with `args = [K']`; entries past the visible blocks of a row block
 * are left as they are. The host learns nothing of the result: no readback.
 */
export function recordBlockSparseIndex(rec: Recorder, layer: IndexLayer, heads: readonly BlockSparseHead[]): BuiltIndex {
  const { rows, headDim } = layerSizes(layer);
  const shaders = shadersFor(layer.profile, headDim, layer.storage);
  const entries: BuiltIndexEntry[] = [];
  let words = 0;
  for (const head of heads) {
    const keep = keptBlocks(layer, head);
    entries.push({ indexOffset: words, args: [keep] });
    words += divCeil(rows, INDEX_BLOCK) * keep;
  }
  const buffer = rec.workspace('block-sparse index', words * 4);
  let entry = 0;
  for (const batch of headBatches(layer, heads)) {
    const plan = planBatch(layer, batch);
    const { qBlocks, kBlocks, kvHeads } = plan;
    const qbar = rec.workspace('pooled q', plan.qbarBytes);
    const kbar = rec.workspace('pooled k', plan.kbarBytes);
    const scores = rec.workspace('block scores', plan.scoreBytes);
    const maxima = rec.workspace('maxima of block scores', plan.scoreBytes / 8);
    recordMeanPool(
      rec,
      shaders.pool,
      'q',
      layer.q,
      batch.map((h) => h.head),
      qBlocks,
      qbar,
    );
    recordMeanPool(rec, shaders.pool, 'k', layer.k, kvHeads, kBlocks, kbar);
    const headWords: number[] = [];
    for (const [slot, head] of batch.entries()) {
      const built = entries[entry];
      headWords.push(slot, kvHeads.indexOf(head.kvHead), built?.indexOffset ?? 0, built?.args[0] ?? 0);
      entry += 1;
    }
    const headTable = rec.constant(headWords);
    for (const strip of plan.strips) {
      const stripRows = paddedRows(strip);
      const params = rec.constant([strip.first, qBlocks, kBlocks, stripRows, strip.stride, layer.queryOffset, rows]);
      rec.dispatch({
        stage: 'estimate',
        shader: shaders.scores,
        bindings: [params, qbar, kbar, headTable, scores, maxima],
        workgroups: [strip.stride / TILE_KEYS, stripRows / shaders.tileRows, batch.length],
        flops: batch.length * stripRows * strip.stride * 2 * headDim,
      });
      rec.dispatch({
        stage: 'topk',
        shader: shaders.topk,
        bindings: [params, headTable, scores, maxima, buffer],
        workgroups: [strip.count, batch.length],
      });
    }
    rec.release(qbar, kbar, scores, maxima);
  }
  return { buffer, entries, bytes: words * 4 };
}
