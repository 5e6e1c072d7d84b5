import { Float16Array } from '@petamoriken/float16';
import type { Recorder } from '../../src/device/recorder.js';
import { MinferenceError } from '../../src/errors.js';
import {
  fusesNorm,
  fusesSwiglu,
  GEMV_ROWS,
  type Matrix,
  type ModelKernels,
  outputType,
  type Product,
  recordProduct,
  recordSwigluProduct,
  type WeightPart,
} from '../../src/model/gemm.js';
import { KvCache } from '../../src/model/kv_cache.js';
import type { ProductOutput } from '../../src/model/matrix_gemm.js';
import {
  recordArgmax,
  recordDecodeAttention,
  recordEmbedding,
  recordLogProbs,
  recordRmsNorm,
  recordRope,
  recordSwiglu,
} from '../../src/model/ops.js';
import { ropeFrequencies, ropeTable } from '../../src/model/rope.js';
import { LanguageModel, type ModelPrefillOptions } from '../../src/model/runtime.js';
import { largest, Sampler } from '../../src/model/sample.js';
import {
  BLOCK_LAYOUT,
  type LoadedModel,
  type ModelConfig,
  type WeightTensor,
  type WeightType,
  weightShapes,
} from '../../src/model/types.js';
import { uploadWeights } from '../../src/model/weights.js';
import { logProbability, modelLogits, type OracleModel, product, rmsNorm, rotate, swiglu } from '../../src/reference/model.js';
import {
  attentionRows,
  keysOfAShape,
  keysOfDense,
  type Numbers,
  relativeError,
  worstRowError,
} from '../../src/reference/oracle.js';
import { dequantize, HALVES_AT, isQuantizable, type QuantizableType, quantize } from '../../src/reference/quant.js';
import type { Random } from '../../src/reference/random.js';
import type { HeadPattern } from '../../src/scheduler/types.js';
import { assert, randomOf, type SuiteCase, type SuiteContext } from './context.js';
import { loadingCases } from './loading.js';
import { modelReferenceCases } from './model_reference.js';
import { readBuffer, recorderOf, roundToF16, submit } from './tensors.js';

const USAGE = 0x80 | 0x04 | 0x08; // STORAGE | COPY_SRC | COPY_DST
const TYPES = Object.keys(BLOCK_LAYOUT) as WeightType[];

function kernelsOf(ctx: SuiteContext): ModelKernels {
  return { profile: ctx.profile, activation: ctx.profile.tier === 'portable' ? 'f32' : 'f16' };
}

/** Kernels that turn weights into f16 first, so many bytes at a time. */
function dequantizing(ctx: SuiteContext, bytes: number): ModelKernels {
  const limits = { ...limitsOf(ctx), maxStorageBufferBindingSize: bytes };
  return { ...kernelsOf(ctx), profile: { ...ctx.profile, limits }, dequantizeFrom: 1 };
}

/** Largest relative error of one kernel. */
function tolerance(kernels: ModelKernels): number {
  return kernels.activation === 'f32' ? 1e-5 : 2e-3;
}

/** What a kernel of the tier sees of activations. */
function rounded(kernels: ModelKernels, x: Float32Array<ArrayBuffer>): Float32Array<ArrayBuffer> {
  return kernels.activation === 'f32' ? x : roundToF16(x);
}

/** A buffer with these bytes, and NaN where they do not reach. */
export function upload(device: GPUDevice, bytes: Uint8Array, size = bytes.byteLength): GPUBuffer {
  const padded = new Uint8Array(Math.max(16, Math.ceil(size / 16) * 16)).fill(0xff);
  padded.set(bytes);
  const buffer = device.createBuffer({ size: padded.byteLength, usage: USAGE });
  device.queue.writeBuffer(buffer, 0, padded);
  return buffer;
}

/** A buffer with these numbers. */
export function uploadNumbers(device: GPUDevice, x: Numbers, dtype: 'f32' | 'f16'): GPUBuffer {
  const typed = dtype === 'f32' ? new Float32Array(x) : new Float16Array(x);
  return upload(device, new Uint8Array(typed.buffer));
}

/** A buffer of `count` numbers, all NaN. */
function poisoned(device: GPUDevice, count: number, dtype: 'f32' | 'f16'): GPUBuffer {
  return upload(device, new Uint8Array(0), count * (dtype === 'f32' ? 4 : 2));
}

/** The first numbers of a buffer. */
export async function readNumbers(
  device: GPUDevice,
  buffer: GPUBuffer,
  count: number,
  dtype: 'f32' | 'f16',
): Promise<Float32Array> {
  const bytes = await readBuffer(device, buffer);
  return (dtype === 'f32' ? new Float32Array(bytes) : Float32Array.from(new Float16Array(bytes))).subarray(0, count);
}

/** Blocks of a type with random content: every bit of the quants and scales is used. */
export function randomWeights(
  type: WeightType,
  rows: number,
  columns: number,
  random: Random,
  deviation = 0.5,
): Uint8Array<ArrayBuffer> {
  if (isQuantizable(type)) return quantize(type, random.normals(rows * columns, deviation));
  const { elements, bytes } = BLOCK_LAYOUT[type];
  const blocks = (rows * columns) / elements;
  const out = Uint8Array.from({ length: blocks * bytes }, () => random.integer(0, 255));
  const view = new DataView(out.buffer);
  for (let b = 0; b < blocks; b++) {
    const at = b * bytes;
    // f16 scales of about 1e-4 to 2e-3: subnormal ones are among them.
    const scale = (): number => random.integer(0x0200, 0x1400);
    // Those with no minimum may be negative.
    const [scaleAt, minimumAt] = HALVES_AT[type] as readonly [number, number?];
    view.setUint16(at + scaleAt, scale() | (minimumAt === undefined ? random.integer(0, 1) << 15 : 0), true);
    if (minimumAt !== undefined) view.setUint16(at + minimumAt, scale(), true);
  }
  return out;
}

/** A matrix of one part, or of two at different types, and its numbers. */
function makeMatrix(
  device: GPUDevice,
  types: readonly WeightType[],
  rows: readonly number[],
  columns: number,
  random: Random,
  bias = false,
  deviation?: number,
): { matrix: Matrix; numbers: Float64Array; bias: Float32Array | undefined } {
  const parts: WeightPart[] = [];
  const numbers: number[] = [];
  let rowStart = 0;
  types.forEach((type, i) => {
    const count = rows[i] as number;
    const bytes = randomWeights(type, count, columns, random, deviation);
    parts.push({ type, rows: count, rowStart, buffer: upload(device, bytes) });
    for (const x of dequantize(type, bytes)) numbers.push(x);
    rowStart += count;
  });
  const values = bias ? random.normals(rowStart) : undefined;
  const matrix: Matrix = { rows: rowStart, columns, parts, ...(values ? { bias: uploadNumbers(device, values, 'f32') } : {}) };
  return { matrix, numbers: Float64Array.from(numbers), bias: values };
}

/** Activations, and how a product is given them. */
interface Rows {
  readonly a: Numbers;
  readonly given: Pick<Product, 'a' | 'norm'>;
}

function plainRows(device: GPUDevice, kernels: ModelKernels, x: Float32Array<ArrayBuffer>): Rows {
  const a = rounded(kernels, x);
  return { a, given: { a: uploadNumbers(device, a, kernels.activation) } };
}

