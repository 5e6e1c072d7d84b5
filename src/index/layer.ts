import type { DeviceProfile } from '../device/profile.js';
import type { StorageFormat } from '../kernels/shader_text.js';
import type { Tensor } from '../kernels/tensor.js';

/** What the index builders need to know of one attention layer. */
export interface IndexLayer {
  readonly profile: DeviceProfile;
  /** How `q` and `k` are read. */
  readonly storage: StorageFormat;
  /** Queries `[H, N, D]`. */
  readonly q: Tensor;
  /** Keys `[Hkv, Nk, D]`. */
  readonly k: Tensor;
  /** Absolute position of query row 0; `queryOffset + N <= Nk`. */
  readonly queryOffset: number;
  /** Softmax scale. */
  readonly scale: number;
  /** Bytes of transient workspace to aim for. Work is split over heads (and rows) to stay below it where it can be. */
  readonly workspaceLimit: number;
}

/** One head's place in a {@link BuiltIndex}. */
export interface BuiltIndexEntry {
  /** First u32 of the head in the buffer. */
  readonly indexOffset: number;
  /** What the attention kernel's head entry needs as `arg0`, `arg1`, ... */
  readonly args: readonly number[];
}

/** A sparse index in GPU memory, as the attention kernels read it. */
export interface BuiltIndex {
  /** Workspace of the recorder; release it after the kernels that read it are recorded. */
  readonly buffer: GPUBuffer;
  /** One entry per requested head, in order. */
  readonly entries: readonly BuiltIndexEntry[];
  /** Bytes of the buffer that the index takes. */
  readonly bytes: number;
}

/** Memory of an index build in bytes, before the pool rounds each buffer up (by less than a quarter). */
export interface IndexBytes {
  /** Most workspace in use at once, beside the index itself. */
  readonly transient: number;
  /** The index. */
  readonly index: number;
}

/** A head that an index is built for. */
export interface IndexHead {
  /** Query head. */
  readonly head: number;
  /** Key head it reads (grouped-query attention). */
  readonly kvHead: number;
}

/** Sizes of one layer, without its buffers. */
export interface LayerSizes {
  readonly rows: number;
  readonly keys: number;
  readonly headDim: number;
}

/** The sizes of a layer. */
export function layerSizes(layer: IndexLayer): LayerSizes {
  return { rows: layer.q.rows, keys: layer.k.rows, headDim: layer.q.headDim };
}

/** Floating-point operations of one dispatch that keep slow devices below their watchdog's patience. */
export function dispatchFlops(profile: DeviceProfile): number {
  return profile.software ? 1e9 : 2e10;
}

/** Splits `heads` into equal batches, as few as allow at most `most` heads each. */
export function batches<T>(heads: readonly T[], most: number): T[][] {
  const count = Math.ceil(heads.length / Math.max(1, Math.floor(most)));
  const size = Math.ceil(heads.length / Math.max(1, count));
  const result: T[][] = [];
  for (let i = 0; i < heads.length; i += size) result.push(heads.slice(i, i + size));
  return result;
}

/** The smallest range of head numbers that holds all of these. */
export function headRange(numbers: readonly number[]): [start: number, end: number] {
  return [Math.min(...numbers), Math.max(...numbers) + 1];
}

/** `a / b`, rounded up. */
export function divCeil(a: number, b: number): number {
  return Math.ceil(a / b);
}

/** The bits of a number as f32. */
export function f32Bits(x: number): number {
  return new Uint32Array(new Float32Array([x]).buffer)[0] ?? 0;
}
