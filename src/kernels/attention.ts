import aShape from '../../shaders/a_shape.wgsl?raw';
import blockSparse from '../../shaders/block_sparse.wgsl?raw';
import dense from '../../shaders/dense.wgsl?raw';
import attentionBindings from '../../shaders/lib/attention_bindings.wgsl?raw';
import flashAttention from '../../shaders/lib/flash_attention.wgsl?raw';
import headEntry from '../../shaders/lib/head_entry.wgsl?raw';
import rowReduceSubgroup from '../../shaders/lib/row_reduce_subgroup.wgsl?raw';
import rowReduceWorkgroup from '../../shaders/lib/row_reduce_workgroup.wgsl?raw';
import rowsOfGroup from '../../shaders/lib/rows_of_group.wgsl?raw';
import rowsOfHead from '../../shaders/lib/rows_of_head.wgsl?raw';
import stagePatch from '../../shaders/lib/stage_patch.wgsl?raw';
import verticalSlashIndex from '../../shaders/lib/vertical_slash_index.wgsl?raw';
import verticalSlash from '../../shaders/vertical_slash.wgsl?raw';
import { type BindingKind, lazyShader, type ShaderSpec } from '../device/pipelines.js';
import type { DeviceProfile } from '../device/profile.js';
import { MinferenceError } from '../errors.js';
import { prelude, type StorageFormat, storageLibrary, withUnit } from './shader_text.js';
import { type TensorWindow, windowWords } from './tensor.js';

/** Rows of a block that shares one sparse index, and keys of a block of the block-sparse pattern. */
export const INDEX_BLOCK = 64;

/** Head sizes that the kernels support. */
export const HEAD_DIMS = [32, 64, 80, 96, 128, 256] as const;

/** The sparsity patterns that have a kernel of their own. */
export type AttentionKernel = 'dense' | 'a_shape' | 'vertical_slash' | 'block_sparse';

/** How a portable- or f16-tier attention kernel is tiled; see shaders/lib/flash_attention.wgsl. */
export interface AttentionTiling {
  /** Query rows of a workgroup. */
  readonly blockM: 64;
  /** Keys of a tile: a multiple of four times `threadsX`, and at most as many as threads. */
  readonly blockN: 64 | 128;
  readonly threadsX: 8 | 16;
  readonly threadsY: 8 | 16;
  /** Rows that neighbouring threads alternate between. */
  readonly laneRows: 1 | 2;
  /** Stage q once, instead of `dChunk` dimensions of it with each chunk of k. */
  readonly wholeQ: boolean;
  /** Dimensions of k staged at a time; divides the head size. */
  readonly dChunk: 16 | 32;
  /** Keys of p staged at a time: a multiple of `threadsX` that divides `blockN`. */
  readonly pChunk: 8 | 16 | 32;
  /** Keys of v staged at a time; divides `pChunk`. */
  readonly vChunk: 4 | 8 | 16 | 32;
  /** Reduce rows by subgroup exchange instead of through workgroup memory. */
  readonly subgroups: boolean;
  /** Query heads whose rows take turns in a workgroup: all that share a key/value head (1). Dense only. */
  readonly group?: number;
  /** Literal bounds for the inner loops, so that compilers unroll them; software adapters compile that for minutes. */
  readonly unroll: boolean;
}

/** A short name of a tiling, which says all of it. */
export function tilingName(t: AttentionTiling): string {
  const threads = `${t.threadsX}x${t.threadsY}${t.laneRows === 2 ? ' pairs' : ''}`;
  const chunks = `q${t.wholeQ ? '*' : t.dChunk} k${t.dChunk} p${t.pChunk} v${t.vChunk}`;
  return `${t.blockM}x${t.blockN} t${threads} ${chunks}${t.subgroups ? ' sg' : ''}${t.unroll ? ' unrolled' : ''}${(t.group ?? 1) > 1 ? ` g${t.group}` : ''}`;
}

/** Bytes of workgroup memory that a tiling takes. */
export function workgroupBytes(headDim: number, t: AttentionTiling): number {
  const groups = t.dChunk / 4;
  const pad = 32 / Math.min(groups, 8);
  const v = t.vChunk * t.threadsX * Math.ceil(headDim / 4 / t.threadsX) * 4;
  const q = ((t.wholeQ ? headDim : t.dChunk) / 4) * (4 * t.blockM + pad);
  const k = groups * (4 * t.blockN + pad);
  const pv = t.pChunk * (t.blockM + 8) + v;
  const floats = t.wholeQ ? q + Math.max(k, pv) : Math.max(q + k, pv);
  return 4 * (floats + t.blockN + (t.subgroups ? 0 : t.blockM * t.threadsX));
}

