import antidiagonalBlocks from '../../shaders/index/antidiagonal_blocks.wgsl?raw';
import antidiagonalSoftmax from '../../shaders/index/antidiagonal_softmax.wgsl?raw';
import cumulativeSelect from '../../shaders/index/cumulative_select.wgsl?raw';
import mergeSoftmax from '../../shaders/index/merge_softmax.wgsl?raw';
import antidiagonal from '../../shaders/lib/index_antidiagonal.wgsl?raw';
import radix from '../../shaders/lib/index_radix.wgsl?raw';
import type { BindingKind, ShaderSpec } from '../device/pipelines.js';
import type { DeviceProfile } from '../device/profile.js';
import type { Recorder } from '../device/recorder.js';
import { INDEX_BLOCK } from '../kernels/attention.js';
import { prelude, type StorageFormat, storageLibrary } from '../kernels/shader_text.js';
import { bindWindow } from '../kernels/tensor.js';
import {
  type BuiltIndex,
  type BuiltIndexEntry,
  dispatchFlops,
  divCeil,
  f32Bits,
  headRange,
  type IndexBytes,
  type IndexHead,
  type IndexLayer,
  layerSizes,
  table,
  uniform,
} from './layer.js';
import { scoreTile } from './score_tile.js';

/** Sides of the squares whose antidiagonals XAttention adds up. */
export const X_ATTENTION_STRIDES = [8, 16] as const;

/** A head with XAttention's block selection. */
export interface XAttentionHead extends IndexHead {
  readonly stride: (typeof X_ATTENTION_STRIDES)[number];
  /** Share of the estimated attention of each row block that its key blocks must hold, above 0, up to 1. */
  readonly threshold: number;
}

const TILE_ROWS = 64;
const TILE_KEYS = 128;
/** Tiles whose softmax statistics one workgroup merges. */
const FAN_IN = 128;

interface Shaders {
  readonly softmax: ShaderSpec;
  readonly merge: ShaderSpec;
  readonly blocks: ShaderSpec;
  readonly select: ShaderSpec;
}

function shadersFor(profile: DeviceProfile, headDim: number, storage: StorageFormat, stride: number): Shaders {
  const tile = scoreTile(profile, stride * headDim, storage);
  const head = [
    tile.directives +
      prelude({ f16: storage === 'f16', constants: { HEAD_DIM: stride * headDim, D_CHUNK: tile.dChunk, STRIDE: stride } }),
    storageLibrary(storage),
    tile.code,
    antidiagonal,
  ];
  const bindings: readonly BindingKind[] = ['uniform', 'read', 'read', 'read'];
  const tag = `D=${headDim} S=${stride} ${storage} ${tile.tag}`;
  return {
    softmax: {
      label: `x-attention estimate: softmax ${tag}`,
      code: [...head, antidiagonalSoftmax].join('\n'),
      bindings: [...bindings, 'write'],
    },
    merge: { label: 'vertical-slash estimate: merge', code: mergeSoftmax, bindings: ['uniform', 'read', 'write'] },
    blocks: {
      label: `x-attention estimate: blocks ${tag}`,
      code: [...head, antidiagonalBlocks].join('\n'),
      bindings: [...bindings, 'read', 'write'],
    },
    select: {
      label: 'cumulative block selection',
      code: [radix, cumulativeSelect].join('\n'),
      bindings: ['uniform', 'read', 'read', 'write'],
    },
  };
}

/** Every shader that {@link recordXAttentionIndex} may use for this head size and storage format. */
export function xAttentionIndexShaders(profile: DeviceProfile, headDim: number, storage: StorageFormat): ShaderSpec[] {
  return X_ATTENTION_STRIDES.flatMap((stride) => Object.values(shadersFor(profile, headDim, storage, stride)) as ShaderSpec[]);
}

/** Sizes of the index of one head, in words. */
function indexSizes(layer: IndexLayer) {
  const qBlocks = divCeil(layer.q.rows, INDEX_BLOCK);
  const room = divCeil(layer.queryOffset + layer.q.rows, INDEX_BLOCK);
  return { qBlocks, room, counts: qBlocks * room, words: qBlocks * room + qBlocks };
}

/** Bytes that one head takes per tile of 64 row groups. */
function tileBytes(layer: IndexLayer, stride: number) {
  const tiles = divCeil(layer.queryOffset + layer.q.rows, stride * TILE_KEYS);
  const rowStride = (tiles * TILE_KEYS * stride) / INDEX_BLOCK;
  return { tiles, rowStride, statistics: tiles * TILE_ROWS * 8, scores: stride * rowStride * 4 };
}