/** Rows of a residual stream with a few large elements, of very different sizes, and their norm. */
function normedRows(device: GPUDevice, random: Random, rows: number, k: number): Rows {
  const x = random.normals(rows * k);
  for (let i = 0; i < rows; i++) {
    const size = 10 ** random.integer(-3, 4);
    for (let j = 0; j < k; j++) x[i * k + j] = (x[i * k + j] as number) * size;
    const large = i * k + random.integer(0, k - 1);
    x[large] = (x[large] as number) * 30;
  }
  const weight = random.normals(k);
  const eps = 1e-5;
  const norm = { weight: uploadNumbers(device, weight, 'f32'), eps };
  return { a: rmsNorm(x, weight, eps), given: { a: uploadNumbers(device, x, 'f32'), norm } };
}

async function checkProduct(
  ctx: SuiteContext,
  random: Random,
  options: {
    types: readonly WeightType[];
    m: number;
    rows: readonly number[];
    k: number;
    output: ProductOutput;
    bias?: boolean;
    firstRow?: number;
    /** Weights become f16 first, so many rows at a time. */
    slab?: number;
    /** Standard deviation of weights. */
    deviation?: number;
    /** With a norm of the residual stream in front of it. */
    normed?: boolean;
    f16Bits?: boolean;
    /** Workgroups that are said to fill the device, and shares of the columns that each part of the matrix then has. */
    shared?: readonly [workgroups: number, shares: readonly number[]];
  },
): Promise<void> {
  const { device } = ctx;
  const { slab } = options;
  const { f16Bits } = options;
  const own = slab ? dequantizing(ctx, 2 * options.k * slab) : kernelsOf(ctx);
  const bits = f16Bits === undefined ? own : { ...own, f16Bits };
  const [workgroups, shares] = options.shared ?? [];
  const kernels = workgroups ? { ...bits, profile: { ...own.profile, tilings: { workgroups } } } : bits;
  const { types, m, rows, k, output, bias = false, firstRow = 0, normed = false } = options;
  const name = `${types.join('+')} ${output}${normed ? ' normed' : ''} m=${m} n=${rows.join('+')} k=${k}`;
  const { matrix, numbers, bias: biases } = makeMatrix(device, types, rows, k, random, bias, options.deviation);
  const n = matrix.rows;
  const { a, given } = normed
    ? normedRows(device, random, firstRow + m, k)
    : plainRows(device, kernels, random.normals((firstRow + m) * k));
  const residual = random.normals(m * n, 3);
  const dtype = outputType(kernels, output);
  const c = output === 'add' ? uploadNumbers(device, residual, 'f32') : poisoned(device, m * n, dtype);
  const rec = recorderOf(device);
  recordProduct(rec, kernels, { ...given, matrix, firstRow, rows: m, c, output });
  submit(rec);
  const turned = rec.steps.filter((step) => step.kind === 'dispatch' && step.label.startsWith('gemm weights')).length;
  const slabs = types.reduce((sum, type, i) => sum + (slab && type !== 'f16' ? Math.ceil((rows[i] as number) / slab) : 0), 0);
  assert(turned === slabs, `${name}: weights became f16 ${turned} times, not ${slabs}`);
  const depths = rec.steps.flatMap((step) => (step.kind === 'dispatch' && step.workgroups[2] > 1 ? [step.workgroups[2]] : []));
  assert(`${depths}` === `${shares ?? []}`, `${name}: shares ${depths}, expected ${shares ?? []}`);
  const actual = await readNumbers(device, c, m * n, dtype);
  const expected = product(a.subarray(firstRow * k), numbers, m, k, biases);
  if (output === 'add') residual.forEach((x, i) => (expected[i] = (expected[i] as number) + x));
  const error = relativeError(actual, expected);
  assert(error <= tolerance(kernels), `${name}: relative error ${error}`);
}

const CONFIG: ModelConfig = {
  architecture: 'llama',
  layers: 2,
  hiddenSize: 64,
  intermediateSize: 96,
  numHeads: 4,
  numKvHeads: 2,
  headDim: 32,
  vocabSize: 101,
  rmsEps: 1e-5,
  tieEmbeddings: true,
  rope: { theta: 10000, rotaryDim: 32 },
  qkvBias: false,
  qkNorm: false,
  contextLength: 512,
  stopIds: [],
};

/** A buffer with the position that kernels read. */
function stateBuffer(device: GPUDevice, position: number): GPUBuffer {
  return upload(device, new Uint8Array(new Uint32Array([position]).buffer));
}

async function checkRope(ctx: SuiteContext, random: Random, config: ModelConfig, position: number, rows: number): Promise<void> {
  const { device } = ctx;
  const kernels = kernelsOf(ctx);
  const { numHeads, numKvHeads, headDim } = config;
  const width = (numHeads + 2 * numKvHeads) * headDim;
  const capacity = position + rows + 3;
  const input = rounded(kernels, random.normals(rows * width));
  const norms = random.normals(2 * headDim);
  const { frequencies, factor } = ropeFrequencies(config.rope, capacity);
  // Heads in buffers of their own, as where limits are small.
  const limits = { ...limitsOf(ctx), maxBufferSize: capacity * headDim * 4 };
  const cache = new KvCache(device, { ...ctx.profile, limits }, { ...config, layers: 1 }, capacity, kernels.activation);
  const groups = cache.layers[0] ?? [];
  const qkv = uploadNumbers(device, input, kernels.activation);
  const rec = recorderOf(device);
  recordRope(rec, kernels, {
    config,
    state: stateBuffer(device, position),
    qkv,
    frequencies: upload(device, new Uint8Array(ropeTable(frequencies).buffer)),
    factor,
    norms: uploadNumbers(device, norms, 'f32'),
    groups,
    capacity,
    rows,
  });
  submit(rec);
  const turned = await readNumbers(device, qkv, rows * width, kernels.activation);
  const name = `rope D=${headDim} R=${config.rope.rotaryDim} at ${position}`;
  for (const { kvStart, kvCount, k, v } of groups) {
    const size = kvCount * capacity * headDim;
    const keys = await readNumbers(device, k, size, kernels.activation);
    const values = await readNumbers(device, v, size, kernels.activation);
    for (let row = 0; row < rows; row++) {
      for (let head = 0; head < numHeads + 2 * numKvHeads; head++) {
        const at = row * width + head * headDim;
        let x = Float64Array.from(input.subarray(at, at + headDim));
        const isKey = head >= numHeads && head < numHeads + numKvHeads;
        const isValue = head >= numHeads + numKvHeads;
        if (!isValue) {
          if (config.qkNorm)
            x = Float64Array.from(rmsNorm(x, norms.subarray(isKey ? headDim : 0, isKey ? 2 * headDim : headDim), config.rmsEps));
          rotate(x, position + row, frequencies, factor);
        }
        const kvHead = (isValue ? head - numHeads - numKvHeads : head - numHeads) - kvStart;
        const slot = (kvHead * capacity + position + row) * headDim;
        if ((isKey || isValue) && (kvHead < 0 || kvHead >= kvCount)) continue;
        const actual = isValue
          ? values.subarray(slot, slot + headDim)
          : isKey
            ? keys.subarray(slot, slot + headDim)
            : turned.subarray(at, at + headDim);
        const error = relativeError(actual, x);
        assert(error <= tolerance(kernels) * 2, `${name}: head ${head} of row ${row} has relative error ${error}`);
      }
    }
    // Rows that do not exist stay untouched.
    for (let slot = 0; slot < kvCount * capacity; slot++) {
      const at = slot % capacity;
      const written = at >= position && at < position + rows;
      if (!written) assert(keys[slot * headDim] === 0 && values[slot * headDim] === 0, `${name}: the cache was written at ${at}`);
    }
  }
  cache.destroy();
}

