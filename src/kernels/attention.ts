import aShape from '../../shaders/a_shape.wgsl?raw';
import blockSparse from '../../shaders/block_sparse.wgsl?raw';
import dense from '../../shaders/dense.wgsl?raw';
import attentionBindings from '../../shaders/lib/attention_bindings.wgsl?raw';
import flashAttention from '../../shaders/lib/flash_attention.wgsl?raw';
import headEntry from '../../shaders/lib/head_entry.wgsl?raw';
import rowReduceSubgroup from '../../shaders/lib/row_reduce_subgroup.wgsl?raw';
import rowReduceWorkgroup from '../../shaders/lib/row_reduce_workgroup.wgsl?raw';
import verticalSlashIndex from '../../shaders/lib/vertical_slash_index.wgsl?raw';
import verticalSlash from '../../shaders/vertical_slash.wgsl?raw';
import { type BindingKind, lazyShader, type ShaderSpec } from '../device/pipelines.js';
import type { DeviceProfile } from '../device/profile.js';
import { MinferenceError } from '../errors.js';
import { prelude, type StorageFormat, storageLibrary } from './shader_text.js';
import type { DType } from './tensor.js';

/** Rows of a block that shares one sparse index, and keys of a block of the block-sparse pattern. */
export const INDEX_BLOCK = 64;

/** Head sizes that the kernels support. */
export const HEAD_DIMS = [32, 64, 80, 96, 128, 256] as const;

/** The sparsity patterns that have a kernel of their own. */
export type AttentionKernel = 'dense' | 'a_shape' | 'vertical_slash' | 'block_sparse';

/** How a portable- or f16-tier attention kernel is tiled; see shaders/lib/flash_attention.wgsl. */
export interface AttentionTiling {
  /** Query rows of a workgroup. */
  readonly blockM: 32 | 64;
  /** Keys of a tile: 4 or 8 times `threadsX`. */
  readonly blockN: 32 | 64 | 128;
  readonly threadsX: 8 | 16;
  readonly threadsY: 4 | 8 | 16;
  /** Rows that neighbouring threads alternate between. */
  readonly laneRows: 1 | 2;
  /** Stage q once, instead of `dChunk` dimensions of it with each chunk of k. */
  readonly wholeQ: boolean;
  /** Dimensions of k staged at a time; divides the head size. */
  readonly dChunk: 16 | 32 | 64;
  /** Keys of v staged at a time; at most 4 times `threadsX`. */
  readonly vChunk: 4 | 8 | 16 | 32 | 64;
  /** How staged values are kept. */
  readonly tile: 'f32' | 'f16';
  /** Reduce rows by subgroup exchange instead of through workgroup memory. */
  readonly subgroups: boolean;
  /** Literal bounds for the inner loops, so that compilers unroll them; software adapters compile that for minutes. */
  readonly unroll: boolean;
}

/** A short name of a tiling, which says all of it. */
export function tilingName(t: AttentionTiling): string {
  const threads = `${t.threadsX}x${t.threadsY}${t.laneRows === 2 ? ' pairs' : ''}`;
  const chunks = `q${t.wholeQ ? '*' : t.dChunk} k${t.dChunk} v${t.vChunk}`;
  return `${t.blockM}x${t.blockN} t${threads} ${chunks} ${t.tile}${t.subgroups ? ' sg' : ''}${t.unroll ? ' unrolled' : ''}`;
}

/** Bytes of workgroup memory that a tiling takes. */
export function workgroupBytes(headDim: number, t: AttentionTiling): number {
  const columns = Math.ceil(headDim / 4 / t.threadsX);
  const q = t.blockM * ((t.wholeQ ? headDim : t.dChunk) / 4 + 1);
  const kv = Math.max(t.blockN * (t.dChunk / 4 + 1), t.vChunk * t.threadsX * columns);
  const p = t.blockM * (t.threadsX + 1);
  const vec4 = t.tile === 'f16' ? 8 : 16;
  return (q + kv + p) * vec4 + t.blockN * 4 + (t.subgroups ? 0 : t.blockM * t.threadsX * 4);
}

/** Vec4 accumulators (scores and outputs) that each thread keeps in registers. */
export function accumulators(headDim: number, t: AttentionTiling): number {
  return (t.blockM / t.threadsY) * (t.blockN / 4 / t.threadsX + Math.ceil(headDim / 4 / t.threadsX));
}

type Shape = readonly [
  blockM: AttentionTiling['blockM'],
  blockN: AttentionTiling['blockN'],
  threadsX: AttentionTiling['threadsX'],
  threadsY: AttentionTiling['threadsY'],
];

/**
 * Tiles and threads for a head size, best first. GPUs want many multiply-adds for each staged value that a thread reads,
 * and registers for several workgroups a multiprocessor (bench/NOTES.md). Software adapters want short shaders.
 */
function tileShapes(headDim: number, software: boolean): readonly Shape[] {
  // 16 threads a row are wasted on heads that have fewer columns.
  const wide: Shape[] = headDim % 64 === 0 ? [[64, 64, 16, headDim > 128 ? 16 : 8]] : [];
  if (software) return wide;
  if (headDim > 128) return [[64, 128, 16, 16], ...wide];
  if (headDim === 128) return [...wide, [64, 128, 16, 8], [64, 64, 8, 16]];
  if (headDim === 64) return [[64, 64, 8, 8], [64, 128, 16, 8], [64, 64, 8, 16], ...wide];
  return headDim === 32
    ? [
        [64, 64, 8, 8],
        [64, 64, 8, 16],
      ]
    : [
        [64, 64, 8, 16],
        [64, 64, 8, 8],
      ];
}