/** Tiles of row groups that are estimated at a time: within the workspace, the bindings and a dispatch's time. */
function tilesAtOnce(layer: IndexLayer, heads: number, stride: number): number {
  const { limits } = layer.profile;
  const { tiles, statistics, scores } = tileBytes(layer, stride);
  const binding = Math.min(limits.maxStorageBufferBindingSize, limits.maxBufferSize, layer.workspaceLimit / 3);
  const flops = heads * tiles * TILE_ROWS * TILE_KEYS * 2 * stride * layer.q.headDim;
  const most = Math.min(binding / (heads * Math.max(statistics, scores)), dispatchFlops(layer.profile) / flops);
  return Math.max(1, Math.min(Math.floor(most), divCeil(layer.q.rows, stride * TILE_ROWS)));
}

/**
 * Memory of {@link recordXAttentionIndex}: per head `nb * nbk + nb` words of index with `nb` blocks of 64 rows and
 * `nbk` visible blocks of 64 keys; the workspace is at most about `workspaceLimit`, or what 64 row groups take.
 */
export function xAttentionWorkspaceBytes(layer: IndexLayer, heads: readonly XAttentionHead[]): IndexBytes {
  let transient = 0;
  for (const stride of X_ATTENTION_STRIDES) {
    const n = heads.filter((h) => h.stride === stride).length;
    const { statistics, scores } = tileBytes(layer, stride);
    if (n > 0) transient = Math.max(transient, n * tilesAtOnce(layer, n, stride) * (2 * statistics + scores));
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
    const slots = heads.flatMap((h, i) => (h.stride === stride ? [i] : []));
    if (slots.length > 0)
      recordStride(
        rec,
        layer,
        stride,
        slots.map((i) => ({ ...(heads[i] as XAttentionHead), indexOffset: i * words })),
        buffer,
      );
  }
  return { buffer, entries, bytes: heads.length * words * 4 };

  function recordStride(
    r: Recorder,
    l: IndexLayer,
    stride: number,
    batch: readonly (XAttentionHead & { readonly indexOffset: number })[],
    index: GPUBuffer,
  ): void {
    const { rows: n, headDim } = layerSizes(l);
    const shaders = shadersFor(l.profile, headDim, l.storage, stride);
    const [qStart, qEnd] = headRange(batch.map((h) => h.head));
    const [kStart, kEnd] = headRange(batch.map((h) => h.kvHead));
    const q = bindWindow(r.device, 'q', l.q, qStart, qEnd);
    const k = bindWindow(r.device, 'k', l.k, kStart, kEnd, 0, l.queryOffset + n);
    const headTable = table(
      r,
      'x-attention heads',
      batch.flatMap((h) => [h.head, h.kvHead]),
    );
    const selectTable = table(
      r,
      'x-attention selection',
      batch.flatMap((h) => [h.indexOffset, f32Bits(h.threshold), room, counts]),
    );
    const { rowStride } = tileBytes(l, stride);
    const rowTiles = divCeil(n, stride * TILE_ROWS);
    const atOnce = tilesAtOnce(l, batch.length, stride);
    for (let first = 0; first < rowTiles; first += atOnce) {
      const count = Math.min(atOnce, rowTiles - first);
      const end = l.queryOffset + Math.min(n, (first + count) * stride * TILE_ROWS);
      const tiles = divCeil(end, stride * TILE_KEYS);
      const params = uniform(r, 'x-attention parameters', [
        n,
        l.queryOffset,
        first * TILE_ROWS,
        tiles,
        count,
        rowStride,
        f32Bits((l.scale / stride) * Math.LOG2E),
        q.base,
        q.headStride,
        q.rowStride,
        k.base,
        k.headStride,
        k.rowStride,
      ]);
      const lists = batch.length * count;
      const flops = lists * tiles * TILE_ROWS * TILE_KEYS * 2 * stride * headDim;
      let statistics = r.workspace('x-attention: tile softmax', lists * tiles * TILE_ROWS * 8);
      const estimate = { stage: 'estimate', workgroups: [tiles, count, batch.length], flops } as const;
      r.dispatch({ ...estimate, shader: shaders.softmax, bindings: [params, q.range, k.range, headTable, statistics] });
      let parts = tiles;
      do {
        const groups = divCeil(parts, FAN_IN);
        const merged = r.workspace('x-attention: merged softmax', lists * groups * TILE_ROWS * 8);
        r.dispatch({
          stage: 'estimate',
          shader: shaders.merge,
          bindings: [uniform(r, 'merge parameters', [parts, groups]), statistics, merged],
          workgroups: [groups, lists],
        });
        r.release(statistics);
        statistics = merged;
        parts = groups;
      } while (parts > 1);
      const scores = r.workspace('x-attention: block scores', lists * stride * rowStride * 4);
      r.dispatch({ ...estimate, shader: shaders.blocks, bindings: [params, q.range, k.range, headTable, statistics, scores] });
      r.release(statistics);
      const firstBlock = first * stride;
      r.dispatch({
        stage: 'topk',
        shader: shaders.select,
        bindings: [
          uniform(r, 'selection parameters', [firstBlock, count * stride, rowStride, l.queryOffset, n, stride]),
          selectTable,
          scores,
          index,
        ],
        workgroups: [Math.min(count * stride, qBlocks - firstBlock), batch.length],
      });
      r.release(scores);
    }
  }
}
