import { type MatrixShape, type MatrixSync, SUBGROUP_SIZE } from '../device/subgroup_matrix.js';
import type { AttentionKernel } from './attention.js';

/** Rows of a strip: what one subgroup's softmax works on at a time, two invocations a row. */
export const STRIP_ROWS = 16;

/**
 * How K and V tiles reach workgroup memory:
 *
 * - `single`: loaded and stored between two barriers; only other workgroups hide the latency.
 * - `prefetch`: the next tile is loaded into registers while this one is computed. Two barriers a tile.
 * - `double`: as `prefetch`, but stored into a second buffer: one barrier a tile, twice the memory.
 * - `alternate`: V is loaded while the scores are computed, the next K while the output is. Two barriers a
 *   tile and half the registers of `prefetch`. Needs `scoreKeys === keys`.
 */
export type MatrixStaging = 'single' | 'prefetch' | 'double' | 'alternate';

/** How a matrix-tier attention kernel is tiled; see {@link matrixAttentionShader}. */
export interface MatrixTiling {
  readonly shape: MatrixShape;
  readonly subgroups: 1 | 2 | 4 | 8;
  /** Strips of 16 query rows per subgroup: with two, each matrix of K and V that is loaded is used twice. */
  readonly strips: 1 | 2;
  /** Keys staged at a time (BLOCK_N). */
  readonly keys: 16 | 32 | 64 | 128;
  /** Keys whose scores are in flight at a time; divides `keys`. */
  readonly scoreKeys: 16 | 32 | 64;
  /** Where the queries stay during the loop. */
  readonly queries: 'registers' | 'workgroup';
  readonly staging: MatrixStaging;
  /** Issue the score products of the next `scoreKeys` keys before the softmax of these. Needs `scoreKeys < keys`. */
  readonly pipelined: boolean;
  readonly sync: MatrixSync;
  /**
   * A barrier between the softmax and the output of each tile, which no data needs: it keeps compilers from
   * loading matrices so early that registers spill.
   */
  readonly fences?: boolean;
  /** Padding of a row of scores, in 16 bytes; steers bank conflicts. */
  readonly scorePad: 1 | 2;
}

/** Query rows of a workgroup. */
export function matrixBlockM(t: MatrixTiling): number {
  return STRIP_ROWS * t.strips * t.subgroups;
}

/** 16-byte words of one staged row of q, k or v: padded, so that neighbouring rows fall into different banks. */
export function stagedStride(headDim: number): number {
  return headDim / 8 + 1;
}

/** 16-byte words of one row of scores. */
export function scoreStride(t: MatrixTiling): number {
  return t.scoreKeys / 4 + t.scorePad;
}

/** Bytes of workgroup memory that a tiling takes (an upper bound over the patterns). */
export function matrixWorkgroupBytes(headDim: number, t: MatrixTiling): number {
  const staged = stagedStride(headDim) * 16;
  const kv = 2 * t.keys * staged * (t.staging === 'double' ? 2 : 1);
  const scores = matrixBlockM(t) * scoreStride(t) * 16;
  const q = t.queries === 'workgroup' ? matrixBlockM(t) * staged : 0;
  return kv + scores + q + 3 * t.keys * 4 + 16;
}

/** 32-bit registers per invocation that a tiling keeps live, by use. An estimate: compilers add their own. */
export interface RegisterEstimate {
  readonly output: number;
  readonly queries: number;
  readonly scores: number;
  readonly prefetched: number;
  readonly operands: number;
  /** Addresses, loop state, row statistics. */
  readonly other: number;
  readonly total: number;
}

/**
 * Estimates the registers of a tiling. For head size 128 and 16x8x16 matrices:
 *
 * | rows/subgroup, queries in | output | queries | scores (32 keys) | operands | total |
 * | --- | --- | --- | --- | --- | --- |
 * | 16, workgroup memory | 64 | 0 | 16 | 6 | 112 |
 * | 16, registers | 64 | 32 | 16 | 4 | 142 |
 * | 32, workgroup memory | 128 | 0 | 32 | 10 | 200 |
 * | 32, registers | 128 | 64 | 32 | 6 | 260 |
 *
 * `prefetch` and `double` add 4 for each 16 bytes that an invocation stages, `alternate` half of that.
 */