async function checkDecode(
  ctx: SuiteContext,
  random: Random,
  config: ModelConfig,
  position: number,
  splits: number,
): Promise<void> {
  const { device } = ctx;
  const kernels = kernelsOf(ctx);
  const { numHeads, numKvHeads, headDim } = config;
  const capacity = position + 6;
  const keys = position + 1;
  const q = rounded(kernels, random.normals(numHeads * headDim, 2));
  const k = rounded(kernels, random.normals(numKvHeads * capacity * headDim));
  const v = rounded(kernels, random.normals(numKvHeads * capacity * headDim));
  const hidden = (x: Float32Array): Float32Array => {
    const copy = x.slice();
    for (let head = 0; head < numKvHeads; head++)
      copy.fill(Number.NaN, (head * capacity + keys) * headDim, (head + 1) * capacity * headDim);
    return copy;
  };
  // Heads in buffers of two and one, as where limits are small.
  const first = Math.ceil(numKvHeads / 2);
  const groups = [
    [0, first],
    [first, numKvHeads],
  ]
    .filter(([a, b]) => (a ?? 0) < (b ?? 0))
    .map(([a = 0, b = 0]) => {
      const part = (x: Float32Array): Float32Array => hidden(x).subarray(a * capacity * headDim, b * capacity * headDim);
      const dtype = kernels.activation;
      return { kvStart: a, kvCount: b - a, k: uploadNumbers(device, part(k), dtype), v: uploadNumbers(device, part(v), dtype) };
    });
  const o = poisoned(device, numHeads * headDim, kernels.activation);
  const rec = recorderOf(device);
  recordDecodeAttention(rec, kernels, {
    config,
    state: stateBuffer(device, position),
    q: uploadNumbers(device, q, kernels.activation),
    o,
    groups,
    capacity,
    splits,
  });
  submit(rec);
  const shape = { heads: numHeads, kvHeads: numKvHeads, queries: 1, keys, headDim };
  const cut = (x: Float32Array): Float32Array => {
    const out = new Float32Array(numKvHeads * keys * headDim);
    for (let h = 0; h < numKvHeads; h++)
      out.set(x.subarray(h * capacity * headDim, (h * capacity + keys) * headDim), h * keys * headDim);
    return out;
  };
  const window = config.slidingWindow;
  const visible = window ? keysOfAShape(shape, 0, window) : keysOfDense(shape);
  const expected = attentionRows({ ...shape, q, k: cut(k), v: cut(v) }, () => visible).o;
  const actual = await readNumbers(device, o, numHeads * headDim, kernels.activation);
  const { error, row } = worstRowError(actual, expected, headDim);
  assert(
    error <= tolerance(kernels),
    `decode D=${headDim} at ${position}, ${splits} splits: relative error ${error} in head ${row}`,
  );
}

