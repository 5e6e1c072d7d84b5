import antidiagonalBlocks from '../../shaders/index/antidiagonal_blocks.wgsl?raw';
import antidiagonalSoftmax from '../../shaders/index/antidiagonal_softmax.wgsl?raw';
import cumulativeSelect from '../../shaders/index/cumulative_select.wgsl?raw';
import fourNumbers from '../../shaders/lib/four_numbers.wgsl?raw';
import antidiagonal from '../../shaders/lib/index_antidiagonal.wgsl?raw';
import antidiagonalParams from '../../shaders/lib/index_antidiagonal_params.wgsl?raw';
import queriesKeys from '../../shaders/lib/index_queries_keys.wgsl?raw';
import radix from '../../shaders/lib/index_radix.wgsl?raw';
import tensors from '../../shaders/lib/index_tensors.wgsl?raw';
import { lazyShader, type ShaderSpec } from '../device/pipelines.js';
import type { DeviceProfile } from '../device/profile.js';
import type { Recorder } from '../device/recorder.js';
import { INDEX_BLOCK } from '../kernels/attention.js';
import { prelude, type StorageFormat, storageLibrary } from '../kernels/shader_text.js';
import { bindWindow, startsOn16Bytes, windowWords } from '../kernels/tensor.js';
import { antidiagonalBlock, antidiagonalProductsShader } from './antidiagonal_products.js';
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
import { recordSoftmaxMerge, STATISTICS_ROWS, softmaxMergeShader } from './softmax_merge.js';

/** Sides of the squares whose antidiagonals XAttention adds up. */
export const X_ATTENTION_STRIDES = [8, 16] as const;

/** A head with XAttention's block selection. */
export interface XAttentionHead extends IndexHead {
  readonly stride: (typeof X_ATTENTION_STRIDES)[number];
  /** Share of the estimated attention of each row block that its key blocks must hold, above 0, up to 1. */
  readonly threshold: number;
}

/** Tiles of scores on matrices, and what shaders/index/antidiagonal_softmax.wgsl needs in `stage`. */
export const ANTIDIAGONAL_TILE: MatrixTileSize = { rows: 128, scores: 'squares', stage: 512 };
const TILE_KEYS = 128;
/** How many times more a dispatch may do on matrices in the same time. */
const MATRIX_SPEED = 16;

/** How scores of groups are estimated: their first pass, and how it cuts them up. */
interface Estimate {
  /** Row groups of a workgroup. */
  readonly rows: number;
  /** Key groups of a tile of statistics, and tiles of a workgroup. */
  readonly groups: number;
  readonly tilesTogether: number;
  readonly onMatrices: boolean;
  readonly shader: ShaderSpec;
  /** The grid of the first pass. */
  readonly workgroups: (tiles: number, rowTiles: number, heads: number) => readonly [number, number, number];
}

/** Tiles of scores of dot products of groups of `stride` rows side by side. */
function inTiles(profile: DeviceProfile, headDim: number, storage: StorageFormat, stride: number): Estimate {
  const tile = scoreTile(profile, stride * headDim, storage, ANTIDIAGONAL_TILE);
  const spec = {
    label: `x-attention estimate: softmax D=${headDim} S=${stride} ${storage} ${tile.tag}`,
    bindings: ['uniform', 'uniform', 'read', 'read', 'read', 'write', 'write'],
  } as const;
  const code = (): string => {
    const constants = { HEAD_DIM: stride * headDim, ...tile.constants, STRIDE: stride };
    const head = prelude({ f16: storage === 'f16', constants });
    return [
      tile.directives + head,
      storageLibrary(tile.storage),
      tile.code,
      tensors,
      fourNumbers,
      queriesKeys,
      antidiagonalParams,
      antidiagonal,
      antidiagonalSoftmax,
    ].join('\n');
  };
  return {
    rows: tile.rows,
    groups: TILE_KEYS,
    tilesTogether: 1,
    onMatrices: tile.onMatrices,
    shader: lazyShader(spec, code),
    workgroups: (tiles, rowTiles, heads) => [tiles, rowTiles, heads],
  };
}

/** The same as a product, where a device's matrices can do it. */
function asProduct(profile: DeviceProfile, headDim: number, stride: number): Estimate | undefined {
  const block = antidiagonalBlock(profile);
  if (!block) return undefined;
  const tilesTogether = block.blockN / block.subgroupN;
  return {
    rows: block.blockM,
    groups: block.subgroupN,
    tilesTogether,
    onMatrices: true,
    shader: antidiagonalProductsShader(block, headDim, stride, profile.checked),
    // What runs at a time shares keys, of which there are more.
    workgroups: (tiles, rowTiles, heads) => [rowTiles, tiles / tilesTogether, heads],
  };
}

