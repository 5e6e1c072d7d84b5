import { Float16Array, getFloat16 } from '@petamoriken/float16';
import { PipelineCache } from '../../src/device/pipelines.js';
import { BufferPool } from '../../src/device/pool.js';
import { Recorder } from '../../src/device/recorder.js';
import type { DType, Tensor } from '../../src/kernels/tensor.js';
import type { AttentionInput, Numbers } from '../../src/reference/oracle.js';
import { encodeSteps } from '../../src/scheduler/submit.js';
import { assert } from './context.js';

const STORAGE = 0x80;
const COPY_SRC = 0x04;
const COPY_DST = 0x08;
const MAP_READ = 0x01;

/** Quiet NaNs with a recognisable payload, per element type. */
const POISON: Readonly<Record<DType, number>> = { f32: 0x7fc01234, f16: 0x7e12 };

/** How the elements of a tensor lie in its buffer. */
export interface Layout {
  /** `hnd`: `[heads, rows, headDim]`; `nhd`: `[rows, heads, headDim]`. */
  readonly order: 'hnd' | 'nhd';
  /** Elements before the first one; a multiple of 4. */
  readonly offset: number;
  /** Unused elements after each row; a multiple of 4. */
  readonly padding: number;
}

export const PLAIN: Layout = { order: 'hnd', offset: 0, padding: 0 };

export interface TensorSize {
  readonly heads: number;
  readonly rows: number;
  readonly headDim: number;
}

/** Values rounded to the nearest f16. */
export function roundToF16(values: Numbers): Float32Array<ArrayBuffer> {
  return new Float32Array(new Float16Array(values));
}

/** The call with q, k and v rounded to f16: what a kernel that stores or stages f16 really sees. */
export function roundInput(input: AttentionInput): AttentionInput {
  return { ...input, q: roundToF16(input.q), k: roundToF16(input.k), v: roundToF16(input.v) };
}

/**
 * A tensor that holds `values` (`[heads, rows, headDim]`), or NaN without them. Elements that belong to no row,
 * before, between and after the rows, are NaN.
 */
export function makeTensor(device: GPUDevice, size: TensorSize, dtype: DType, layout: Layout = PLAIN, values?: Numbers): Tensor {
  const { heads, rows, headDim } = size;
  const width = headDim + layout.padding;
  const strides =
    layout.order === 'hnd' ? { headStride: rows * width, rowStride: width } : { headStride: width, rowStride: heads * width };
  // 64 elements behind the last row show writes past the end.
  const elements = layout.offset + heads * rows * width + 64;
  const words = dtype === 'f32' ? new Uint32Array(elements) : new Uint16Array(elements);
  words.fill(POISON[dtype]);
  const buffer = device.createBuffer({ size: words.byteLength, usage: STORAGE | COPY_SRC | COPY_DST });
  const tensor: Tensor = { buffer, dtype, heads, rows, headDim, offset: layout.offset, ...strides };
  if (values) {
    const typed = dtype === 'f32' ? new Float32Array(values) : new Float16Array(values);
    const bits = dtype === 'f32' ? new Uint32Array(typed.buffer) : new Uint16Array(typed.buffer);
    forEachRow(tensor, (at, row) => words.set(bits.subarray(row * headDim, (row + 1) * headDim), at));
  }
  device.queue.writeBuffer(buffer, 0, words);
  return tensor;
}

/** Calls `visit` with the element index of each row's first element in the buffer, and in `[heads, rows]` order. */
function forEachRow(tensor: Tensor, visit: (at: number, row: number) => void): void {
  for (let head = 0; head < tensor.heads; head++) {
    for (let row = 0; row < tensor.rows; row++) {
      visit(tensor.offset + head * tensor.headStride + row * tensor.rowStride, head * tensor.rows + row);
    }
  }
}

/** Copies a buffer back. */
export async function readBuffer(device: GPUDevice, buffer: GPUBuffer, size = buffer.size): Promise<ArrayBuffer> {
  const bytes = Math.ceil(size / 4) * 4;
  const staging = device.createBuffer({ size: bytes, usage: MAP_READ | COPY_DST });
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, 0, staging, 0, bytes);
  device.queue.submit([encoder.finish()]);
  await staging.mapAsync(0x1);
  const copy = staging.getMappedRange().slice(0);
  staging.destroy();
  return copy;
}

/** Reads a tensor as `[heads, rows, headDim]` and fails when anything that belongs to no row was written. */
export async function readTensor(device: GPUDevice, tensor: Tensor, name: string): Promise<Float32Array> {
  const bytes = await readBuffer(device, tensor.buffer);
  const words = tensor.dtype === 'f32' ? new Uint32Array(bytes) : new Uint16Array(bytes);
  const view = new DataView(bytes);
  const out = new Float32Array(tensor.heads * tensor.rows * tensor.headDim);
  const owned = new Uint8Array(words.length);
  forEachRow(tensor, (at, row) => {
    owned.fill(1, at, at + tensor.headDim);
    for (let d = 0; d < tensor.headDim; d++) {
      out[row * tensor.headDim + d] =
        tensor.dtype === 'f32' ? view.getFloat32((at + d) * 4, true) : getFloat16(view, (at + d) * 2, true);
    }
  });
  for (let i = 0; i < words.length; i++) {
    assert(
      owned[i] === 1 || words[i] === POISON[tensor.dtype],
      `${name}: element ${i} lies outside of the tensor but was written`,
    );
  }
  return out;
}

/** Pipelines and workspace of one device, shared by all cases so that each pipeline is compiled once. */
export interface Gpu {
  readonly device: GPUDevice;
  readonly pipelines: PipelineCache;
  readonly pool: BufferPool;
}

const gpus = new WeakMap<GPUDevice, Gpu>();

export function gpuOf(device: GPUDevice): Gpu {
  let gpu = gpus.get(device);
  if (!gpu) {
    gpu = { device, pipelines: new PipelineCache(device), pool: new BufferPool(device) };
    gpus.set(device, gpu);
  }
  return gpu;
}

export function recorderOf(device: GPUDevice): Recorder {
  const gpu = gpuOf(device);
  return new Recorder(device, gpu.pool, gpu.pipelines);
}

/** Submits everything that was recorded, in order, and gives the recorder's workspace back. */
export function submit(recorder: Recorder): void {
  const { device } = recorder;
  const encoder = device.createCommandEncoder();
  encodeSteps(encoder, recorder.steps);
  device.queue.submit([encoder.finish()]);
  recorder.releaseAll();
}

/** A storage buffer with this content. */
export function uploadWords(device: GPUDevice, words: Uint32Array<ArrayBuffer>): GPUBuffer {
  const buffer = device.createBuffer({ size: Math.max(16, words.byteLength), usage: STORAGE | COPY_SRC | COPY_DST });
  device.queue.writeBuffer(buffer, 0, words);
  return buffer;
}