export const opCases: SuiteCase[] = [
  ...TYPES.flatMap((type): SuiteCase[] => {
    const unit = BLOCK_LAYOUT[type].elements === 256 ? 256 : 32;
    return [
      {
        name: `product: ${type} weights, many rows`,
        run: async (ctx) => {
          const random = randomOf(ctx, `gemm ${type}`);
          await checkProduct(ctx, random, { types: [type], m: 70, rows: [random.integer(1, 90)], k: unit, output: 'activation' });
          await checkProduct(ctx, random, {
            types: [type],
            m: random.integer(5, 64),
            rows: [67],
            k: 3 * unit,
            output: 'activation',
          });
        },
      },
      {
        name: `product: ${type} weights, few rows`,
        run: async (ctx) => {
          const random = randomOf(ctx, `gemv ${type}`);
          const columns = [32, 96, 256, 512, 4096].filter((k) => k % unit === 0);
          const outputs = ['activation', 'add', 'f32'] as const;
          const first = random.integer(0, 59);
          for (const m of [1, 2, 3, 4]) {
            const k = columns[(first + m) % columns.length] as number;
            const output = outputs[(first + m) % 3] as ProductOutput;
            await checkProduct(ctx, random, { types: [type], m, rows: [2 * random.integer(0, 30) + 1], k, output });
            await checkProduct(ctx, random, { types: [type], m, rows: [9], k, output, normed: true, firstRow: m % 2 });
          }
          await checkProduct(ctx, random, { types: [type], m: 1, rows: [random.integer(4097, 4103)], k: unit, output: 'add' });
          await checkProduct(ctx, random, { types: [type], m: 1, rows: [11], k: 5 * unit, output: 'f32', bias: true });
        },
      },
      {
        // As where subgroups of 32 are. wgpu cannot.
        name: `product: ${type} weights, few rows, bits taken for f16`,
        needs: 'f16',
        once: true,
        run: async (ctx) => {
          const random = randomOf(ctx, `gemv bits ${type}`);
          const options = { types: [type], rows: [11], f16Bits: true };
          await checkProduct(ctx, random, { ...options, m: 1, k: 5 * unit, output: 'f32', bias: true });
          await checkProduct(ctx, random, { ...options, m: 3, k: unit, output: 'activation' });
          await checkProduct(ctx, random, { ...options, m: 2, k: 2 * unit, output: 'add', normed: true });
        },
      },
    ];
  }),
  {
    name: 'product: shares of the columns',
    run: async (ctx) => {
      const random = randomOf(ctx, 'shares');
      // At most as many shares as have 256 columns each.
      const one = { types: ['q8_0'], m: 20, rows: [70], k: 1024, shared: [12, [4]] } as const;
      for (const output of ['activation', 'add', 'f32'] as const)
        await checkProduct(ctx, random, { ...one, output, bias: output !== 'add' });
      // A part that needs none.
      const parts = { types: ['f16', 'q4_0'], rows: [5, 300], k: 864, output: 'activation' } as const;
      await checkProduct(ctx, random, { ...parts, m: 9, bias: true, firstRow: 1, shared: [2, [3]] });
    },
  },
  {
    name: 'product: the tilings of hardware devices',
    run: async (ctx) => {
      const random = randomOf(ctx, 'hardware tilings');
      const hardware = { ...ctx, profile: { ...ctx.profile, software: false } };
      await checkProduct(hardware, random, { types: ['q8_0'], m: 131, rows: [70], k: 96, output: 'activation' });
      await checkProduct(hardware, random, { types: ['q8_0'], m: 61, rows: [70], k: 96, output: 'activation' });
    },
  },
  {
    name: 'product: several parts, bias, a later row, added to the residual stream, f32 results',
    run: async (ctx) => {
      const random = randomOf(ctx, 'product parts');
      const types: WeightType[] = ['q4_0', 'f16', 'q8_0'];
      const rows = [34, 3, 41];
      for (const m of [1, 65]) {
        await checkProduct(ctx, random, { types, m, rows, k: 64, output: 'activation', bias: true });
        await checkProduct(ctx, random, { types, m, rows, k: 64, output: 'add', firstRow: 2 });
        await checkProduct(ctx, random, { types, m, rows, k: 64, output: 'f32', firstRow: 3 });
      }
      await checkProduct(ctx, random, { types, m: 2, rows, k: 64, output: 'activation', bias: true, normed: true });
    },
  },
  {
    name: 'product: weights with subnormal scales',
    run: async (ctx) => {
      const random = randomOf(ctx, 'subnormal');
      for (const [type, deviation] of [
        ['q8_0', 1e-3] as const,
        ['q4_0', 1e-4] as const,
        ['q4_1', 1e-4] as const,
        ['q5_0', 1e-4] as const,
        ['q5_1', 2e-4] as const,
      ]) {
        for (const m of [1, 5]) {
          await checkProduct(ctx, random, { types: [type], m, rows: [19], k: 96, output: 'f32', deviation });
        }
      }
    },
  },
  {
    name: 'product: weights that become f16 first, at once and in slabs',
    needs: 'f16',
    run: async (ctx) => {
      const random = randomOf(ctx, 'product slabs');
      for (const type of TYPES) {
        await checkProduct(ctx, random, { types: [type], m: 37, rows: [70], k: 256, output: 'activation', slab: 128 });
      }
      const types: WeightType[] = ['q4_0', 'f16', 'q8_0'];
      await checkProduct(ctx, random, { types, m: 70, rows: [150, 3, 64], k: 64, output: 'activation', bias: true, slab: 64 });
      await checkProduct(ctx, random, { types, m: 5, rows: [65, 3, 129], k: 96, output: 'add', firstRow: 2, slab: 64 });
    },
  },
  {
    name: 'embedding: rows of a table in two parts',
    run: async (ctx) => {
      const { device } = ctx;
      const random = randomOf(ctx, 'embedding');
      const columns = 544;
      const { matrix, numbers } = makeMatrix(device, ['q8_0', 'f16'], [37, 20], columns, random);
      const tokens = [0, 36, 37, 56, ...Array.from({ length: 9 }, () => random.integer(0, 56))];
      const x = poisoned(device, tokens.length * columns, 'f32');
      const rec = recorderOf(device);
      recordEmbedding(rec, matrix, upload(device, new Uint8Array(new Uint32Array(tokens).buffer)), tokens.length, x);
      submit(rec);
      const expected = tokens.flatMap((t) => [...numbers.subarray(t * columns, (t + 1) * columns)]);
      const error = relativeError(await readNumbers(device, x, tokens.length * columns, 'f32'), expected);
      assert(error < 1e-6, `relative error ${error}`);
    },
  },
  {
    name: 'rms norm',
    run: async (ctx) => {
      const { device } = ctx;
      const kernels = kernelsOf(ctx);
      const random = randomOf(ctx, 'rms norm');
      for (const width of [32, 1220]) {
        const [rows, firstRow] = [3, 2];
        const x = random.normals((rows + firstRow) * width, 5);
        const w = random.normals(width);
        const y = poisoned(device, rows * width, kernels.activation);
        const rec = recorderOf(device);
        const [xBuffer, weight] = [uploadNumbers(device, x, 'f32'), uploadNumbers(device, w, 'f32')];
        recordRmsNorm(rec, kernels, { x: xBuffer, weight, y, width, eps: 0.01, rows, firstRow });
        submit(rec);
        const actual = await readNumbers(device, y, rows * width, kernels.activation);
        const { error } = worstRowError(actual, rmsNorm(x.subarray(firstRow * width), w, 0.01), width);
        assert(error <= tolerance(kernels), `width ${width}: relative error ${error}`);
      }
    },
  },
  {
    name: 'rope: head sizes, partial rotation, norms, far positions',
    run: async (ctx) => {
      const random = randomOf(ctx, 'rope');
      await checkRope(ctx, random, CONFIG, 0, 3);
      await checkRope(
        ctx,
        random,
        { ...CONFIG, headDim: 80, numHeads: 3, numKvHeads: 3, rope: { theta: 1e4, rotaryDim: 48 } },
        17,
        5,
      );
      await checkRope(ctx, random, { ...CONFIG, headDim: 128, qkNorm: true, rope: { theta: 5e5, rotaryDim: 128 } }, 1000, 2);
      const far: ModelConfig = { ...CONFIG, numHeads: 1, numKvHeads: 1, headDim: 32, rope: { theta: 1e7, rotaryDim: 32 } };
      await checkRope(ctx, random, far, 131_070, 2);
    },
  },
  {
    name: 'rope: scaled frequencies',
    run: async () => {
      const base = { theta: 10000, rotaryDim: 8 };
      const near = (a: Float64Array, b: readonly number[], what: string): void =>
        assert(relativeError(a, b) < 1e-12, `${what}: ${[...a]} instead of ${b}`);
      near(ropeFrequencies(base, 10).frequencies, [1, 0.1, 0.01, 0.001], 'plain');
      const of = (scaling: NonNullable<ModelConfig['rope']['scaling']>, length = 10) =>
        ropeFrequencies({ ...base, scaling }, length);
      near(of({ type: 'linear', factor: 4 }).frequencies, [0.25, 0.025, 0.0025, 0.00025], 'linear');
      near(of({ type: 'factors', factors: [1, 2, 4, 8] }).frequencies, [1, 0.05, 0.0025, 0.000125], 'factors');
      const longrope = {
        type: 'longrope',
        shortFactor: [1, 1, 1, 2],
        longFactor: [2, 2, 2, 2],
        originalContextLength: 64,
        attentionFactor: 1.5,
      } as const;
      near(of(longrope, 64).frequencies, [1, 0.1, 0.01, 0.0005], 'longrope, short');
      near(of(longrope, 65).frequencies, [0.5, 0.05, 0.005, 0.0005], 'longrope, long');
      assert(of(longrope).factor === 1.5, 'the attention factor is passed on');
      const dynamic = { type: 'dynamic', factor: 2, originalContextLength: 100 } as const;
      near(of(dynamic, 100).frequencies, [1, 0.1, 0.01, 0.001], 'dynamic, short');
      // theta * (2 * 200 / 100 - 1)^(8 / 6) = 10000 * 3^(4/3)
      const theta = 10000 * 3 ** (4 / 3);
      near(
        of(dynamic, 200).frequencies,
        [0, 1, 2, 3].map((d) => theta ** (-d / 4)),
        'dynamic, long',
      );
      // Turns over L = 1000: 159, 15.9, 1.59, 0.159: kept, kept, blended by (1.59.. - 1) / 3, divided.
      const llama3 = { type: 'llama3', factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalContextLength: 1000 } as const;
      const smooth = (10 / (2 * Math.PI) - 1) / 3;
      near(of(llama3).frequencies, [1, 0.1, ((1 - smooth) * 0.01) / 8 + smooth * 0.01, 0.000125], 'llama3');
      // Pairs that turn 32 times and once: 4 ln(L / (32 2 pi)) / ln(theta) = 0.69.. -> 0, and 2.2.. -> 3.
      const yarn = {
        type: 'yarn',
        factor: 4,
        betaFast: 32,
        betaSlow: 1,
        originalContextLength: 1000,
        attentionFactor: 1.1,
        truncate: true,
      } as const;
      near(of(yarn).frequencies, [1, 0.1 * (2 / 3 + 1 / 12), 0.01 * (1 / 3 + 2 / 12), 0.001 / 4], 'yarn');
    },
  },
  {
    name: 'swiglu of gate and up where they are summed',
    run: async (ctx) => {
      const { device } = ctx;
      const kernels = kernelsOf(ctx);
      const random = randomOf(ctx, 'swiglu product');
      // Every type, as many rows as the kernel for few does, and more where there are matrices; not whole workgroups.
      const types = TYPES;
      for (const [i, type] of types.entries()) {
        const unit = BLOCK_LAYOUT[type].elements === 256 ? 256 : 32;
        for (const [rows, inner, k] of [
          [1, 20 + 4 * i, 512],
          [1 + (i % 4), 21 + 4 * i, 512],
          [37, 20 + 4 * i, 512],
          [1, 2051 + i, unit],
        ] as const) {
          const { matrix, numbers } = makeMatrix(device, [type], [2 * inner], k, random, false);
          if (!fusesSwiglu(kernels, matrix, rows)) {
            assert(rows > GEMV_ROWS && kernels.matrix === undefined, `${rows} rows of ${type} are not done at once`);
            continue;
          }
          const normed = fusesNorm(rows, k) && i % 2 === 0;
          const { a, given } = normed
            ? normedRows(device, random, rows, k)
            : plainRows(device, kernels, random.normals(rows * k));
          const c = poisoned(device, rows * inner, kernels.activation);
          const rec = recorderOf(device);
          recordSwigluProduct(rec, kernels, { ...given, matrix, rows, c });
          submit(rec);
          const part = (row: number): Float64Array => product(a, numbers.subarray(row * k, (row + inner) * k), rows, k);
          const actual = await readNumbers(device, c, rows * inner, kernels.activation);
          const error = relativeError(actual, swiglu(part(0), part(inner)));
          assert(error <= tolerance(kernels), `${type}, ${rows} rows: relative error ${error}`);
        }
      }
    },
  },
  {
    name: 'swiglu',
    run: async (ctx) => {
      const { device } = ctx;
      const kernels = kernelsOf(ctx);
      const random = randomOf(ctx, 'swiglu');
      const [rows, inner] = [3, 292];
      const gateUp = rounded(kernels, random.normals(rows * 2 * inner, 4));
      const y = poisoned(device, rows * inner, kernels.activation);
      const rec = recorderOf(device);
      recordSwiglu(rec, kernels, uploadNumbers(device, gateUp, kernels.activation), y, inner, rows);
      submit(rec);
      const expected = Array.from({ length: rows }, (_, row) => {
        const at = row * 2 * inner;
        return [...swiglu(gateUp.subarray(at, at + inner), gateUp.subarray(at + inner, at + 2 * inner))];
      }).flat();
      const error = relativeError(await readNumbers(device, y, rows * inner, kernels.activation), expected);
      assert(error <= tolerance(kernels), `relative error ${error}`);
    },
  },
  {
    name: 'decoding attention: lengths, splits, groups of heads, windows',
    run: async (ctx) => {
      const random = randomOf(ctx, 'decode');
      for (const [position, splits] of [
        [0, 1],
        [0, 5],
        [63, 2],
        [64, 3],
        [1000, 7],
      ] as const) {
        await checkDecode(ctx, random, CONFIG, position, splits);
      }
      await checkDecode(ctx, random, { ...CONFIG, headDim: 128, numHeads: 7, numKvHeads: 1 }, 130, 2);
      await checkDecode(ctx, random, { ...CONFIG, headDim: 80, numHeads: 3, numKvHeads: 3 }, 65, 4);
      await checkDecode(ctx, random, { ...CONFIG, slidingWindow: 50 }, 200, 3);
      // Heads of every size, and groups of one to more than a workgroup does.
      for (const headDim of [32, 64, 96, 256]) {
        const numKvHeads = random.integer(1, 2);
        const numHeads = numKvHeads * random.integer(1, 9);
        await checkDecode(
          ctx,
          random,
          { ...CONFIG, headDim, numHeads, numKvHeads },
          random.integer(0, 300),
          random.integer(1, 9),
        );
      }
    },
  },
  {
    name: 'argmax and log-probabilities',
    run: async (ctx) => {
      const { device } = ctx;
      const random = randomOf(ctx, 'argmax');
      for (const n of [1, 255, 1009, 5000]) {
        const rows = 3;
        const logits = random.normals(rows * n, 5);
        const best = random.integer(0, n - 1);
        logits[best] = 100;
        if (best + 1 < n) logits[random.integer(best + 1, n - 1)] = 100;
        const targets = Uint32Array.from({ length: rows + 1 }, () => random.integer(0, n - 1));
        const buffer = uploadNumbers(device, logits, 'f32');
        const token = upload(device, new Uint8Array(4));
        const out = poisoned(device, rows + 1, 'f32');
        const rec: Recorder = recorderOf(device);
        recordArgmax(rec, buffer, n, token);
        recordLogProbs(rec, buffer, n, upload(device, new Uint8Array(targets.buffer)), out, 1, rows);
        submit(rec);
        const [index] = new Uint32Array(await readBuffer(device, token));
        assert(index === best, `argmax of ${n} is ${index} instead of ${best}`);
        const actual = (await readNumbers(device, out, rows + 1, 'f32')).subarray(1);
        const expected = Array.from({ length: rows }, (_, i) =>
          logProbability(logits.subarray(i * n, (i + 1) * n), targets[i + 1] ?? 0),
        );
        const error = Math.max(...expected.map((x, i) => Math.abs(x - (actual[i] as number))));
        assert(error < 1e-3, `log-probabilities of ${n} are off by ${error}`);
      }
    },
  },
  {
    name: 'sampling: limits, order and frequencies',
    run: async (ctx) => {
      const random = randomOf(ctx, 'sampling');
      const logits = random.normals(3000);
      const order = Array.from(logits, (_, i) => i).sort((a, b) => (logits[b] as number) - (logits[a] as number) || a - b);
      for (const k of [1, 5, 700, 3000]) assert(largest(logits, k).join() === order.slice(0, k).join(), `largest ${k}`);
      assert(new Sampler().sample(logits) === order[0], 'greedy by default');
      const topK = new Sampler({ temperature: 10, topK: 3, seed: 1 });
      for (let i = 0; i < 50; i++) assert(order.slice(0, 3).includes(topK.sample(logits)), 'topK keeps 3');
      const few = Float32Array.from([Math.log(0.5), Math.log(0.3), Math.log(0.15), Math.log(0.05)]);
      const topP = new Sampler({ temperature: 1, topP: 0.7, seed: 2 });
      for (let i = 0; i < 50; i++) assert(topP.sample(few) < 2, 'topP 0.7 keeps 0.5 + 0.3');
      const all = new Sampler({ temperature: 1, seed: random.integer(0, 2 ** 31) });
      const counts = [0, 0, 0, 0];
      for (let i = 0; i < 4000; i++) {
        const token = all.sample(few);
        counts[token] = (counts[token] ?? 0) + 1;
      }
      const again = [new Sampler({ temperature: 1, seed: 7 }), new Sampler({ temperature: 1, seed: 7 })];
      for (let i = 0; i < 20; i++) assert(again[0]?.sample(few) === again[1]?.sample(few), 'a seed repeats');
      // Five standard deviations of 4000 draws are below 0.04.
      [0.5, 0.3, 0.15, 0.05].forEach((p, i) =>
        assert(Math.abs((counts[i] as number) / 4000 - p) < 0.04, `token ${i} was drawn ${counts[i]} times of 4000`),
      );
    },
  },
];

