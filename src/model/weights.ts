import type { DeviceProfile } from '../device/profile.js';
import { invalidArgument, MinferenceError } from '../errors.js';
import { withErrorScopes } from '../scheduler/submit.js';
import { COLUMN_MULTIPLE, type Matrix, type WeightPart } from './gemm.js';
import { BLOCK_LAYOUT, type LoadedModel, type ModelConfig, type WeightTensor, weightShapes } from './types.js';

/** Weights of one decoder layer. Queries, keys and values are one matrix, as are gate and up. */
export interface LayerWeights {
  readonly attentionNorm: GPUBuffer;
  readonly qkv: Matrix;
  /** `[2, headDim]` of q and k; a placeholder for models without `qkNorm`. */
  readonly headNorms: GPUBuffer;
  readonly output: Matrix;
  readonly mlpNorm: GPUBuffer;
  readonly gateUp: Matrix;
  readonly down: Matrix;
}

/** All weights of a model on the GPU. */
export interface ModelWeights {
  readonly embedding: Matrix;
  readonly layers: readonly LayerWeights[];
  readonly norm: GPUBuffer;
  readonly head: Matrix;
  readonly bytes: number;
  destroy(): void;
}

/** Options of {@link uploadWeights}. */
export interface UploadOptions {
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((bytes: number, totalBytes: number) => void) | undefined;
}

const USAGE = 0x80 | 0x04 | 0x08; // STORAGE | COPY_SRC | COPY_DST
/** Bytes handed to the queue before waiting for it, so that its copies do not pile up. */
const IN_FLIGHT = 128 * 2 ** 20;
/** Matrices are cut at multiples of this many rows: whole tiles, and whole words of every type. */
const CUT_ROWS = 64;

/**
 * Reads all weights of a model into buffers, as the bytes they are in the file.
 *
 * @throws {@link MinferenceError} `file` for a missing weight, one of a wrong shape, or one of a width that the kernels
 * cannot read; `out-of-memory`; or what reading throws.
 */
export async function uploadWeights(
  device: GPUDevice,
  profile: DeviceProfile,
  model: LoadedModel,
  options: UploadOptions = {},
): Promise<ModelWeights> {
  const { config } = model;
  const tensors = checkWeights(model);
  const uploader = new Uploader(device, profile, tensors, options);
  try {
    const embedding = await uploader.matrix(['embed.weight']);
    const layers: LayerWeights[] = [];
    for (let i = 0; i < config.layers; i++) layers.push(await layerWeights(uploader, config, `layers.${i}.`));
    const norm = await uploader.vector(['norm.weight']);
    const head = config.tieEmbeddings ? embedding : await uploader.matrix(['head.weight']);
    return { embedding, layers, norm, head, bytes: uploader.bytes, destroy: () => uploader.destroy() };
  } catch (error) {
    uploader.destroy();
    throw error;
  }
}

async function layerWeights(uploader: Uploader, config: ModelConfig, prefix: string): Promise<LayerWeights> {
  const names = (...list: readonly string[]): string[] => list.map((name) => prefix + name);
  const biases = config.qkvBias ? names('attn.q.bias', 'attn.k.bias', 'attn.v.bias') : [];
  const attentionNorm = await uploader.vector(names('attn_norm.weight'));
  return {
    attentionNorm,
    qkv: await uploader.matrix(names('attn.q.weight', 'attn.k.weight', 'attn.v.weight'), biases),
    headNorms: config.qkNorm ? await uploader.vector(names('attn.q_norm.weight', 'attn.k_norm.weight')) : attentionNorm,
    output: await uploader.matrix(names('attn.o.weight')),
    mlpNorm: await uploader.vector(names('mlp_norm.weight')),
    gateUp: await uploader.matrix(names('mlp.gate.weight', 'mlp.up.weight')),
    down: await uploader.matrix(names('mlp.down.weight')),
  };
}

