import { basename } from 'node:path';
import { Float16Array } from '@petamoriken/float16';
import type { DeviceProfile } from '../device/profile.js';
import { invalidArgument, MinferenceError } from '../errors.js';
import { HEAD_DIMS } from '../kernels/attention.js';
import { type PlantKind, plantLayer } from '../kernels/plant.js';
import { BYTES, type DType } from '../kernels/tensor.js';
import { pathSource } from '../model/load/node.js';
import { readSafetensors } from '../model/load/safetensors.js';
import { type ModelSource, readBytes } from '../model/load/source.js';
import type { StoredTensor } from '../model/load/weights.js';
import { assetPath } from './assets.js';

/** The sample that ships with the package: one attention layer of a small language model on English text. */
const SAMPLE = 'smollm2-135m-layer9-4k.safetensors';
const MAX_LENGTH = 2 ** 26;
const UPLOAD_BYTES = 2 ** 27;

/** Sizes and type of an attention input. */
export interface InputShape {
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly seqLen: number;
  readonly dtype: DType;
}

/** q, k and v on the GPU, `[heads, seqLen, headDim]`, packed. */
export interface LoadedInput {
  readonly q: GPUBuffer;
  readonly k: GPUBuffer;
  readonly v: GPUBuffer;
}

/** An input whose shape is known and whose data is not loaded yet. */
export interface CliInput extends InputShape {
  readonly source: 'sample' | 'file' | 'generated';
  /** For people. */
  readonly name: string;
  /** Puts q, k and v on the GPU. Generated input gives each query head the structure of its kind. */
  readonly load: (device: GPUDevice, profile: DeviceProfile, kinds: readonly PlantKind[]) => Promise<LoadedInput>;
  readonly close: () => Promise<void>;
}

/** Options that choose the input. */
export interface InputOptions {
  readonly qkv?: string;
  readonly seqLen?: number;
  readonly heads?: number;
  readonly kvHeads?: number;
  readonly headDim?: number;
  readonly dtype?: DType;
  readonly seed: number;
}

/**
 * The input that the options ask for: a file, the sample, or, when shapes are given (or a length that the sample
 * does not have), a generated one.
 *
 * @param configHeads heads that a pattern configuration is for
 * @param generatedLength length of a generated input unless given
 */
export async function openInput(
  options: InputOptions,
  configHeads: number | undefined,
  generatedLength: number,
): Promise<CliInput> {
  const { qkv, seqLen, heads, kvHeads, headDim } = options;
  const shaped = heads !== undefined || kvHeads !== undefined || headDim !== undefined;
  if (qkv !== undefined) {
    if (shaped)
      throw invalidArgument('--heads, --kv-heads, --head-dim', 'given', 'without --qkv only: the file has its own shape');
    const opened = await openFile(qkv);
    if ((seqLen ?? 0) > opened.q.rows) {
      await opened.file.close();
      throw invalidArgument('--seq-len', seqLen, `at most the ${opened.q.rows} tokens of ${qkv}`);
    }
    return fileInput('file', opened, options);
  }
  if (!shaped) {
    const sample = await openFile(assetPath(SAMPLE, '--qkv or --heads'));
    const { heads: sampleHeads, rows } = sample.q;
    if ((seqLen ?? 0) <= rows && (configHeads ?? sampleHeads) === sampleHeads) return fileInput('sample', sample, options);
    await sample.file.close();
  }
  return generatedInput(options, configHeads, generatedLength);
}

function generatedInput(options: InputOptions, configHeads: number | undefined, generatedLength: number): CliInput {
  const numHeads = options.heads ?? configHeads ?? 8;
  const numKvHeads = options.kvHeads ?? numHeads;
  const headDim = options.headDim ?? 128;
  const seqLen = options.seqLen ?? generatedLength;
  const dtype = options.dtype ?? 'f16';
  if (numHeads % numKvHeads !== 0) throw invalidArgument('--kv-heads', numKvHeads, `a divisor of --heads (${numHeads})`);
  const shape = { numHeads, numKvHeads, headDim, seqLen, dtype };
  return {
    ...shape,
    source: 'generated',
    name: `generated, seed ${options.seed}`,
    load: (device, profile, kinds) => plantLayer(device, profile, { ...shape, seed: options.seed, kinds }),
    close: async () => {},
  };
}

interface OpenedFile {
  readonly file: ModelSource;
  readonly q: FileTensor;
  readonly k: FileTensor;
  readonly v: FileTensor;
}

