import plant from '../../shaders/plant.wgsl?raw';
import { PipelineCache, type ShaderSpec } from '../device/pipelines.js';
import type { DeviceProfile } from '../device/profile.js';
import { checkInteger } from '../errors.js';
import { prelude, storageFormat, storageLibrary } from './shader_text.js';
import { BYTES, bindWindow, type DType, type Tensor } from './tensor.js';

/** What {@link plantLayer} generates. */
export interface PlantOptions {
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly seqLen: number;
  readonly dtype: DType;
  /** The same seed gives the same numbers on the same device. */
  readonly seed: number;
  /** The structure of each query head; one entry per head. */
  readonly kinds: readonly PlantKind[];
}

/** Structure that {@link plantLayer} can give a query head: that of the pattern of the same name. */
export type PlantKind = 'vertical_slash' | 'a_shape' | 'block_sparse';

/** Where the planted structure lies. Lengths that shorter inputs have in proportion are given for 131,072 positions. */
export interface PlantedStructure {
  /** Diagonals 0 to `localSize - 1` carry local attention (4096). */
  readonly localSize: number;
  /** One column lies in each stretch of this many keys (131: 1000 columns). */
  readonly columnStride: number;
  /** Runs of 50 diagonals beyond the local ones (40). */
  readonly runCount: number;
  /** One run lies in each stretch of this many distances. */
  readonly runStride: number;
  /** First keys that A-shape heads attend to (1024). */
  readonly sinkSize: number;
  /** Clusters of key blocks: each row block attends to the key blocks of one (80 of them). */
  readonly clusters: number;
}

/** Generated q `[numHeads, seqLen, headDim]`, k and v `[numKvHeads, seqLen, headDim]`, packed. */
export interface PlantedLayer {
  readonly q: GPUBuffer;
  readonly k: GPUBuffer;
  readonly v: GPUBuffer;
  readonly structure: PlantedStructure;
}

const FULL_LENGTH = 131_072;
const KINDS: readonly PlantKind[] = ['vertical_slash', 'a_shape', 'block_sparse'];
const TENSORS = ['q', 'k', 'v'] as const;
/** Planted logit of the nearest key; noise is around 0. */
const LOGIT = 16;
const NOISE = 0.1;
// Weights of a key relative to the nearest one. Columns have to beat all single local keys. A run's diagonals see 15 of its
// keys at a time, which has to beat the columns that another diagonal may meet on its 64 rows, mostly one or two.
const COLUMN_WEIGHT = 1.4;
const RUN_WEIGHT = 0.6;
const SINK_WEIGHT = 0.5;
const RUN_KEYS = 15;
/** Weight of the last local diagonal: a little less than the 64-row sum of a run, so that these come first. */
const LOCAL_EDGE_WEIGHT = (0.9 * RUN_KEYS * RUN_WEIGHT) / 64;
const WORKGROUP = 256;

/** Where the structure of a generated input of this length lies. */
export function plantedStructure(seqLen: number): PlantedStructure {
  const share = Math.min(1, seqLen / FULL_LENGTH);
  const scaled = (full: number, least: number): number => Math.max(least, Math.round(full * share));
  const localSize = scaled(4096, 1);
  const runs = Math.round(40 * share);
  const runStride = Math.floor((seqLen - localSize - 128) / Math.max(1, runs));
  const runCount = runStride >= 256 ? runs : 0;
  return {
    localSize,
    columnStride: Math.max(1, Math.round(seqLen / scaled(1000, 1))),
    runCount,
    runStride: runCount > 0 ? runStride : 0,
    sinkSize: scaled(1024, 1),
    clusters: Math.max(1, Math.round(Math.ceil(seqLen / 64) / scaled(80, 4))),
  };
}

/**
 * Generates q, k and v on the GPU, with structure that the index builders must find (see shaders/plant.wgsl):
 * a bell of local diagonals, columns, runs of diagonals, a sink, clusters of blocks.
 *
 * @throws {@link MinferenceError} `invalid-argument`, or `limit` when one head exceeds a binding of the device.
 */
export async function plantLayer(device: GPUDevice, profile: DeviceProfile, options: PlantOptions): Promise<PlantedLayer> {
  const { numHeads, numKvHeads, headDim, seqLen, dtype, seed, kinds } = options;
  checkInteger('seed', seed, 0, 2 ** 32 - 1);
  const structure = plantedStructure(seqLen);
  const pipelines = new PipelineCache(device);
  const shaders = TENSORS.map((_, tensor) => plantShader(profile, headDim, dtype, tensor));
  await pipelines.prepare(shaders);

  const frequency = storage(device, new Float32Array(frequencies(headDim, structure.localSize)));
  const kind = storage(device, new Uint32Array(kinds.map((name) => KINDS.indexOf(name))));
  const buffers = TENSORS.map((name, tensor) => {
    const heads = tensor === 0 ? numHeads : numKvHeads;
    const size = Math.ceil((heads * seqLen * headDim * BYTES[dtype]) / 4) * 4;
    const buffer = device.createBuffer({ label: `planted ${name}`, size, usage: 0x80 | 0x04 | 0x08 }); // STORAGE | COPY_SRC | COPY_DST
    const view: Tensor = {
      buffer,
      dtype,
      heads,
      rows: seqLen,
      headDim,
      offset: 0,
      headStride: seqLen * headDim,
      rowStride: headDim,
    };
    const { pipeline, layout } = pipelines.get(shaders[tensor] as ShaderSpec);
    const workgroups = Math.ceil((seqLen * headDim) / 4 / WORKGROUP);
    const x = Math.min(workgroups, 32_768);
    for (let head = 0; head < heads; head++) {
      const window = bindWindow(device, name, view, head, head + 1);
      const params = plantParams(device, structure, options, [head, x, window.base + head * window.headStride]);
      const encoder = device.createCommandEncoder();
      const pass = encoder.beginComputePass({ label: `plant ${name}` });
      pass.setPipeline(pipeline);
      pass.setBindGroup(
        0,
        device.createBindGroup({
          layout,
          entries: [{ buffer: params }, { buffer: frequency }, { buffer: kind }, window.range].map((resource, binding) => ({
            binding,
            resource,
          })),
        }),
      );
      pass.dispatchWorkgroups(x, Math.ceil(workgroups / x));
      pass.end();
      device.queue.submit([encoder.finish()]);
    }
    return buffer;
  });
  await device.queue.onSubmittedWorkDone();
  frequency.destroy();
  kind.destroy();
  const [q, k, v] = buffers as [GPUBuffer, GPUBuffer, GPUBuffer];
  return { q, k, v, structure };
}

