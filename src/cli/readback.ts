import { Float16Array } from '@petamoriken/float16';
import { BYTES, type DType } from '../kernels/tensor.js';
import type { InputShape } from './input.js';

/** Most elements that are compared; outputs beyond it are sampled. */
const MAX_ELEMENTS = 2 ** 24;
const STRIPE = 64;

/** Stripes of neighbouring rows, the same for every head. */
export interface RowSample {
  readonly stripes: readonly { readonly start: number; readonly end: number }[];
  /** Rows in all stripes. */
  readonly count: number;
}

/** All rows of an output, or evenly spaced stripes of a huge one, the last rows among them. */
export function rowSample(shape: InputShape): RowSample {
  const { seqLen, numHeads, headDim } = shape;
  if (seqLen * numHeads * headDim <= MAX_ELEMENTS) return { stripes: [{ start: 0, end: seqLen }], count: seqLen };
  const wanted = Math.max(1, Math.floor(MAX_ELEMENTS / (numHeads * headDim * STRIPE)));
  const stripes = Array.from({ length: wanted }, (_, i) => {
    const end = Math.floor((seqLen * (i + 1)) / wanted);
    return { start: Math.max(0, end - STRIPE), end };
  });
  return { stripes, count: stripes.reduce((sum, s) => sum + s.end - s.start, 0) };
}

/** Copies the sampled rows of each head of a packed `[heads, rows, headDim]` tensor to the CPU. */
export async function readRows(
  device: GPUDevice,
  buffer: GPUBuffer,
  shape: InputShape,
  sample: RowSample,
): Promise<Float32Array[]> {
  const { numHeads, seqLen, headDim, dtype } = shape;
  const rowBytes = headDim * BYTES[dtype];
  const headBytes = sample.count * rowBytes;
  const staging = device.createBuffer({ size: numHeads * headBytes, usage: 0x0001 | 0x0008 }); // MAP_READ | COPY_DST
  try {
    const encoder = device.createCommandEncoder();
    for (let head = 0; head < numHeads; head++) {
      let to = head * headBytes;
      for (const { start, end } of sample.stripes) {
        encoder.copyBufferToBuffer(buffer, (head * seqLen + start) * rowBytes, staging, to, (end - start) * rowBytes);
        to += (end - start) * rowBytes;
      }
    }
    device.queue.submit([encoder.finish()]);
    await staging.mapAsync(1);
    const bytes = staging.getMappedRange();
    return Array.from({ length: numHeads }, (_, head) => toFloat32(bytes.slice(head * headBytes, (head + 1) * headBytes), dtype));
  } finally {
    staging.destroy();
  }
}

function toFloat32(bytes: ArrayBuffer, dtype: DType): Float32Array {
  return dtype === 'f32' ? new Float32Array(bytes) : new Float32Array(new Float16Array(bytes));
}