/** How a layer's scores are estimated. A product moves 16 bytes at a time. */
function estimateFor({ profile, q, k, storage }: IndexLayer, stride: number): Estimate {
  const aligned = [q, k].every(({ offset, headStride, rowStride }) =>
    startsOn16Bytes({ base: offset / 4, headStride: headStride / 4, rowStride: rowStride / 4 }),
  );
  const product = storage === 'f16' && aligned ? asProduct(profile, q.headDim, stride) : undefined;
  return product ?? inTiles(profile, q.headDim, storage, stride);
}

/** The second pass of an estimate. */
function blocksShader(stride: number, { rows, groups }: Estimate): ShaderSpec {
  return lazyShader(
    {
      label: `x-attention estimate: blocks S=${stride} ${rows} ${groups}`,
      bindings: ['uniform', 'read', 'read', 'read', 'write'],
    },
    () => prelude({ constants: { STRIDE: stride, TILE_ROWS: rows, TILE_GROUPS: groups } }) + antidiagonalBlocks,
  );
}

const selectShader: ShaderSpec = {
  label: 'cumulative block selection',
  code: [radix, fourNumbers, cumulativeSelect].join('\n'),
  bindings: ['uniform', 'read', 'read', 'write'],
};

/** Every shader that {@link recordXAttentionIndex} may use for this head size and storage format. */
export function xAttentionIndexShaders(profile: DeviceProfile, headDim: number, storage: StorageFormat): ShaderSpec[] {
  const own = X_ATTENTION_STRIDES.flatMap((stride): ShaderSpec[] => {
    const product = storage === 'f16' ? asProduct(profile, headDim, stride) : undefined;
    const estimates = [...(product ? [product] : []), inTiles(profile, headDim, storage, stride)];
    return estimates.flatMap((e) => [e.shader, blocksShader(stride, e)]);
  });
  return [...own, softmaxMergeShader, selectShader];
}

/** Sizes of the index of one head, in words. */
function indexSizes(layer: IndexLayer) {
  const qBlocks = divCeil(layer.q.rows, INDEX_BLOCK);
  const room = divCeil(layer.queryOffset + layer.q.rows, INDEX_BLOCK);
  return { qBlocks, room, counts: qBlocks * room, words: qBlocks * room + qBlocks };
}

/** Tiles of statistics of all keys up to `end`. */
function tileCount(end: number, stride: number, { groups, tilesTogether }: Estimate): number {
  return divCeil(end, stride * groups * tilesTogether) * tilesTogether;
}

/** Sizes of one head's part of a tile of row groups; all but `tiles` and `rowStride` in bytes. */
function tileSizes(layer: IndexLayer, stride: number, estimate: Estimate) {
  const { rows, groups } = estimate;
  const tiles = tileCount(layer.queryOffset + layer.q.rows, stride, estimate);
  const rowStride = (tiles * groups * stride) / INDEX_BLOCK;
  return {
    tiles,
    rowStride,
    statistics: tiles * rows * 8,
    blockSums: rowStride * rows * 4,
    scores: ((rows * stride) / INDEX_BLOCK) * rowStride * 4,
  };
}

/** Workspace for one head's part of a tile of row groups. */
function tileBytes(layer: IndexLayer, stride: number, estimate: Estimate): number {
  const { statistics, blockSums, scores } = tileSizes(layer, stride, estimate);
  return 3 * statistics + blockSums + scores;
}

/** How many heads' parts of tiles of row groups the workspace and the bindings hold. */
function partsAtOnce(layer: IndexLayer, stride: number, estimate: Estimate): number {
  const { limits } = layer.profile;
  const binding = Math.min(limits.maxStorageBufferBindingSize, limits.maxBufferSize);
  const most = Math.min(
    binding / tileSizes(layer, stride, estimate).blockSums,
    layer.workspaceLimit / tileBytes(layer, stride, estimate),
  );
  return Math.max(1, Math.floor(most));
}

/** Tiles of row groups that are estimated at a time: within the workspace, the bindings and a dispatch's time. */
function tilesAtOnce(layer: IndexLayer, heads: number, stride: number, estimate: Estimate): number {
  const { rows, groups } = estimate;
  const { tiles } = tileSizes(layer, stride, estimate);
  const flops = heads * tiles * rows * groups * 2 * stride * layer.q.headDim;
  const patience = dispatchFlops(layer.profile) * (estimate.onMatrices ? MATRIX_SPEED : 1);
  const most = Math.min(partsAtOnce(layer, stride, estimate) / heads, patience / flops);
  return Math.max(1, Math.min(Math.floor(most), divCeil(layer.q.rows, stride * rows)));
}

/**
 * Memory of {@link recordXAttentionIndex}: per head `nb * nbk + nb` words of index with `nb` blocks of 64 rows and
 * `nbk` visible blocks of 64 keys; the workspace is at most about `workspaceLimit`, or what one tile of row groups takes.
 */