export function estimateRegisters(headDim: number, t: MatrixTiling): RegisterEstimate {
  const rows = STRIP_ROWS * t.strips;
  const perLane = (elements: number, bytes: number): number => (elements * bytes) / 4 / SUBGROUP_SIZE;
  const output = perLane(rows * headDim, 4);
  const queries = t.queries === 'registers' ? perLane(rows * headDim, 2) : 0;
  const scores = perLane(rows * t.scoreKeys, 4);
  const vectors = (t.keys * headDim) / 8 / (t.subgroups * SUBGROUP_SIZE);
  const prefetched = { single: 0, alternate: 4 * vectors, prefetch: 8 * vectors, double: 8 * vectors }[t.staging];
  const operands = (t.strips * STRIP_ROWS * t.shape.k) / 64 / (t.queries === 'registers' ? 2 : 1) + (t.shape.n * t.shape.k) / 64;
  // Statistics, lane and strip addresses, loop counters and strides.
  const other = 4 * t.strips + 22;
  return {
    output,
    queries,
    scores,
    prefetched,
    operands,
    other,
    total: output + queries + scores + prefetched + operands + other,
  };
}

/** Why a tiling cannot be used for a kernel and head size, or undefined when it can. */
export function tilingProblem(kernel: AttentionKernel, headDim: number, t: MatrixTiling): string | undefined {
  const threads = t.subgroups * SUBGROUP_SIZE;
  if (headDim % 16 !== 0) return `head size ${headDim} is not a multiple of 16`;
  if (t.keys % t.scoreKeys !== 0) return `${t.keys} keys are not whole groups of ${t.scoreKeys}`;
  if (t.keys > threads) return `${t.keys} keys are more than ${threads} invocations`;
  if (t.pipelined && (t.keys === t.scoreKeys || t.staging === 'alternate')) return 'nothing to pipeline';
  if (t.staging === 'alternate' && t.keys !== t.scoreKeys) return `alternate staging needs scores of all ${t.keys} keys`;
  const sparse = kernel === 'vertical_slash' || kernel === 'block_sparse';
  if (sparse && 64 % matrixBlockM(t) !== 0) return `${matrixBlockM(t)} rows span more than an index block`;
  if (kernel === 'block_sparse' && t.keys > 64) return `${t.keys} keys span more than a block`;
  return undefined;
}

/** A tiling apart from what the device decides. */
export type TilingShape = Omit<MatrixTiling, 'shape' | 'sync'>;

function tilings(
  subgroups: MatrixTiling['subgroups'],
  strips: MatrixTiling['strips'],
  queries: MatrixTiling['queries'],
  list: readonly (readonly [MatrixTiling['keys'], MatrixTiling['scoreKeys'], MatrixStaging, 'pipelined'?])[],
): TilingShape[] {
  return list.map(([keys, scoreKeys, staging, pipelined]) => ({
    subgroups,
    strips,
    keys,
    scoreKeys,
    queries,
    staging,
    pipelined: pipelined !== undefined,
    scorePad: 1,
  }));
}

/**
 * The family of tilings that `bench/tune/matrix_tune.ts` measures; any matrix shape and sync applies to each.
 *
 * What bounds them, for head size 128 on an H100 (not measured: 132 multiprocessors at 1.755 GHz, each 2680 matrix
 * FLOPs a clock from registers, 128 bytes of workgroup memory and 24 bytes of L2 a clock). A query-key pair is 512
 * FLOPs: 0.19 clocks. It moves 512 / rows-per-subgroup bytes of K and V matrices, 12 of scores and probabilities,
 * 256 / scoreKeys of queries unless they are in registers, and 512 / rows-per-workgroup of staging:
 *
 * | rows a workgroup x a subgroup, queries in | bytes a pair | clocks | bound, TFLOPS | L2 bound | registers | workgroups |
 * | --- | --- | --- | --- | --- | --- | --- |
 * | 128 x 16, registers | 48 | 0.38 | 316 | 711 | 142 | 1 of 256 invocations |
 * | 128 x 32, registers, scoreKeys 16 | 32 | 0.25 | 474 | 711 | 244 | 2 of 128 |
 * | 64 x 16, registers | 52 | 0.41 | 292 | 356 | 142 | 3 of 128 |
 * | 64 x 16, workgroup memory | 60 | 0.47 | 253 | 356 | 112 | 4 of 128 |
 * | 64 x 32, workgroup memory | 44 | 0.34 | 345 | 356 | 200 | 4 of 64 |
 * | 64 x 32, registers, scoreKeys 16 | 36 | 0.28 | 422 | 356 | 244 | 4 of 64 |
 *
 * A workgroup alone on its multiprocessor adds its phases up instead of overlapping them, which is about 190.
 */