/** Tiles and threads for devices with little workgroup memory. */
function smallShapes(headDim: number): readonly Shape[] {
  return [
    [64, 32, 8, headDim > 128 ? 16 : 8],
    [32, 32, 8, headDim > 128 ? 8 : 4],
  ];
}

// Dimensions of k and keys of v staged at a time. On GPUs small chunks leave room for more workgroups, which counts for
// more than fewer barriers; on software adapters barriers cost most.
const GPU_CHUNKS = [
  [16, 16],
  [32, 32],
  [64, 64],
  [16, 8],
  [16, 4],
] as const;
const SOFTWARE_CHUNKS = [
  [64, 64],
  [64, 32],
  [32, 32],
  [32, 16],
  [16, 32],
  [16, 16],
  [16, 8],
  [16, 4],
] as const;

/**
 * The tilings of a head size that fit a device, best first: {@link chooseTiling} takes the first, benchmarks time all.
 * For each shape and each type of staged values, the chunks that fit, q in chunks too or staged whole.
 */
export function candidateTilings(profile: DeviceProfile, headDim: number, dtype: DType = 'f16'): AttentionTiling[] {
  // f32 tensors are staged as f32. Staging f16 as f32 saves conversions and costs memory.
  const tiles = profile.tier === 'portable' || dtype === 'f32' ? (['f32'] as const) : (['f16', 'f32'] as const);
  const list = (shapes: readonly Shape[]): AttentionTiling[] =>
    shapes.flatMap((shape) => tiles.flatMap((tile) => tilingsOfShape(profile, headDim, shape, tile)));
  const best = list(tileShapes(headDim, profile.software));
  return best.length > 0 ? best : list(smallShapes(headDim));
}

function tilingsOfShape(
  profile: DeviceProfile,
  headDim: number,
  [blockM, blockN, threadsX, threadsY]: Shape,
  tile: AttentionTiling['tile'],
): AttentionTiling[] {
  const { maxComputeWorkgroupStorageSize: memory, maxComputeInvocationsPerWorkgroup: threads } = profile.limits;
  if (threadsX * threadsY > threads) return [];
  const unroll = !profile.software;
  const exchange = profile.tier !== 'portable' && profile.subgroups;
  const laneRows = unroll && (!exchange || profile.subgroupMinSize >= 2 * threadsX) ? 2 : 1;
  const subgroups = exchange && profile.subgroupMinSize >= laneRows * threadsX;
  const fitting = (wholeQ: boolean): AttentionTiling[] =>
    (unroll ? GPU_CHUNKS : SOFTWARE_CHUNKS)
      .map(
        ([dChunk, vChunk]): AttentionTiling => ({
          blockM,
          blockN,
          threadsX,
          threadsY,
          laneRows,
          wholeQ,
          dChunk,
          vChunk,
          tile,
          subgroups,
          unroll,
        }),
      )
      .filter((t) => headDim % t.dChunk === 0 && t.vChunk <= 4 * threadsX && workgroupBytes(headDim, t) <= memory);
  const [whole] = fitting(true);
  const chunked = fitting(false);
  if (unroll) return [...chunked.slice(0, 3), ...(whole ? [whole] : [])];
  const [first] = chunked;
  if (!first) return [];
  const sameChunks = whole?.dChunk === first.dChunk && whole.vChunk === first.vChunk;
  return [...(whole && sameChunks ? [whole] : []), ...(first.dChunk < headDim ? [first] : [])];
}

/**
 * The best tiling that fits the device: 64 rows with 64 or 128 threads where workgroup memory and registers allow,
 * down to 32 x 32 on devices with WebGPU's minimum of 16 KiB.
 *
 * @throws {@link MinferenceError} `limit` when none fits.
 */
export function chooseTiling(profile: DeviceProfile, headDim: number, dtype: DType = 'f16'): AttentionTiling {
  const [best] = candidateTilings(profile, headDim, dtype);
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

/** The attention kernel of a pattern for one head size, storage format and tiling. */
export function attentionShader(
  kernel: AttentionKernel,
  headDim: number,
  storage: StorageFormat,
  tiling: AttentionTiling,
): ShaderSpec {
  const t = tiling;
  const head = prelude({
    f16: storage === 'f16' || t.tile === 'f16',
    subgroups: t.subgroups,
    aliases: { TileVec4: t.tile === 'f16' ? 'vec4<f16>' : 'vec4<f32>' },
    constants: {
      HEAD_DIM: headDim,
      BLOCK_M: t.blockM,
      BLOCK_N: t.blockN,
      TX: t.threadsX,
      TY: t.threadsY,
      LANE_ROWS: t.laneRows,
      Q_CHUNK: t.wholeQ ? headDim : t.dChunk,
      D_CHUNK: t.dChunk,
      V_CHUNK: t.vChunk,
      ...(t.unroll ? { UNIT: 1 } : {}),
    },
  });
  const spec = { label: `${kernel} D=${headDim} ${storage} ${tilingName(t)}`, bindings: ATTENTION_BINDINGS };
  return lazyShader(spec, () =>
    [
      head,
      storageLibrary(storage),
      headEntry,
      attentionBindings,
      t.subgroups ? rowReduceSubgroup : rowReduceWorkgroup,
      t.unroll ? flashAttention : flashAttention.replaceAll('* UNIT', '* params.unit'),
      ...SOURCES[kernel],
    ].join('\n'),
  );
}