/** Opens a file and checks that its q, k and v belong together. */
async function openFile(path: string): Promise<OpenedFile> {
  const bad = (problem: string): MinferenceError => new MinferenceError('file', `${path}: ${problem}`, { argument: path });
  const file = await pathSource(path);
  try {
    const tensors = await readSafetensors(file, basename(path));
    const [q, k, v] = ['q', 'k', 'v'].map((name) => {
      const tensor = tensors.get(name);
      if (!tensor) throw bad(`it has no tensor "${name}"; it has ${[...tensors.keys()].join(', ') || 'none'}`);
      return checkedTensor(path, tensor);
    }) as [FileTensor, FileTensor, FileTensor];
    if (k.heads !== v.heads || k.rows !== v.rows || q.rows !== k.rows || q.headDim !== k.headDim || q.headDim !== v.headDim) {
      const [qs, ks, vs] = [q, k, v].map((t) => `[${t.heads}, ${t.rows}, ${t.headDim}]`);
      throw bad(`q ${qs}, k ${ks} and v ${vs} do not belong together`);
    }
    if (q.heads % k.heads !== 0) throw bad(`${q.heads} query heads are no multiple of ${k.heads} key/value heads`);
    if (!HEAD_DIMS.some((size) => size === q.headDim)) throw bad(`head size ${q.headDim} is not one of ${HEAD_DIMS.join(', ')}`);
    return { file, q, k, v };
  } catch (error) {
    await file.close();
    throw error;
  }
}

function fileInput(source: 'sample' | 'file', opened: OpenedFile, options: Pick<InputOptions, 'seqLen' | 'dtype'>): CliInput {
  const { file, q, k, v } = opened;
  const seqLen = options.seqLen ?? q.rows;
  const dtype = options.dtype ?? ([q, k, v].every((t) => t.dtype === 'F16') ? 'f16' : 'f32');
  return {
    source,
    name: basename(q.path),
    numHeads: q.heads,
    numKvHeads: k.heads,
    headDim: q.headDim,
    seqLen,
    dtype,
    load: async (device) => ({
      q: await upload(device, q, seqLen, dtype),
      k: await upload(device, k, seqLen, dtype),
      v: await upload(device, v, seqLen, dtype),
    }),
    close: () => file.close(),
  };
}

type FileDType = 'F16' | 'F32' | 'BF16';

interface FileTensor {
  readonly path: string;
  readonly stored: StoredTensor;
  readonly dtype: FileDType;
  readonly heads: number;
  readonly rows: number;
  readonly headDim: number;
}

function checkedTensor(path: string, stored: StoredTensor): FileTensor {
  const { name, dtype, shape } = stored;
  const bad = (problem: string): MinferenceError =>
    new MinferenceError('file', `${path}: tensor "${name}" ${problem}`, { argument: path });
  if (dtype !== 'F16' && dtype !== 'F32' && dtype !== 'BF16') throw bad(`is ${dtype}; allowed: F16, BF16, F32`);
  const [heads = 0, rows = 0, headDim = 0] = shape;
  if (shape.length !== 3) throw bad(`has the shape [${shape.join(', ')}]; allowed: [heads, positions, head size]`);
  if (heads < 1 || rows < 1 || rows > MAX_LENGTH) throw bad(`has the shape [${shape.join(', ')}]: nothing to attend to`);
  return { path, stored, dtype, heads, rows, headDim };
}

/** Puts the first `seqLen` rows of every head on the GPU, as `dtype`. */
async function upload(device: GPUDevice, tensor: FileTensor, seqLen: number, dtype: DType): Promise<GPUBuffer> {
  const { stored, heads, rows, headDim } = tensor;
  const fileBytes = tensor.dtype === 'F32' ? 4 : 2;
  const headBytes = seqLen * headDim * BYTES[dtype];
  const buffer = device.createBuffer({ label: stored.name, size: heads * headBytes, usage: 0x80 | 0x04 | 0x08 }); // STORAGE | COPY_SRC | COPY_DST
  const chunk = Math.max(1, Math.floor(UPLOAD_BYTES / (headDim * 4)));
  for (let head = 0; head < heads; head++) {
    for (let row = 0; row < seqLen; row += chunk) {
      const begin = stored.begin + (head * rows + row) * headDim * fileBytes;
      const end = begin + Math.min(chunk, seqLen - row) * headDim * fileBytes;
      const bytes = await readBytes(stored.source, stored.file, begin, end);
      device.queue.writeBuffer(buffer, head * headBytes + row * headDim * BYTES[dtype], convert(bytes, tensor, dtype));
    }
  }
  return buffer;
}

function convert(bytes: Uint8Array<ArrayBuffer>, tensor: FileTensor, dtype: DType): ArrayBuffer {
  const { path, stored } = tensor;
  if (tensor.dtype === (dtype === 'f16' ? 'F16' : 'F32')) return bytes.buffer;
  const values = toFloat32(bytes, tensor.dtype);
  if (dtype === 'f32') return values.buffer;
  const narrow = new Float16Array(values);
  const lost = narrow.findIndex((x, i) => !Number.isFinite(x) && Number.isFinite(values[i]));
  if (lost >= 0)
    throw new MinferenceError('file', `${path}: ${values[lost]} in tensor "${stored.name}" does not fit f16; use --dtype f32`, {
      argument: path,
    });
  return narrow.buffer;
}

function toFloat32(bytes: Uint8Array<ArrayBuffer>, dtype: FileDType): Float32Array<ArrayBuffer> {
  if (dtype === 'F32') return new Float32Array(bytes.buffer);
  const halves = new Uint16Array(bytes.buffer);
  if (dtype === 'F16') return new Float32Array(new Float16Array(bytes.buffer));
  const words = new Uint32Array(halves.length);
  halves.forEach((half, i) => {
    words[i] = half << 16;
  });
  return new Float32Array(words.buffer);
}