export function xAttentionWorkspaceBytes(layer: IndexLayer, heads: readonly XAttentionHead[]): IndexBytes {
  let transient = 0;
  for (const stride of X_ATTENTION_STRIDES) {
    const estimate = estimateFor(layer, stride);
    const n = Math.min(heads.filter((h) => h.stride === stride).length, partsAtOnce(layer, stride, estimate));
    if (n > 0) transient = Math.max(transient, n * tilesAtOnce(layer, n, stride, estimate) * tileBytes(layer, stride, estimate));
  }
  return { transient, index: heads.length * indexSizes(layer).words * 4 };
}

/**
 * Records the building of XAttention's index of some heads (arXiv 2503.16428): queries and keys are taken in
 * groups of `stride`; the sum of scores along the antidiagonal of each group pair stands for the pair; a
 * softmax over each row of groups; sums over blocks of 64 x 64; and for each row block the fewest key blocks
 * that hold `threshold` of its attention, block 0 and the diagonal always among them. The format is that
 * of shaders/block_sparse.wgsl with counts, `args = [room, start of the counts]`. No readback.
 */
export function recordXAttentionIndex(rec: Recorder, layer: IndexLayer, heads: readonly XAttentionHead[]): BuiltIndex {
  const { qBlocks, room, counts, words } = indexSizes(layer);
  const buffer = rec.workspace('x-attention index', heads.length * words * 4);
  const entries: BuiltIndexEntry[] = heads.map((_, i) => ({ indexOffset: i * words, args: [room, counts] }));
  for (const stride of X_ATTENTION_STRIDES) {
    const estimate = estimateFor(layer, stride);
    const own = heads.flatMap((h, i) => (h.stride === stride ? [{ ...h, indexOffset: i * words }] : []));
    for (const batch of batches(own, partsAtOnce(layer, stride, estimate)))
      recordBatch(rec, layer, stride, estimate, batch, buffer);
  }
  return { buffer, entries, bytes: heads.length * words * 4 };

  function recordBatch(
    r: Recorder,
    l: IndexLayer,
    stride: number,
    estimate: Estimate,
    batch: readonly (XAttentionHead & { readonly indexOffset: number })[],
    index: GPUBuffer,
  ): void {
    const { rows: n, headDim } = layerSizes(l);
    const [qStart, qEnd] = headRange(batch.map((h) => h.head));
    const [kStart, kEnd] = headRange(batch.map((h) => h.kvHead));
    const q = bindWindow(r.device, 'q', l.q, qStart, qEnd);
    const k = bindWindow(r.device, 'k', l.k, kStart, kEnd, 0, l.queryOffset + n);
    const headTable = r.constant(batch.flatMap((h) => [h.head, h.kvHead]));
    const selectTable = r.constant(batch.flatMap((h) => [h.indexOffset, f32Bits(h.threshold), room, counts]));
    const { rowStride } = tileSizes(l, stride, estimate);
    const rowTiles = divCeil(n, stride * estimate.rows);
    const blocks = blocksShader(stride, estimate);
    const rowBlocks = (estimate.rows * stride) / INDEX_BLOCK;
    const atOnce = tilesAtOnce(l, batch.length, stride, estimate);
    for (let first = 0; first < rowTiles; first += atOnce) {
      const count = Math.min(atOnce, rowTiles - first);
      const end = l.queryOffset + Math.min(n, (first + count) * stride * estimate.rows);
      const tiles = tileCount(end, stride, estimate);
      const sizes = [n, l.queryOffset, first * estimate.rows, tiles, count] as const;
      const params = r.constant([...sizes, f32Bits((l.scale / stride) * Math.LOG2E)]);
      const tensors = r.constant(windowWords(q, k));
      const lists = batch.length * count;
      const rows = lists * estimate.rows;
      const partial = r.workspace('x-attention: tile softmax', rows * tiles * 8);
      const blockSums = r.workspace('x-attention: block sums', (rows * tiles * estimate.groups * stride * 4) / INDEX_BLOCK);
      r.dispatch({
        stage: 'estimate',
        shader: estimate.shader,
        bindings: [params, tensors, q.range, k.range, headTable, partial, blockSums],
        workgroups: estimate.workgroups(tiles, count, batch.length),
        flops: rows * tiles * estimate.groups * 2 * stride * headDim,
      });
      const statistics = recordSoftmaxMerge(r, partial, rows / STATISTICS_ROWS, tiles);
      const scores = r.workspace('x-attention: block scores', lists * rowBlocks * rowStride * 4);
      r.dispatch({
        stage: 'estimate',
        shader: blocks,
        bindings: [r.constant([...sizes, rowStride]), partial, blockSums, statistics, scores],
        workgroups: [tiles, count, batch.length],
      });
      r.release(partial, blockSums, statistics);
      const firstBlock = first * rowBlocks;
      r.dispatch({
        stage: 'topk',
        shader: selectShader,
        bindings: [r.constant([firstBlock, count * rowBlocks, rowStride, l.queryOffset, n, stride]), selectTable, scores, index],
        workgroups: [Math.min(count * rowBlocks, qBlocks - firstBlock), batch.length],
      });
      r.release(scores);
    }
  }
}
