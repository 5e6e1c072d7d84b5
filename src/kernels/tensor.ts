import type { BufferRange } from '../device/recorder.js';
import { limitExceeded } from '../errors.js';

/** Element type of a tensor in GPU memory. */
export type DType = 'f16' | 'f32';

/** Bytes of one element. */
export const BYTES: Readonly<Record<DType, number>> = { f16: 2, f32: 4 };

/**
 * A 3-D tensor `[heads, rows, headDim]` (or `[rows, heads, headDim]`: see the strides) in a `GPUBuffer`.
 * The last dimension is contiguous; strides and the offset count elements and are multiples of 4.
 */
export interface Tensor {
  readonly buffer: GPUBuffer;
  readonly dtype: DType;
  readonly heads: number;
  readonly rows: number;
  readonly headDim: number;
  /** Elements before head 0, row 0. */
  readonly offset: number;
  readonly headStride: number;
  readonly rowStride: number;
}

/** A bound part of a tensor; `base` and strides count vec4 elements, as the shaders do. */
export interface TensorWindow {
  readonly range: BufferRange;
  /** Where head 0, row 0 lies relative to the range's start, modulo 2^32: it may lie before it. */
  readonly base: number;
  readonly headStride: number;
  readonly rowStride: number;
}

/**
 * The smallest bindable window that holds rows `[rowStart, rowEnd)` of heads `[headStart, headEnd)`.
 * Throws a `limit` error when that exceeds the device's binding size.
 */
export function bindWindow(
  device: GPUDevice,
  name: string,
  tensor: Tensor,
  headStart: number,
  headEnd: number,
  rowStart = 0,
  rowEnd = tensor.rows,
): TensorWindow {
  const bytes = BYTES[tensor.dtype];
  const first = tensor.offset + headStart * tensor.headStride + rowStart * tensor.rowStride;
  const last = tensor.offset + (headEnd - 1) * tensor.headStride + (rowEnd - 1) * tensor.rowStride + tensor.headDim;
  const alignment = device.limits.minStorageBufferOffsetAlignment;
  const offset = Math.floor((first * bytes) / alignment) * alignment;
  const size = Math.ceil((last * bytes - offset) / 4) * 4;
  const limit = device.limits.maxStorageBufferBindingSize;
  if (size > limit)
    throw limitExceeded(
      `${name} (${headEnd - headStart} heads, ${rowEnd - rowStart} rows)`,
      size,
      'maxStorageBufferBindingSize',
      limit,
    );
  return {
    range: { buffer: tensor.buffer, offset, size },
    base: (tensor.offset - offset / bytes) / 4,
    headStride: tensor.headStride / 4,
    rowStride: tensor.rowStride / 4,
  };
}

/** Whether every row of an f16 tensor starts on 16 bytes; base and strides count vec4 elements. */
export function startsOn16Bytes({ base, headStride, rowStride }: Omit<TensorWindow, 'range'>): boolean {
  return [base, headStride, rowStride].every((fours) => fours % 2 === 0);
}

/** What a shader's parameters say of windows, one after the other: base and strides. */
export function windowWords(...windows: readonly TensorWindow[]): number[] {
  return windows.flatMap((w) => [w.base, w.headStride, w.rowStride]);
}

/** Bytes of the window that {@link bindWindow} would bind (an upper bound). */
export function windowBytes(tensor: Tensor, heads: number, rows: number): number {
  return ((heads - 1) * tensor.headStride + (rows - 1) * tensor.rowStride + tensor.headDim) * BYTES[tensor.dtype] + 512;
}

/** The elements of all parts, one after the other. */
export function concatenated(parts: readonly Float32Array[]): Float32Array {
  const out = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}