// ---- whole models

const VARIANTS: Readonly<Record<string, ModelConfig>> = {
  llama: {
    ...CONFIG,
    tieEmbeddings: false,
    rope: {
      theta: 500000,
      rotaryDim: 32,
      scaling: { type: 'llama3', factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalContextLength: 64 },
    },
  },
  qwen2: { ...CONFIG, architecture: 'qwen2', qkvBias: true, rope: { theta: 1e6, rotaryDim: 32 } },
  qwen3: { ...CONFIG, architecture: 'qwen3', qkNorm: true, numHeads: 6, rope: { theta: 1e6, rotaryDim: 32 } },
  phi3: {
    ...CONFIG,
    architecture: 'phi3',
    tieEmbeddings: false,
    numHeads: 2,
    numKvHeads: 2,
    rope: {
      theta: 10000,
      rotaryDim: 24,
      scaling: {
        type: 'longrope',
        shortFactor: Array.from({ length: 12 }, (_, d) => 1 + d / 10),
        longFactor: Array.from({ length: 12 }, (_, d) => 1 + d),
        originalContextLength: 100,
        attentionFactor: 1.19,
      },
    },
  },
};

/** A model of random weights, and their numbers. */
function randomModel(
  config: ModelConfig,
  random: Random,
  types: readonly WeightType[],
): { loaded: LoadedModel; oracle: OracleModel } {
  const weights = new Map<string, WeightTensor>();
  const numbers = new Map<string, Float64Array>();
  for (const [name, shape] of weightShapes(config)) {
    const [rows = 1, columns] = shape;
    const count = rows * (columns ?? 1);
    const values = random.normals(count, name === 'embed.weight' ? 1 : 1 / Math.sqrt(columns ?? 1));
    if (name.endsWith('norm.weight')) values.forEach((x, i) => (values[i] = 1 + 0.2 * x));
    const type = columns === undefined ? 'f32' : random.pick(types);
    const bytes = quantize(type as QuantizableType, values);
    numbers.set(name, dequantize(type, bytes));
    weights.set(name, {
      name,
      shape,
      type,
      byteLength: bytes.byteLength,
      read: async function* () {
        // Chunks of whole blocks and words, of uneven sizes.
        const unit = BLOCK_LAYOUT[type].bytes * 2 * random.integer(3, 40);
        for (let at = 0; at < bytes.byteLength; at += unit) yield bytes.slice(at, at + unit);
      },
    });
  }
  return {
    loaded: { config, weights, close: async () => {} },
    oracle: { config, weight: (name) => numbers.get(name) as Float64Array },
  };
}