export const MATRIX_TILINGS: readonly TilingShape[] = [
  // 128 rows, 16 for each subgroup.
  ...tilings(8, 1, 'registers', [
    [32, 32, 'single'],
    [32, 32, 'prefetch'],
    [32, 32, 'alternate'],
    [64, 16, 'single'],
    [32, 16, 'double'],
    [32, 16, 'single', 'pipelined'],
  ]),
  // 128 rows, 32 for each subgroup: FlashAttention-2's shape.
  ...tilings(4, 2, 'registers', [
    [32, 32, 'single'],
    [32, 16, 'single'],
    [64, 16, 'single'],
    [32, 32, 'alternate'],
  ]),
  // 64 rows, 16 for each subgroup, several workgroups a multiprocessor.
  ...tilings(4, 1, 'registers', [
    [32, 32, 'single'],
    [64, 32, 'single'],
    [64, 32, 'single', 'pipelined'],
    [32, 32, 'prefetch'],
    [32, 32, 'alternate'],
    [32, 32, 'double'],
  ]),
  ...tilings(4, 1, 'workgroup', [
    [32, 32, 'single'],
    [32, 32, 'alternate'],
  ]),
  // 64 rows, 32 for each subgroup.
  ...tilings(2, 2, 'workgroup', [[32, 32, 'single']]),
  ...tilings(2, 2, 'registers', [
    [32, 16, 'single'],
    [64, 16, 'single'],
  ]),
  // For devices with 16 KiB of workgroup memory, and large heads.
  ...tilings(4, 1, 'registers', [[16, 16, 'single']]),
  ...tilings(2, 1, 'registers', [[16, 16, 'single']]),
];

/** What {@link chooseMatrixTiling} needs to know of a device. */
export interface MatrixDevice {
  /** The matrix shapes of {@link matrixShapes}, best first. */
  readonly shapes: readonly MatrixShape[];
  readonly limits: Pick<GPUSupportedLimits, 'maxComputeWorkgroupStorageSize' | 'maxComputeInvocationsPerWorkgroup'>;
  /** See {@link MatrixTiling.sync}; `workgroup` unless the device was found to need no barrier. */
  readonly sync?: MatrixTiling['sync'];
}

/** Most registers of an invocation, on the hardware that has matrices. */
const MAX_REGISTERS = 255;

/**
 * The first tiling of {@link MATRIX_TILINGS} that suits the kernel, the head size, the device's workgroup memory and
 * a register file of 255 per invocation, or undefined when there is none: then the f16 tier's kernel must do.
 */
export function chooseMatrixTiling(device: MatrixDevice, kernel: AttentionKernel, headDim: number): MatrixTiling | undefined {
  const { maxComputeWorkgroupStorageSize: memory, maxComputeInvocationsPerWorkgroup: invocations } = device.limits;
  const shape = device.shapes[0];
  if (!shape) return undefined;
  return MATRIX_TILINGS.map((t): MatrixTiling => ({ ...t, shape, sync: device.sync ?? 'workgroup' })).find(
    (t) =>
      tilingProblem(kernel, headDim, t) === undefined &&
      matrixWorkgroupBytes(headDim, t) <= memory &&
      t.subgroups * SUBGROUP_SIZE <= invocations &&
      estimateRegisters(headDim, t).total <= MAX_REGISTERS,
  );
}