/** The weights that a model must have, checked. */
function checkWeights(model: LoadedModel): Map<string, WeightTensor> {
  const tensors = new Map<string, WeightTensor>();
  for (const [name, shape] of weightShapes(model.config)) {
    const tensor = model.weights.get(name);
    if (!tensor) throw new MinferenceError('file', `the model has no weight ${name}`, { argument: name });
    if (tensor.shape.join() !== shape.join()) {
      throw new MinferenceError('file', `${name} has shape [${tensor.shape}]; its config asks for [${shape}]`, {
        argument: name,
        value: tensor.shape,
        allowed: `[${shape}]`,
      });
    }
    const block = BLOCK_LAYOUT[tensor.type];
    const vector = shape.length === 1;
    if (!block || (vector && tensor.type !== 'f32')) {
      const allowed = vector ? '"f32"' : Object.keys(BLOCK_LAYOUT).join(', ');
      throw new MinferenceError('unsupported', `${name} has type ${tensor.type}; allowed: ${allowed}`, {
        argument: name,
        value: tensor.type,
        allowed,
      });
    }
    const columns = shape[1] ?? 0;
    const multiple = Math.max(COLUMN_MULTIPLE, block.elements);
    if (!vector && columns % multiple !== 0) throw invalidArgument(`columns of ${name}`, columns, `a multiple of ${multiple}`);
    tensors.set(name, tensor);
  }
  return tensors;
}

/** A part of a matrix that is being filled. */
interface OpenPart {
  readonly type: WeightTensor['type'];
  readonly rowStart: number;
  rows: number;
  readonly rowBytes: number;
}

class Uploader {
  bytes = 0;
  readonly #device: GPUDevice;
  readonly #limit: number;
  readonly #tensors: ReadonlyMap<string, WeightTensor>;
  readonly #options: UploadOptions;
  readonly #buffers: GPUBuffer[] = [];
  readonly #totalBytes: number;
  #done = 0;
  #inFlight = 0;

  constructor(device: GPUDevice, profile: DeviceProfile, tensors: ReadonlyMap<string, WeightTensor>, options: UploadOptions) {
    this.#device = device;
    this.#limit = Math.min(profile.limits.maxStorageBufferBindingSize, profile.limits.maxBufferSize);
    this.#tensors = tensors;
    this.#options = options;
    this.#totalBytes = [...tensors.values()].reduce((sum, t) => sum + t.byteLength, 0);
  }