const ids = (random: Random, count: number): number[] =>
  Array.from({ length: count }, () => random.integer(0, CONFIG.vocabSize - 1));

function logitTolerance(ctx: SuiteContext): number {
  return ctx.profile.tier === 'portable' ? 1e-4 : 2e-2;
}

/** Logits of all tokens of one call, as its visitor gets them. */
async function allLogits(model: LanguageModel, tokens: readonly number[], options: ModelPrefillOptions = {}) {
  const logits = new Float32Array(tokens.length * model.config.vocabSize).fill(Number.NaN);
  const result = await model.prefill(tokens, {
    ...options,
    onLogits: (first, rows) => logits.set(rows, first * model.config.vocabSize),
  });
  return { logits, result };
}

function checkLogits(ctx: SuiteContext, name: string, actual: Float32Array, expected: Float64Array): void {
  const { error, row } = worstRowError(actual, expected, CONFIG.vocabSize);
  assert(error <= logitTolerance(ctx), `${name}: relative error ${error} of the logits of token ${row}`);
}

/** The weights that both tiers hold exactly. */
const plainTypes = (ctx: SuiteContext): WeightType[] => [ctx.profile.tier === 'portable' ? 'f32' : 'f16'];

async function rejects(promise: Promise<unknown>, code: string, argument?: string): Promise<void> {
  const error: unknown = await promise.then(
    () => undefined,
    (e: unknown) => e,
  );
  assert(error instanceof MinferenceError, `rejects with a MinferenceError instead of ${String(error)}`);
  assert(
    error.code === code && (argument === undefined || error.argument === argument),
    `${error.code} ${error.argument}: ${error.message}`,
  );
}

/** Is a token, by the oracle, nearly as probable as the best of the allowed ones? */
function checkToken(ctx: SuiteContext, model: OracleModel, before: readonly number[], token: number, rank = 1): void {
  const vocab = model.config.vocabSize;
  const logits = modelLogits(model, before).subarray(-vocab);
  const sorted = [...logits].sort((a, b) => b - a);
  const slack = logitTolerance(ctx) * 4 * Math.max(...sorted.map(Math.abs));
  assert(
    (logits[token] as number) >= (sorted[rank - 1] as number) - slack,
    `token ${token} is none of the ${rank} most probable ones`,
  );
}

