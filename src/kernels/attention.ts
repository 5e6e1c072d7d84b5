import aShape from '../../shaders/a_shape.wgsl?raw';
import blockSparse from '../../shaders/block_sparse.wgsl?raw';
import dense from '../../shaders/dense.wgsl?raw';
import attentionBindings from '../../shaders/lib/attention_bindings.wgsl?raw';
import flashAttention from '../../shaders/lib/flash_attention.wgsl?raw';
import rowReduceSubgroup from '../../shaders/lib/row_reduce_subgroup.wgsl?raw';
import rowReduceWorkgroup from '../../shaders/lib/row_reduce_workgroup.wgsl?raw';
import verticalSlashIndex from '../../shaders/lib/vertical_slash_index.wgsl?raw';
import verticalSlash from '../../shaders/vertical_slash.wgsl?raw';
import type { BindingKind, ShaderSpec } from '../device/pipelines.js';
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
  readonly blockM: 32 | 64;
  readonly threadsX: 8 | 16;
  readonly threadsY: 4 | 8 | 16;
  /** Dimensions of q and k staged at a time. */
  readonly dChunk: 16 | 32 | 64;
  /** Keys of v staged at a time. */
  readonly vChunk: 4 | 8 | 16 | 32 | 64;
  /** How staged values are kept. */
  readonly tile: 'f32' | 'f16';
  /** Reduce rows by subgroup exchange instead of through workgroup memory. */
  readonly subgroups: boolean;
}

/** Bytes of workgroup memory that a tiling takes. */
export function workgroupBytes(headDim: number, t: AttentionTiling): number {
  const blockN = 4 * t.threadsX;
  const columns = Math.ceil(headDim / 4 / t.threadsX);
  const stage = Math.max((t.blockM + blockN) * (t.dChunk / 4 + 1), t.vChunk * t.threadsX * columns);
  const vec4 = t.tile === 'f16' ? 8 : 16;
  const p = t.blockM * (t.threadsX + 1);
  return (stage + p) * vec4 + blockN * 4 + (t.subgroups ? 0 : t.blockM * t.threadsX * 4);
}

/** Vec4 accumulators that each thread keeps in registers. */
export function accumulators(headDim: number, t: AttentionTiling): number {
  return (t.blockM / t.threadsY) * (1 + Math.ceil(headDim / 4 / t.threadsX));
}

/**
 * The largest tiling that fits the device: 64 x 64 with 128 threads where workgroup memory and registers
 * allow, down to 32 x 32 on devices with WebGPU's minimum of 16 KiB. f32 tensors are staged as f32 in every tier.
 */
export function chooseTiling(profile: DeviceProfile, headDim: number, dtype: DType = 'f16'): AttentionTiling {
  const tile = profile.tier === 'portable' || dtype === 'f32' ? 'f32' : 'f16';
  const subgroups = (width: number): boolean =>
    profile.tier !== 'portable' && profile.subgroups && profile.subgroupMinSize >= width;
  const candidates: AttentionTiling[] = [];
  for (const [blockM, threadsX, threadsY] of [
    [64, 16, headDim > 128 ? 16 : 8],
    [64, 8, headDim > 128 ? 16 : 8],
    [32, 8, headDim > 128 ? 8 : 4],
  ] as const) {
    // A wide row of threads is wasted on heads that have fewer columns.
    if (threadsX === 16 && headDim % 64 !== 0) continue;
    for (const [dChunk, vChunk] of [
      [32, 32],
      [32, 16],
      [16, 16],
      [16, 8],
      [16, 4],
    ] as const) {
      candidates.push({ blockM, threadsX, threadsY, dChunk, vChunk, tile, subgroups: subgroups(threadsX) });
    }
  }
  const { maxComputeWorkgroupStorageSize: memory, maxComputeInvocationsPerWorkgroup: threads } = profile.limits;
  const fit = candidates.find((t) => workgroupBytes(headDim, t) <= memory && t.threadsX * t.threadsY <= threads);
  if (!fit) {
    throw new MinferenceError('limit', `no attention tiling for head size ${headDim} fits ${memory} bytes of workgroup memory`, {
      argument: 'headDim',
      value: headDim,
      allowed: 'a device with maxComputeWorkgroupStorageSize of at least 16384',
    });
  }
  return fit;
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
      BLOCK_N: 4 * t.threadsX,
      TX: t.threadsX,
      TY: t.threadsY,
      D_CHUNK: t.dChunk,
      V_CHUNK: t.vChunk,
    },
  });
  const tag = `${t.blockM}x${4 * t.threadsX} t${t.threadsY} d${t.dChunk} v${t.vChunk} ${t.tile}${t.subgroups ? ' sg' : ''}`;
  return {
    label: `${kernel} D=${headDim} ${storage} ${tag}`,
    code: [
      head,
      storageLibrary(storage),
      attentionBindings,
      t.subgroups ? rowReduceSubgroup : rowReduceWorkgroup,
      flashAttention,
      ...SOURCES[kernel],
    ].join('\n'),
    bindings: ATTENTION_BINDINGS,
  };
}
