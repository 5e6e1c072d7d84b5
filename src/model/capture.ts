import { checkInteger, invalidArgument } from '../errors.js';
import { BYTES, type DType } from '../kernels/tensor.js';
import type { AttentionLayer, TensorBinding } from '../scheduler/types.js';
import type { LanguageModel, ModelPrefillOptions } from './runtime.js';

/** Queries, keys and values of one layer, after RoPE: what attention runs on. */
export interface CapturedLayer {
  /** Counted from 0. */
  readonly layer: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly seqLen: number;
  readonly headDim: number;
  readonly dtype: DType;
  /** `[numHeads, seqLen, headDim]` of `dtype`, little-endian. */
  readonly q: Uint8Array<ArrayBuffer>;
  /** `[numKvHeads, seqLen, headDim]` */
  readonly k: Uint8Array<ArrayBuffer>;
  /** `[numKvHeads, seqLen, headDim]` */
  readonly v: Uint8Array<ArrayBuffer>;
}

/** Options of {@link captureAttention}. */
export interface CaptureOptions extends Pick<ModelPrefillOptions, 'signal' | 'onProgress' | 'patterns' | 'denseBelow'> {
  /** Layers to capture, counted from 0. Default: all. */
  readonly layers?: readonly number[];
}

/**
 * Runs a prompt through a model and copies what the attention of its layers runs on to the CPU: input of
 * `searchPatterns` and `RecallMeter`. Starts a new sequence.
 *
 * @param onLayer called with each captured layer, in order, once it is complete
 * @throws `MinferenceError` for a layer that the model does not have, or as {@link LanguageModel.prefill} does
 */
export async function captureAttention(
  model: LanguageModel,
  tokens: ArrayLike<number>,
  onLayer: (layer: CapturedLayer) => void | Promise<void>,
  options: CaptureOptions = {},
): Promise<void> {
  const { layers, ...prefill } = options;
  const { config, device } = model;
  for (const layer of layers ?? []) checkInteger('layers', layer, 0, config.layers - 1);
  if (layers?.length === 0) throw invalidArgument('layers', layers, 'at least one');
  const wanted = new Set(layers ?? Array.from({ length: config.layers }, (_, i) => i));
  const { numHeads, numKvHeads, headDim } = config;
  const seqLen = tokens.length;
  const parts = new Map<number, Uint8Array<ArrayBuffer>>();
  let keys = new Uint8Array(0);
  let values = new Uint8Array(0);
  model.reset();
  await model.prefill(tokens, {
    ...prefill,
    onAttention: async ({ layer, firstHead, attention }) => {
      if (!wanted.has(layer)) return;
      const { dtype, seqLen: rows, kvLen = rows, queryOffset = 0, numHeads: heads, numKvHeads: kvHeads = heads } = attention;
      const bytes = headDim * BYTES[dtype];
      const q = parts.get(layer) ?? new Uint8Array(numHeads * seqLen * bytes);
      parts.set(layer, q);
      await readHeads(device, attention, attention.q, heads, rows, (head, data) => {
        q.set(data, ((firstHead + head) * seqLen + queryOffset) * bytes);
      });
      if (kvLen < seqLen) return;
      // The last chunk: keys and values of all tokens are there.
      const firstKv = (firstHead * numKvHeads) / numHeads;
      if (firstKv === 0)
        [keys, values] = [new Uint8Array(numKvHeads * seqLen * bytes), new Uint8Array(numKvHeads * seqLen * bytes)];
      for (const [from, to] of [
        [attention.k, keys],
        [attention.v, values],
      ] as const) {
        await readHeads(device, attention, from, kvHeads, kvLen, (head, data) => to.set(data, (firstKv + head) * seqLen * bytes));
      }
      if (firstHead + heads < numHeads) return;
      parts.delete(layer);
      await onLayer({ layer, numHeads, numKvHeads, seqLen, headDim, dtype, q, k: keys, v: values });
    },
  });
}

/** Copies rows of a tensor to the CPU and hands over one head after the other, packed. */
async function readHeads(
  device: GPUDevice,
  { headDim, dtype }: AttentionLayer,
  tensor: AttentionLayer['q'],
  heads: number,
  rows: number,
  visit: (head: number, data: Uint8Array<ArrayBuffer>) => void,
): Promise<void> {
  const {
    buffer,
    offset = 0,
    headStride = rows * headDim,
    rowStride = headDim,
  }: TensorBinding = 'buffer' in tensor ? tensor : { buffer: tensor };
  const bytes = BYTES[dtype];
  const size = ((heads - 1) * headStride + (rows - 1) * rowStride + headDim) * bytes;
  const staging = device.createBuffer({ size, usage: 0x01 | 0x08 }); // MAP_READ | COPY_DST
  try {
    const encoder = device.createCommandEncoder();
    encoder.copyBufferToBuffer(buffer, offset, staging, 0, size);
    device.queue.submit([encoder.finish()]);
    await staging.mapAsync(1); // READ
    const all = new Uint8Array(staging.getMappedRange());
    for (let head = 0; head < heads; head++) {
      const packed = new Uint8Array(rows * headDim * bytes);
      for (let row = 0; row < rows; row++) {
        const from = (head * headStride + row * rowStride) * bytes;
        packed.set(all.subarray(from, from + headDim * bytes), row * headDim * bytes);
      }
      visit(head, packed);
    }
  } finally {
    staging.destroy();
  }
}