const wholeCases: SuiteCase[] = [
  ...Object.entries(VARIANTS).map(
    ([variant, config]): SuiteCase => ({
      name: `model: ${variant}, prompts whole and in chunks, then decoding`,
      run: async (ctx) => {
        const random = randomOf(ctx, `model ${variant}`);
        const { loaded, oracle } = randomModel(config, random, plainTypes(ctx));
        const { tier } = ctx.profile;
        const model = await LanguageModel.load(ctx.device, loaded, { tier, contextLength: 160 });
        for (const count of [1, 63, 130]) {
          const tokens = ids(random, count);
          const { logits, result } = await allLogits(model, tokens);
          const expected = modelLogits(oracle, tokens);
          checkLogits(ctx, `${count} tokens`, logits, expected);
          checkLogits(ctx, `last of ${count} tokens`, result.logits, expected.subarray(-config.vocabSize));
          model.reset();
        }
        model.destroy();

        const chunked = await LanguageModel.load(ctx.device, loaded, { tier, contextLength: 160, chunkSize: 64 });
        const tokens = ids(random, 130);
        const expected = modelLogits(oracle, tokens);
        const { logits } = await allLogits(chunked, tokens);
        checkLogits(ctx, 'in chunks', logits, expected);

        // Tokens that decoding feeds see the prompt's keys, and later prompts see theirs.
        chunked.reset();
        const sequence = tokens.slice(0, 66);
        for await (const token of chunked.generate(sequence.slice(), { maxTokens: 3, stop: [] })) {
          checkToken(ctx, oracle, sequence, token);
          sequence.push(token);
        }
        assert(chunked.length === 69, `the sequence has ${chunked.length} tokens instead of 69`);
        const more = ids(random, 7);
        const { logits: later } = await allLogits(chunked, more);
        checkLogits(ctx, 'after decoding', later, modelLogits(oracle, [...sequence, ...more]).subarray(-7 * config.vocabSize));
        chunked.destroy();
      },
    }),
  ),
  {
    name: 'model: quantised weights, sampling, log-probabilities',
    run: async (ctx) => {
      const random = randomOf(ctx, 'model quantised');
      const { loaded, oracle } = randomModel({ ...CONFIG, qkvBias: true }, random, ['q8_0', 'q4_0']);
      let fraction = 0;
      const model = await LanguageModel.load(ctx.device, loaded, {
        tier: ctx.profile.tier,
        contextLength: 100,
        chunkSize: 64,
        onProgress: (p) => {
          assert(p.fraction > fraction && p.fraction <= 1, 'progress rises');
          fraction = p.fraction;
        },
      });
      assert(fraction === 1, 'all weights are reported');
      const tokens = ids(random, 70);
      const expected = modelLogits(oracle, tokens);
      const { logProbs, times } = await model.prefill(tokens, { logProbs: true, timestamps: true });
      const measured = times && times.linearMs > 0 && times.attention.kernel > 0;
      assert(!ctx.device.features.has('timestamp-query') || measured === true, 'GPU times are measured');
      const wanted = tokens
        .slice(1)
        .map((t, i) => logProbability(expected.subarray(i * CONFIG.vocabSize, (i + 1) * CONFIG.vocabSize), t));
      assert(relativeError(logProbs ?? [], wanted) <= logitTolerance(ctx), 'log-probabilities');
      model.reset();
      const sequence = tokens.slice();
      for await (const token of model.generate(tokens, { maxTokens: 4, temperature: 2, topK: 5, seed: 3, stop: [] })) {
        checkToken(ctx, oracle, sequence, token, 5);
        sequence.push(token);
      }
      assert(sequence.length === 74, 'four tokens');
      const memory = model.memory();
      assert(memory.weights > 0 && memory.cache > 0 && memory.activations.peakBytes > 0, 'memory is reported');
      model.destroy();
    },
  },
  {
    name: 'model: patterns, windows, weights and caches in several buffers',
    run: async (ctx) => {
      const random = randomOf(ctx, 'model patterns');
      const tokens = ids(random, 140);
      const { loaded, oracle } = randomModel(CONFIG, random, plainTypes(ctx));
      const options = { tier: ctx.profile.tier, contextLength: 150, chunkSize: 64, denseBelow: 0 };
      const sparse = await LanguageModel.load(ctx.device, loaded, {
        ...options,
        patterns: (layer) => (layer === 0 ? { kind: 'a_shape', initSize: 5, localSize: 30 } : { kind: 'dense' }),
      });
      const visibility: OracleModel['visibility'] = (shape, layer) =>
        layer === 0 ? keysOfAShape(shape, 5, 30) : keysOfDense(shape);
      checkLogits(ctx, 'A-shape', (await allLogits(sparse, tokens)).logits, modelLogits({ ...oracle, visibility }, tokens));
      // Budgets that leave nothing out, through every index builder.
      sparse.reset();
      const whole: HeadPattern[] = [
        { kind: 'vertical_slash', verticalSize: 200, slashSize: 200 },
        { kind: 'block_sparse', topK: 10 },
        { kind: 'a_shape', initSize: 0, localSize: 200 },
        { kind: 'vertical_slash', verticalSize: 0, slashSize: 200 },
      ];
      const everything = await allLogits(sparse, tokens, { patterns: () => whole });
      checkLogits(ctx, 'patterns that keep everything', everything.logits, modelLogits(oracle, tokens));
      sparse.destroy();

      const config = { ...CONFIG, slidingWindow: 40 };
      const windowed = await LanguageModel.load(ctx.device, { ...loaded, config }, options);
      const window: OracleModel = { ...oracle, visibility: (shape) => keysOfAShape(shape, 0, 40) };
      checkLogits(ctx, 'window', (await allLogits(windowed, tokens)).logits, modelLogits(window, tokens));
      windowed.destroy();

      // As on a device of small limits.
      const bytes = kernelsOf(ctx).activation === 'f32' ? 4 : 2;
      const limits = { ...limitsOf(ctx), maxStorageBufferBindingSize: 64 * 128 * bytes + 16 };
      const weights = await uploadWeights(ctx.device, { ...ctx.profile, limits }, loaded);
      const kernels = kernelsOf(ctx);
      const a = rounded(kernels, random.normals(3 * 64));
      const matrix = weights.layers[1]?.gateUp as Matrix;
      assert(matrix.parts.length === 2, `gate and up are in ${matrix.parts.length} parts instead of 2`);
      const c = poisoned(ctx.device, 3 * matrix.rows, 'f32');
      const rec = recorderOf(ctx.device);
      recordProduct(rec, kernels, { matrix, a: uploadNumbers(ctx.device, a, kernels.activation), rows: 3, c, output: 'f32' });
      submit(rec);
      const gateUp = Float64Array.of(...oracle.weight('layers.1.mlp.gate.weight'), ...oracle.weight('layers.1.mlp.up.weight'));
      const error = relativeError(await readNumbers(ctx.device, c, 3 * matrix.rows, 'f32'), product(a, gateUp, 3, 64));
      assert(error <= tolerance(kernels), `weights in ${matrix.parts.length} parts: relative error ${error}`);
      weights.destroy();
    },
  },
  {
    name: 'model: attends densely below a length',
    run: async (ctx) => {
      const random = randomOf(ctx, 'model dense below');
      const { loaded, oracle } = randomModel(CONFIG, random, plainTypes(ctx));
      const tokens = ids(random, 140);
      const patterns = { kind: 'a_shape', initSize: 2, localSize: 8 } as const;
      const options = { tier: ctx.profile.tier, contextLength: 140, chunkSize: 64, patterns };
      /** Rows from `from` to `to` do not see everything. */
      const expected = (from: number, to: number): Float64Array => {
        const visibility: OracleModel['visibility'] = (shape) => {
          const sparse = keysOfAShape(shape, 2, 8);
          return (row, key) => (row < from || row >= to ? key <= row : sparse(row, key));
        };
        return modelLogits({ ...oracle, visibility }, tokens);
      };
      // Chunks end at 64, 128 and 140; the last one has few tokens.
      const half = await LanguageModel.load(ctx.device, loaded, { ...options, denseBelow: 128 });
      checkLogits(ctx, 'from 128 tokens on', (await allLogits(half, tokens)).logits, expected(64, 128));
      half.reset();
      checkLogits(
        ctx,
        'below 129 tokens',
        (await allLogits(half, tokens, { denseBelow: 129 })).logits,
        modelLogits(oracle, tokens),
      );
      half.reset();
      checkLogits(ctx, 'everywhere', (await allLogits(half, tokens, { denseBelow: 0 })).logits, expected(0, 140));
      half.destroy();
      const whole = await LanguageModel.load(ctx.device, loaded, options);
      checkLogits(ctx, 'below 4096 tokens', (await allLogits(whole, tokens)).logits, modelLogits(oracle, tokens));
      whole.destroy();
    },
  },
  {
    name: 'model: one text and several questions, with patterns of each call',
    run: async (ctx) => {
      const random = randomOf(ctx, 'model questions');
      const { loaded, oracle } = randomModel(CONFIG, random, plainTypes(ctx));
      const { tier } = ctx.profile;
      const model = await LanguageModel.load(ctx.device, loaded, { tier, contextLength: 160, chunkSize: 64 });
      const text = ids(random, 140);
      const patterns = { kind: 'a_shape', initSize: 5, localSize: 30 } as const;
      const first = await model.prefill(text, { patterns, denseBelow: 0, inspect: true });
      const kept = text.reduce((sum, _, row) => sum + Math.min(row + 1, 35), 0);
      assert(Math.abs((first.density ?? 0) - kept / ((140 * 141) / 2)) < 1e-9, `density ${first.density}`);
      for await (const token of model.generate([3], { maxTokens: 1, stop: [] })) assert(token >= 0, 'a token');
      assert(model.length === 142, `the question and its answer belong to the sequence of ${model.length}`);
      const seen: OracleModel = { ...oracle, visibility: (shape) => keysOfAShape(shape, 5, 30) };
      // Questions look at everything, at a text that was read sparsely.
      const visibility: OracleModel['visibility'] = (shape) => {
        const sparse = keysOfAShape(shape, 5, 30);
        return (row, key) => (row < 140 ? sparse(row, key) : key <= row);
      };
      for (const question of [ids(random, 7), ids(random, 3)]) {
        model.truncate(140);
        const { logits } = await allLogits(model, question);
        const expected = modelLogits({ ...oracle, visibility }, [...text, ...question]);
        checkLogits(ctx, 'a question', logits, expected.subarray(-question.length * CONFIG.vocabSize));
      }
      model.truncate(0);
      for await (const token of model.generate(text, { maxTokens: 1, stop: [], patterns, denseBelow: 0 })) {
        checkToken(ctx, seen, text, token);
      }
      const refused: unknown = await Promise.resolve()
        .then(() => model.truncate(200))
        .catch((e: unknown) => e);
      assert(refused instanceof MinferenceError && refused.argument === 'length', `200 tokens: ${refused}`);
      await rejects(model.prefill([1], { denseBelow: -1 }), 'invalid-argument', 'denseBelow');
      model.destroy();
    },
  },
  {
    name: 'model: shows the queries, keys and values of every layer',
    run: async (ctx) => {
      const random = randomOf(ctx, 'model attention');
      const { loaded, oracle } = randomModel(CONFIG, random, plainTypes(ctx));
      const { tier } = ctx.profile;
      const model = await LanguageModel.load(ctx.device, loaded, { tier, contextLength: 160, chunkSize: 64 });
      const text = ids(random, 100);
      const { hiddenSize, headDim, numKvHeads, numHeads } = CONFIG;
      const calls: string[] = [];
      let values: Float32Array | undefined;
      const { logits } = await model.prefill(text, {
        onAttention: async ({ layer, firstHead, attention }) => {
          const { queryOffset = 0, seqLen, kvLen = 0, k, v, q, dtype } = attention;
          calls.push([layer, firstHead, attention.numHeads, queryOffset, seqLen, kvLen].join());
          assert('buffer' in v && 'buffer' in k && 'buffer' in q, 'tensors with strides');
          if (layer > 0 || kvLen < text.length) return;
          values = await readNumbers(ctx.device, v.buffer, numKvHeads * (v.headStride ?? 0), dtype);
        },
      });
      assert(
        calls.join(' ') ===
          [0, 64].flatMap((at) => [0, 1].map((l) => [l, 0, numHeads, at, at ? 36 : 64, at ? 100 : 64].join())).join(' '),
        calls.join(' '),
      );
      checkLogits(ctx, 'last token', logits, modelLogits(oracle, text).subarray(-CONFIG.vocabSize));
      // Values carry no positions: a matrix times the normed embedding.
      const [embedding, norm, matrix] = ['embed.weight', 'layers.0.attn_norm.weight', 'layers.0.attn.v.weight'].map((name) =>
        oracle.weight(name),
      ) as [Float64Array, Float64Array, Float64Array];
      const expected = text.flatMap((id) => {
        const x = embedding.subarray(id * hiddenSize, (id + 1) * hiddenSize);
        const scale = 1 / Math.sqrt(x.reduce((sum, a) => sum + a * a, 0) / hiddenSize + CONFIG.rmsEps);
        return Array.from({ length: headDim }, (_, d) =>
          x.reduce((sum, a, i) => sum + (matrix[d * hiddenSize + i] as number) * a * scale * (norm[i] as number), 0),
        );
      });
      const error = relativeError(values?.subarray(0, text.length * headDim) ?? [], expected);
      assert(error <= logitTolerance(ctx), `values of the first head: relative error ${error}`);
      model.destroy();
    },
  },
  {
    name: 'model: errors, aborts, ends of generation',
    run: async (ctx) => {
      const random = randomOf(ctx, 'model errors');
      const { loaded } = randomModel(CONFIG, random, plainTypes(ctx));
      const { tier } = ctx.profile;
      await rejects(
        LanguageModel.load(ctx.device, loaded, { tier, contextLength: 0 }),
        'invalid-argument',
        'options.contextLength',
      );
      const without = { ...loaded, weights: new Map([...loaded.weights].filter(([name]) => name !== 'norm.weight')) };
      await rejects(LanguageModel.load(ctx.device, without, { tier }), 'file', 'norm.weight');
      const odd = { ...(loaded.weights.get('embed.weight') as WeightTensor), type: 'bf16' as WeightType };
      const unknown = { ...loaded, weights: new Map([...loaded.weights, ['embed.weight', odd]]) };
      await rejects(LanguageModel.load(ctx.device, unknown, { tier }), 'unsupported', 'embed.weight');
      const model = await LanguageModel.load(ctx.device, loaded, { tier, contextLength: 80, chunkSize: 64 });
      await rejects(model.prefill(ids(random, 81)), 'limit', 'tokens.length');
      await rejects(model.prefill([]), 'invalid-argument', 'tokens');
      await rejects(model.prefill([5, CONFIG.vocabSize]), 'invalid-argument', 'tokens[1]');
      await rejects(model.generate([1], { maxTokens: 100 }).next(), 'limit', 'maxTokens');
      const running = model.prefill([1, 2]);
      await rejects(model.prefill([3]), 'invalid-argument');
      await running;
      const reason = new Error('enough');
      const controller = new AbortController();
      const aborted: unknown = await model
        .prefill(ids(random, 70), { signal: controller.signal, onProgress: () => controller.abort(reason) })
        .catch((e: unknown) => e);
      assert(aborted === reason, 'an abort rejects with its reason');
      model.reset();
      const length = (): number => model.length;
      assert(length() === 0, 'reset');
      // To the end of the context, and up to a stop token.
      const all: number[] = [];
      for await (const token of model.generate(ids(random, 76), { stop: [] })) all.push(token);
      assert(all.length === 4 && length() === 80, `${all.length} tokens fill a context with room for 4`);
      model.reset();
      const prompt = ids(random, 9);
      const free: number[] = [];
      for await (const token of model.generate(prompt, { maxTokens: 6, stop: [] })) free.push(token);
      model.reset();
      const stopped: number[] = [];
      const end = free[3] as number;
      for await (const token of model.generate(prompt, { maxTokens: 6, stop: [end] })) stopped.push(token);
      const expected = free.slice(0, free.indexOf(end));
      assert(stopped.join() === expected.join(), `${stopped} instead of ${expected}`);
      assert(length() === 9 + stopped.length + 1, 'the stop token belongs to the sequence');
      model.destroy();
      await rejects(model.prefill([1]), 'gpu');
    },
  },
];

/** A device's limits as a plain object. */
function limitsOf(ctx: SuiteContext): GPUSupportedLimits {
  const { limits } = ctx.profile;
  const copy: Record<string, unknown> = {};
  for (const name in limits) copy[name] = limits[name as keyof GPUSupportedLimits];
  return copy as unknown as GPUSupportedLimits;
}

export const modelCases: SuiteCase[] = [...opCases, ...wholeCases, ...modelReferenceCases, ...loadingCases];