function plantShader(profile: DeviceProfile, headDim: number, dtype: DType, tensor: number): ShaderSpec {
  const format = storageFormat(profile, dtype);
  return {
    label: `plant ${TENSORS[tensor]} D=${headDim} ${format}`,
    code: [
      prelude({ f16: format === 'f16', constants: { HEAD_DIM: headDim, TENSOR: tensor } }),
      storageLibrary(format),
      plant,
    ].join('\n'),
    bindings: ['uniform', 'read', 'read', 'write'],
  };
}

/** The uniform buffer of one dispatch, in the order of `PlantParams`. */
function plantParams(
  device: GPUDevice,
  structure: PlantedStructure,
  options: PlantOptions,
  [head, workgroupsX, base]: readonly [number, number, number],
): GPUBuffer {
  const { headDim, seqLen, seed, numHeads, numKvHeads } = options;
  const { localSize, columnStride, runStride, runCount, sinkSize, clusters } = structure;
  const pairs = pairsOf(headDim);
  // |part of q| * |part of k| / sqrt(D) = logit
  const amplitude = (weight: number, dims: number): number => Math.sqrt(((LOGIT + Math.log(weight)) * Math.sqrt(headDim)) / dims);
  const words = [
    seqLen,
    seed,
    head,
    workgroupsX,
    numHeads / numKvHeads,
    localSize,
    columnStride,
    runStride,
    runCount,
    sinkSize,
    clusters,
    base,
  ];
  const floats = [
    NOISE,
    amplitude(COLUMN_WEIGHT, 1),
    amplitude(RUN_WEIGHT, 1),
    amplitude(SINK_WEIGHT, 1),
    amplitude(1, pairs),
    amplitude(1, headDim - 4 - 2 * pairs),
  ];
  const buffer = device.createBuffer({ size: 80, usage: 0x40, mappedAtCreation: true }); // UNIFORM
  const bytes = buffer.getMappedRange();
  new Uint32Array(bytes).set(words);
  new Float32Array(bytes).set(floats, words.length);
  buffer.unmap();
  return buffer;
}

/** Rotated pairs of dimensions that carry the local part. */
function pairsOf(headDim: number): number {
  return (headDim - 4) / 4;
}

/**
 * Turns per position of each rotated pair. Their cosines sum to nearly a Gaussian of the distance: frequencies are quantiles of a
 * normal distribution, scaled so that the weight at `localSize` is {@link LOCAL_EDGE_WEIGHT}.
 */
function frequencies(headDim: number, localSize: number): number[] {
  const pairs = pairsOf(headDim);
  const quantiles = Array.from({ length: pairs }, (_, m) => halfNormalQuantile((m + 0.5) / pairs));
  const drop = -Math.log(LOCAL_EDGE_WEIGHT) / LOGIT;
  // Bisection for the u at which the mean of cos(u * quantile) has fallen by `drop`; it falls monotonically there.
  let low = 0;
  let high = 1;
  for (let i = 0; i < 50; i++) {
    const u = (low + high) / 2;
    const mean = quantiles.reduce((sum, x) => sum + Math.cos(u * x), 0) / pairs;
    if (1 - mean < drop) low = u;
    else high = u;
  }
  return quantiles.map((x) => (x * low) / localSize / (2 * Math.PI));
}

/** x with P(|normal| < x) = p, by bisection on the Abramowitz and Stegun 7.1.26 error function. */
function halfNormalQuantile(p: number): number {
  const within = (x: number): number => {
    const z = x / Math.SQRT2;
    const t = 1 / (1 + 0.3275911 * z);
    const series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    return 1 - series * Math.exp(-z * z);
  };
  let low = 0;
  let high = 8;
  for (let i = 0; i < 50; i++) {
    const middle = (low + high) / 2;
    if (within(middle) < p) low = middle;
    else high = middle;
  }
  return low;
}

function storage(device: GPUDevice, data: Float32Array<ArrayBuffer> | Uint32Array<ArrayBuffer>): GPUBuffer {
  const buffer = device.createBuffer({ size: Math.max(16, data.byteLength), usage: 0x80 | 0x08 }); // STORAGE | COPY_DST
  device.queue.writeBuffer(buffer, 0, data);
  return buffer;
}