/** `[blockN, threadsX, threadsY, dChunk, pChunk, vChunk]` of a tiling with 64 rows. */
type TilingNumbers = readonly [
  blockN: AttentionTiling['blockN'],
  threadsX: AttentionTiling['threadsX'],
  threadsY: AttentionTiling['threadsY'],
  dChunk: AttentionTiling['dChunk'],
  pChunk: AttentionTiling['pChunk'],
  vChunk: AttentionTiling['vChunk'],
];

/**
 * What GPUs take for a head size, the fastest on an H100 first (bench/NOTES.md): small chunks, which leave room for several workgroups
 * a multiprocessor. The last one needs no more than any device has, 16 KiB and 256 threads, also without subgroups.
 */
function gpuTilings(headDim: number): readonly TilingNumbers[] {
  if (headDim > 128) {
    return [
      [64, 16, 16, 32, 16, 8],
      [128, 16, 16, 16, 16, 8],
      [64, 16, 16, 16, 16, 8],
      [64, 16, 16, 16, 16, 4],
    ];
  }
  if (headDim === 128) {
    return [
      [128, 16, 16, 16, 16, 16],
      [64, 16, 16, 16, 16, 16],
      [64, 8, 16, 16, 16, 16],
    ];
  }
  // 16 threads a row are wasted on heads that have fewer columns.
  if (headDim === 64) {
    return [
      [64, 8, 16, 16, 16, 16],
      [64, 16, 8, 16, 32, 32],
      [128, 8, 16, 16, 16, 16],
      [64, 8, 16, 16, 8, 8],
    ];
  }
  return [
    [64, 8, 16, 32, 16, 16],
    [64, 8, 16, 16, 16, 16],
    [128, 8, 16, 16, 16, 16],
    [64, 8, 16, 16, 8, 8],
  ];
}

/** What software adapters take, best first: not more sums a thread for large heads, which would compile for long. */
function softwareTilings(headDim: number): readonly TilingNumbers[] {
  const threadsY = headDim > 64 ? 16 : 8;
  return [
    [64, 8, threadsY, 16, 16, 16],
    [64, 8, threadsY, 16, 16, 8],
    [64, 8, threadsY, 16, 8, 4],
  ];
}

/**
 * The tilings of a head size that fit a device, best first: {@link chooseTiling} takes the first, benchmarks time all.
 */
export function candidateTilings(profile: DeviceProfile, headDim: number): AttentionTiling[] {
  const { maxComputeWorkgroupStorageSize: memory, maxComputeInvocationsPerWorkgroup: threads } = profile.limits;
  const unroll = !profile.software;
  const exchange = profile.tier !== 'portable' && profile.subgroups;
  const tilings = (unroll ? gpuTilings : softwareTilings)(headDim).flatMap(
    ([blockN, threadsX, threadsY, dChunk, pChunk, vChunk]): AttentionTiling[] => {
      const laneRows = unroll && (!exchange || profile.subgroupMinSize >= 2 * threadsX) ? 2 : 1;
      const subgroups = exchange && profile.subgroupMinSize >= laneRows * threadsX;
      const t = { blockM: 64, blockN, threadsX, threadsY, laneRows, dChunk, pChunk, vChunk, subgroups, unroll } as const;
      return unroll ? [{ ...t, wholeQ: false }] : [true, false].map((wholeQ) => ({ ...t, wholeQ }));
    },
  );
  return tilings.filter(
    (t) =>
      headDim % t.dChunk === 0 &&
      t.threadsX * t.threadsY <= threads &&
      t.threadsX * t.threadsY >= t.blockN &&
      workgroupBytes(headDim, t) <= memory,
  );
}

/**
 * The best tiling that fits the device.
 *
 * @throws {@link MinferenceError} `limit` when none fits.
 */
export function chooseTiling(profile: DeviceProfile, headDim: number): AttentionTiling {
  const [best] = candidateTilings(profile, headDim);
  if (!best) {
    const memory = profile.limits.maxComputeWorkgroupStorageSize;
    throw new MinferenceError('limit', `no attention tiling for head size ${headDim} fits ${memory} bytes of workgroup memory`, {
      argument: 'headDim',
      value: headDim,
      allowed: 'a device with maxComputeWorkgroupStorageSize of at least 16384',
    });
  }
  return best;
}

const SOURCES: Readonly<Record<AttentionKernel, readonly string[]>> = {
  dense: [dense],
  a_shape: [aShape],
  vertical_slash: [verticalSlashIndex, verticalSlash],
  block_sparse: [blockSparse],
};

