import { Float16Array } from '@petamoriken/float16';
import type { AttentionLayer, HeadReport } from '../src/index.js';
import { keysOfTriShape } from '../src/reference/methods.js';
import {
  attentionRows,
  keysOfAShape,
  keysOfBlockSparse,
  keysOfDense,
  keysOfVerticalSlash,
  relativeError,
  type Visibility,
} from '../src/reference/oracle.js';

/** Every f16 number, by its bits: a conversion without native f16 arrays that is quick enough for a million tokens. */
const F16 = Float32Array.from(new Float16Array(Uint16Array.from({ length: 65_536 }, (_, bits) => bits).buffer));

async function readRange(
  device: GPUDevice,
  buffer: GPUBuffer,
  offset: number,
  size: number,
  dtype: 'f16' | 'f32',
): Promise<Float32Array> {
  const staging = device.createBuffer({ size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, offset, staging, 0, size);
  device.queue.submit([encoder.finish()]);
  await staging.mapAsync(GPUMapMode.READ);
  const bytes = staging.getMappedRange().slice(0);
  staging.destroy();
  if (dtype === 'f32') return new Float32Array(bytes);
  const words = new Uint16Array(bytes);
  const numbers = new Float32Array(words.length);
  for (let i = 0; i < words.length; i++) numbers[i] = F16[words[i] as number] as number;
  return numbers;
}

/** What a head saw, by the index that the GPU built. */
function visibility(shape: Parameters<typeof keysOfDense>[0], { pattern, index }: HeadReport): Visibility {
  if (pattern.kind === 'a_shape') return keysOfAShape(shape, pattern.initSize, pattern.localSize);
  if (pattern.kind === 'tri_shape') return keysOfTriShape(shape, pattern.initSize, pattern.localSize, pattern.lastSize);
  if (index.kind === 'block_sparse')
    return keysOfBlockSparse(
      shape,
      index.blocks.map((b) => [...b]),
    );
  if (index.kind === 'vertical_slash') {
    const slashes: number[] = [];
    for (let i = 0; i + 1 < index.runs.length; i += 2) {
      for (let s = index.runs[i] ?? 0; s <= (index.runs[i + 1] ?? 0); s++) slashes.push(s);
    }
    return keysOfVerticalSlash(shape, [...index.columns], slashes);
  }
  return keysOfDense(shape);
}

/** Relative error of `rows` sampled rows of one head against the float64 oracle, which gets the GPU's index. */
export async function sampledError(device: GPUDevice, layer: AttentionLayer, head: HeadReport, rows: number): Promise<number> {
  const { seqLen, headDim, numHeads, dtype, kvLen = seqLen, queryOffset = kvLen - seqLen } = layer;
  const rowBytes = headDim * (dtype === 'f16' ? 2 : 4);
  const kvHead = Math.floor((head.head * (layer.numKvHeads ?? numHeads)) / numHeads);
  const read = (buffer: unknown, h: number, n: number): Promise<Float32Array> =>
    readRange(device, buffer as GPUBuffer, h * n * rowBytes, n * rowBytes, dtype);
  const shape = { heads: 1, kvHeads: 1, queries: seqLen, keys: kvLen, headDim, queryOffset };
  const [q, k, v, o] = await Promise.all([
    read(layer.q, head.head, seqLen),
    read(layer.k, kvHead, kvLen),
    read(layer.v, kvHead, kvLen),
    read(layer.o, head.head, seqLen),
  ]);
  // The first, the last, and rows spread between them.
  const sample = [...new Set(Array.from({ length: rows }, (_, i) => Math.round((i * (seqLen - 1)) / Math.max(1, rows - 1))))];
  const sees = visibility(shape, head);
  const expected = attentionRows({ ...shape, q, k, v }, () => sees, sample);
  const actual = sample.flatMap((row) => [...o.subarray(row * headDim, (row + 1) * headDim)]);
  return relativeError(actual, expected.o);
}