  destroy(): void {
    for (const buffer of this.#buffers) buffer.destroy();
  }

  /** Vectors, one after another in one buffer. */
  async vector(names: readonly string[]): Promise<GPUBuffer> {
    const tensors = names.map((name) => this.#tensors.get(name) as WeightTensor);
    const buffer = await this.#buffer(
      names.join(),
      tensors.reduce((sum, t) => sum + t.byteLength, 0),
    );
    let at = 0;
    for (const tensor of tensors) {
      await this.#read(tensor, [{ buffer, at, bytes: tensor.byteLength }]);
      at += tensor.byteLength;
    }
    return buffer;
  }

  /** Matrices of as many columns, one below another, in as few parts as types and limits allow. */
  async matrix(names: readonly string[], biases: readonly string[] = []): Promise<Matrix> {
    const tensors = names.map((name) => this.#tensors.get(name) as WeightTensor);
    const columns = tensors[0]?.shape[1] ?? 0;
    const open: OpenPart[] = [];
    const spans: { readonly tensor: number; readonly part: number; readonly row: number; readonly rows: number }[] = [];
    let rowStart = 0;
    tensors.forEach((tensor, t) => {
      const block = BLOCK_LAYOUT[tensor.type];
      const rowBytes = (columns / block.elements) * block.bytes;
      // Room for reads of a whole word past the last half.
      const most = Math.floor((this.#limit - 16) / rowBytes / CUT_ROWS) * CUT_ROWS;
      if (most < CUT_ROWS)
        throw invalidArgument(`columns of ${tensor.name}`, columns, 'fewer: 64 rows exceed a buffer of this device');
      for (let rest = tensor.shape[0] ?? 0; rest > 0; ) {
        let part = open.at(-1);
        const fits = part && part.type === tensor.type && part.rows < most && (part.rows * rowBytes) % 4 === 0;
        if (!part || !fits) {
          part = { type: tensor.type, rowStart, rows: 0, rowBytes };
          open.push(part);
        }
        const rows = Math.min(rest, most - part.rows);
        spans.push({ tensor: t, part: open.length - 1, row: part.rows, rows });
        part.rows += rows;
        rowStart += rows;
        rest -= rows;
      }
    });
    const parts: WeightPart[] = [];
    for (const { type, rowStart: start, rows, rowBytes } of open) {
      parts.push({ type, rows, rowStart: start, buffer: await this.#buffer(names.join(), rows * rowBytes + 4) });
    }
    for (const [t, tensor] of tensors.entries()) {
      const own = spans.filter((span) => span.tensor === t);
      await this.#read(
        tensor,
        own.map(({ part, row, rows }) => {
          const rowBytes = open[part]?.rowBytes ?? 0;
          return { buffer: parts[part]?.buffer as GPUBuffer, at: row * rowBytes, bytes: rows * rowBytes };
        }),
      );
    }
    const bias = biases.length > 0 ? await this.vector(biases) : undefined;
    return { rows: rowStart, columns, parts, ...(bias ? { bias } : {}) };
  }

  async #buffer(label: string, bytes: number): Promise<GPUBuffer> {
    let buffer: GPUBuffer | undefined;
    const size = Math.ceil(bytes / 16) * 16;
    const error = await withErrorScopes(this.#device, () => {
      buffer = this.#device.createBuffer({ label: `minference ${label}`, size, usage: USAGE });
      this.#buffers.push(buffer);
    });
    if (error) throw error;
    this.bytes += size;
    return buffer as GPUBuffer;
  }

  /** Streams a tensor into the places that its bytes belong to, in order. */
  async #read(
    tensor: WeightTensor,
    places: readonly { readonly buffer: GPUBuffer; readonly at: number; readonly bytes: number }[],
  ): Promise<void> {
    const { signal, onProgress } = this.#options;
    let index = 0;
    let filled = 0;
    for await (const chunk of tensor.read(signal)) {
      signal?.throwIfAborted();
      for (let start = 0; start < chunk.byteLength; ) {
        const place = places[index];
        if (!place) throw new MinferenceError('file', `${tensor.name} has more bytes than its shape`, { argument: tensor.name });
        const bytes = Math.min(chunk.byteLength - start, place.bytes - filled);
        this.#write(place.buffer, place.at + filled, chunk.subarray(start, start + bytes));
        start += bytes;
        filled += bytes;
        if (filled === place.bytes) {
          index++;
          filled = 0;
        }
      }
      this.#done += chunk.byteLength;
      this.#inFlight += chunk.byteLength;
      if (this.#inFlight > IN_FLIGHT) {
        await this.#device.queue.onSubmittedWorkDone();
        this.#inFlight = 0;
      }
      onProgress?.(this.#done, this.#totalBytes);
    }
    if (index < places.length) throw new MinferenceError('file', `${tensor.name} ended early`, { argument: tensor.name });
  }

  /** Writes bytes; only the last ones of a tensor are no whole words. */
  #write(buffer: GPUBuffer, at: number, bytes: Uint8Array<ArrayBuffer>): void {
    const whole = bytes.byteLength & ~3;
    this.#device.queue.writeBuffer(buffer, at, bytes.subarray(0, whole));
    if (whole === bytes.byteLength) return;
    const rest = new Uint8Array(4);
    rest.set(bytes.subarray(whole));
    this.#device.queue.writeBuffer(buffer, at + whole, rest);
  }
}