/** Bindings of every attention kernel, as in shaders/lib/attention_bindings.wgsl. */
export const ATTENTION_BINDINGS: readonly BindingKind[] = ['uniform', 'read', 'read', 'read', 'write', 'write', 'read', 'read'];

/** What a dispatch of an attention kernel is told, as in shaders/lib/attention_bindings.wgsl. */
export interface AttentionParams {
  readonly queries: number;
  readonly keys: number;
  readonly queryOffset: number;
  /** Softmax scale. */
  readonly scale: number;
  /** The dispatch does the tiles of rows before this one, the last one first. */
  readonly rowTileEnd: number;
  /** Whether heads vary before tiles of rows: see {@link headsFirst}. */
  readonly headsFirst: boolean;
  readonly writesLse: boolean;
  /** q, k, v and o. */
  readonly windows: readonly [TensorWindow, TensorWindow, TensorWindow, TensorWindow];
  /** Where the log-sum-exp of head 0, row 0 lies in its binding, and f32 elements between heads. */
  readonly lse: { readonly base: number; readonly headStride: number };
  /** Workgroups (along z) that a row's tiles are dealt out among, and the heads that each one's output and log-sum-exp take. */
  readonly split?: { readonly count: number; readonly heads: number };
}

/** Keys and values that the second-level cache of a large GPU keeps more or less. */
const CACHED_BYTES = 64 * 2 ** 20;

/**
 * Whether the workgroups of a dispatch, in the order in which a GPU begins them, should be those of all heads for one tile of rows before
 * the next tile, not all tiles of a head first. With the heavy rows of all heads before the light ones of any, the last to finish are
 * light: that counts where a device is filled only a few times over. But keys and values of all heads are then read at the same time,
 * and should fit a cache (bench/NOTES.md).
 *
 * @param fills workgroups that fill the device
 * @param bytes of the keys and values of all heads
 */
export function headsFirst(workgroups: number, fills: number, bytes: number): boolean {
  return workgroups < 16 * fills && bytes <= CACHED_BYTES;
}

/** The workgroups of a dispatch in either order. */
export function attentionGrid(tiles: number, heads: number, headsFirst: boolean, splits = 1): [number, number, number] {
  return headsFirst ? [heads, tiles, splits] : [tiles, heads, splits];
}

/** The words of {@link AttentionParams}; numbers are taken modulo 2^32. */
export function attentionParams(p: AttentionParams): Uint32Array<ArrayBuffer> {
  const words = new Uint32Array([
    p.queries,
    p.keys,
    p.queryOffset,
    0,
    p.rowTileEnd,
    p.headsFirst ? 1 : 0,
    p.writesLse ? 1 : 0,
    ...windowWords(...p.windows),
    p.lse.base,
    p.lse.headStride,
    p.split?.count ?? 1,
    p.split?.heads ?? 0,
    1,
  ]);
  new Float32Array(words.buffer)[3] = p.scale * Math.LOG2E;
  return words;
}

/** Where the rows of a workgroup lie, of one head or of a group of heads that take turns; and the constants for that. */
export function rowLibrary(group = 1): { readonly code: string; readonly constants: Readonly<Record<string, number>> } {
  return group > 1 ? { code: rowsOfGroup, constants: { GROUP: group } } : { code: rowsOfHead, constants: {} };
}

/** The attention kernel of a pattern for one head size, storage format and tiling. */
export function attentionShader(
  kernel: AttentionKernel,
  headDim: number,
  storage: StorageFormat,
  tiling: AttentionTiling,
): ShaderSpec {
  const t = tiling;
  const rows = rowLibrary(t.group);
  const head = prelude({
    f16: storage === 'f16',
    subgroups: t.subgroups,
    constants: {
      HEAD_DIM: headDim,
      ...rows.constants,
      BLOCK_M: t.blockM,
      BLOCK_N: t.blockN,
      TX: t.threadsX,
      TY: t.threadsY,
      LANE_ROWS: t.laneRows,
      Q_CHUNK: t.wholeQ ? headDim : t.dChunk,
      D_CHUNK: t.dChunk,
      P_CHUNK: t.pChunk,
      V_CHUNK: t.vChunk,
    },
  });
  const spec = { label: `${kernel} D=${headDim} ${storage} ${tilingName(t)}`, bindings: ATTENTION_BINDINGS };
  return lazyShader(spec, () =>
    [
      head,
      storageLibrary(storage),
      headEntry,
      attentionBindings,
      rows.code,
      t.subgroups ? rowReduceSubgroup : rowReduceWorkgroup,
      stagePatch,
      withUnit(flashAttention, t.unroll ? undefined : 'params.unit'),
      ...SOURCES[kernel],
    ].join('\n'),
  );
}
