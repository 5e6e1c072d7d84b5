import { type MatrixShape, type MatrixSync, SUBGROUP_SIZE } from '../device/subgroup_matrix.js';
import type { AttentionKernel } from './attention.js';

/** Kernels of the matrix tier: one for each pattern, and the band of vertical-slash (shaders/slash_band.wgsl). */
export type MatrixKernel = AttentionKernel | 'slash_band';

/** Rows of a strip: what one subgroup's softmax works on at a time, two invocations a row. */
export const STRIP_ROWS = 16;

/**
 * How K and V tiles reach workgroup memory:
 *
 * - `single`: loaded and stored between two barriers; only other workgroups hide the latency.
 * - `prefetch`: the next tile is loaded into registers while this one is computed. Two barriers a tile.
 * - `overlap`: as `prefetch`, with K one tile ahead of V: the score products of the next tile stand between the
 *   maxima and the exponentials of this one, so that matrix units and exponentials can work at the same time
 *   (FlashAttention-3's pipelining inside of a warp). Needs `scoreKeys === keys`.
 * - `overlap-single`: as `overlap`, but loaded and stored between two barriers, as in `single`: fewer registers.
 */
export type MatrixStaging = 'single' | 'prefetch' | 'overlap' | 'overlap-single';

/** How a matrix-tier attention kernel is tiled; see {@link matrixAttentionShader}. */
export interface MatrixTiling {
  readonly shape: MatrixShape;
  readonly subgroups: 1 | 2 | 4 | 6 | 8 | 12 | 16;
  /** Strips of 16 query rows per subgroup: with two, each matrix of K and V that is loaded is used twice. */
  readonly strips: 1 | 2;
  /** Two subgroups share 32 rows, one takes half of the keys and half of the head dimension; see {@link PairBody}. */
  readonly pairs?: boolean;
  /** Pairs whose scores pass through their slice of the K tile; see {@link SliceBody}. */
  readonly slices?: boolean;
  /** Pairs ask for their first matrices of V before they stage K, not behind that. */
  readonly vFirst?: boolean;
  /** Keys staged at a time (BLOCK_N). */
  readonly keys: 16 | 32 | 64 | 128;
  /** Keys whose scores are in flight at a time; divides `keys`. */
  readonly scoreKeys: 16 | 32 | 64;
  /** Where the queries stay during the loop. */
  readonly queries: 'registers' | 'workgroup';
  readonly staging: MatrixStaging;
  /** Issue the score products of the next `scoreKeys` keys before the softmax of these. Needs `scoreKeys < keys`. */
  readonly pipelined: boolean;
  /** Compilers may unroll the loop over tiles. */
  readonly unrolled?: boolean;
  readonly sync: MatrixSync;
  /** A row's tiles may be dealt out among several workgroups; see {@link AttentionParams.splits}. Dense and A-shape only. */
  readonly split?: boolean;
  /** Query heads whose rows take turns in a workgroup: all that share a key/value head (1). Dense only. */
  readonly group?: number;
}

/** Query rows of a workgroup. */
export function matrixBlockM(t: MatrixTiling): number {
  return STRIP_ROWS * t.strips * t.subgroups;
}

/** 16-byte words of one staged row of q, k or v: padded, so that neighbouring rows fall into different banks. */
export function stagedStride(headDim: number): number {
  return headDim / 8 + 1;
}

/** Padding behind a row of scores, in 16-byte words: rows an odd number of 32 bytes apart are stored without bank conflicts. */
const SCORE_PAD = 2;

/** Strips whose scores lie side by side: all of a workgroup, so that they share the padding; pairs have their own rows. */
function stripsAbreast(t: MatrixTiling): number {
  return t.pairs ? 1 : t.subgroups * t.strips;
}

/** 16-byte words from one row of scores to the next. */
export function scoreStride(t: MatrixTiling): number {
  return (stripsAbreast(t) * t.scoreKeys) / 4 + SCORE_PAD;
}

/** 16-byte words of all scores, without the padding behind the last row. */
export function scoreWords(t: MatrixTiling): number {
  return (matrixBlockM(t) / stripsAbreast(t)) * scoreStride(t) - SCORE_PAD;
}

/** 16-byte words of the probabilities of a row of every pair. */
function pairWords(t: MatrixTiling): number {
  return ((t.subgroups / 2) * t.keys) / 8;
}

/**
 * 16-byte words from the probabilities of a pair's first strip of 16 rows to those of its second one, with slices: those of all pairs
 * lie side by side. An odd number, 4 less than a multiple of 8 but for the other word of a row, so that the words of four rows and
 * both strips that are stored at a time fall into different banks.
 */
export function secondStrip(t: MatrixTiling): number {
  return 8 * Math.ceil((pairWords(t) - 3) / 8) + 3;
}

/** 16-byte words from one row of probabilities that lie apart from the scores to the next; an odd number. */
export function probabilityStride(t: MatrixTiling): number {
  return t.slices ? secondStrip(t) + pairWords(t) : t.keys / 8 + 1;
}

/**
 * Bytes of workgroup memory that a kernel takes (an upper bound). How many workgroups a multiprocessor holds depends on it: on an H100
 * those of one share 48 KiB, whatever the hardware has (bench/NOTES.md).
 */
export function matrixWorkgroupBytes(kernel: MatrixKernel, headDim: number, t: MatrixTiling): number {
  const threads = t.subgroups * SUBGROUP_SIZE;
  const rows = matrixBlockM(t);
  const staged = stagedStride(headDim);
  const kv = 2 * (t.keys * staged - 1);
  const scores = t.slices ? 0 : scoreWords(t);
  const q = t.queries === 'workgroup' ? rows * staged : 0;
  const pairs = t.slices ? STRIP_ROWS * probabilityStride(t) : t.pairs ? rows * probabilityStride(t) - 1 : 0;
  const rescaling = t.pairs ? (t.slices ? 8 : 4) * rows + rows / 4 : 0;
  const walked = kernel === 'vertical_slash' ? 8 * threads + (8 * threads) / t.keys : 0;
  const rises = t.sync === 'workgroup' ? 4 : 0;
  return 16 * (kv + scores + q + pairs) + rescaling + walked + rises;
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
 * `prefetch` and `overlap` add 4 for each 16 bytes that an invocation stages.
 */
export function estimateRegisters(headDim: number, t: MatrixTiling): RegisterEstimate {
  const rows = STRIP_ROWS * (t.pairs ? 2 : t.strips);
  const perLane = (elements: number, bytes: number): number => (elements * bytes) / 4 / SUBGROUP_SIZE;
  const output = perLane(rows * headDim, 4) / (t.pairs ? 2 : 1);
  const queries = t.queries === 'registers' ? perLane(rows * headDim, 2) : 0;
  const scores = perLane(rows * t.scoreKeys, 4) / (t.pairs ? 2 : 1);
  const vectors = (t.keys * headDim) / 8 / (t.subgroups * SUBGROUP_SIZE);
  const prefetched = {
    single: 0,
    prefetch: 8 * vectors,
    overlap: 8 * vectors + scores,
    'overlap-single': scores,
  }[t.staging];
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
export function tilingProblem(kernel: MatrixKernel, headDim: number, t: MatrixTiling): string | undefined {
  const threads = t.subgroups * SUBGROUP_SIZE;
  if (headDim % 16 !== 0) return `head size ${headDim} is not a multiple of 16`;
  if (t.keys % t.scoreKeys !== 0) return `${t.keys} keys are not whole groups of ${t.scoreKeys}`;
  if (t.keys > threads) return `${t.keys} keys are more than ${threads} invocations`;
  const whole = t.staging.startsWith('overlap');
  if (t.pipelined && (t.keys === t.scoreKeys || whole)) return 'nothing to pipeline';
  if (whole && t.keys !== t.scoreKeys) return `${t.staging} staging needs scores of all ${t.keys} keys`;
  if (t.split && kernel !== 'dense' && kernel !== 'a_shape') return `the keys of ${kernel} attention cannot be split`;
  if ((t.group ?? 1) > 1 && kernel !== 'dense') return `heads of ${kernel} attention differ in what they see`;
  if (t.slices && !t.pairs) return 'only pairs have slices';
  if (t.slices) {
    const d8 = headDim / 8;
    if (SUBGROUP_SIZE % d8 !== 0 || headDim % t.keys !== 0)
      return `rows of ${headDim} columns are not whole shares of a subgroup`;
    if (t.vFirst) return 'slices have no choice of what comes first';
    if (((t.keys / t.subgroups) * d8) % SUBGROUP_SIZE !== 0)
      return `${t.keys} keys are not whole slices of ${t.subgroups} subgroups`;
    if (stagedStride(headDim) < 4 * t.subgroups) return `the scores of ${t.subgroups} subgroups do not fit their slices of K`;
  }
  if (t.vFirst && !t.pairs) return 'only pairs can ask for V first';
  if (t.pairs) {
    if (t.staging !== 'overlap' || t.strips !== 1 || t.queries !== 'registers')
      return 'pairs need overlap staging, one strip, queries in registers';
    if (t.subgroups % 2 !== 0 || t.keys % 32 !== 0) return 'pairs need an even number of subgroups and whole halves of 16 keys';
    if ((headDim / 2) % t.shape.n !== 0) return `half of ${headDim} dimensions is not whole matrices of ${t.shape.n}`;
  }
  const sparse = kernel === 'vertical_slash' || kernel === 'block_sparse';
  if (sparse && 64 % matrixBlockM(t) !== 0) return `${matrixBlockM(t)} rows span more than an index block`;
  if (kernel === 'slash_band' && 64 % matrixBlockM(t) !== 0 && matrixBlockM(t) % 64 !== 0)
    return `${matrixBlockM(t)} rows are not whole index blocks`;
  if (sparse && t.keys > 64) return `${t.keys} keys span more than a block`;
  if (kernel === 'vertical_slash' && 2 * t.keys > threads) return `${t.keys} keys are more than half of ${threads} invocations`;
  if (kernel === 'vertical_slash' && t.slices && 4 * t.keys > threads) return `slices need keys four tiles ahead`;
  if (kernel === 'vertical_slash' && whole && !t.slices) return `${t.staging} staging needs neighbouring keys`;
  return undefined;
}

/** A tiling apart from what the device decides. */
export type TilingShape = Omit<MatrixTiling, 'shape' | 'sync' | 'split' | 'group'>;

type StagedKeys = readonly [MatrixTiling['keys'], MatrixTiling['scoreKeys'], MatrixStaging, 'pipelined'?];

function tiling(
  subgroups: MatrixTiling['subgroups'],
  strips: MatrixTiling['strips'],
  queries: MatrixTiling['queries'],
  [keys, scoreKeys, staging, pipelined]: StagedKeys,
): TilingShape {
  return { subgroups, strips, keys, scoreKeys, queries, staging, pipelined: pipelined !== undefined };
}

function tilings(
  subgroups: MatrixTiling['subgroups'],
  strips: MatrixTiling['strips'],
  queries: MatrixTiling['queries'],
  list: readonly StagedKeys[],
): TilingShape[] {
  return list.map((keys) => tiling(subgroups, strips, queries, keys));
}

/** 128 rows, 32 for each pair of subgroups. */
const PAIRS: TilingShape = { ...tiling(8, 1, 'registers', [32, 32, 'overlap']), pairs: true, unrolled: true };
const PAIRS_V_FIRST: TilingShape = { ...PAIRS, vFirst: true };

/** 64 rows, 32 for each pair of subgroups, two workgroups a multiprocessor. */
const SLICES: TilingShape = { ...PAIRS, subgroups: 4, slices: true, unrolled: false };

/**
 * The family of tilings that `bench tune` measures; any matrix shape and sync applies to each.
 *
 * What bounds them at head size 128: a query-key pair is 512 FLOPs and moves 512 / rows-per-subgroup bytes of K and V
 * matrices, 12 of scores and probabilities, 256 / scoreKeys of queries unless they are in registers, and
 * 512 / rows-per-workgroup of staging through workgroup memory, at 128 bytes a clock on an H100: 316 TFLOPS for 16 rows
 * a subgroup and 128 a workgroup. bench/NOTES.md has what was measured.
 */
export const MATRIX_TILINGS: readonly TilingShape[] = [
  PAIRS,
  PAIRS_V_FIRST,
  // 128 rows, 16 for each subgroup.
  ...tilings(8, 1, 'registers', [
    [32, 32, 'overlap'],
    [64, 16, 'prefetch', 'pipelined'],
    [32, 32, 'prefetch'],
    [16, 16, 'overlap'],
    [32, 32, 'single'],
  ]),
  // 192 rows: more subgroups, fewer registers for each.
  ...tilings(12, 1, 'registers', [
    [64, 16, 'prefetch', 'pipelined'],
    [32, 16, 'prefetch', 'pipelined'],
    [16, 16, 'overlap'],
  ]),
  // The same in two workgroups a multiprocessor.
  ...tilings(6, 1, 'registers', [[32, 16, 'prefetch', 'pipelined']]),
  // 128 rows, 32 for each subgroup: FlashAttention-2's shape.
  ...tilings(4, 2, 'registers', [
    [32, 16, 'prefetch', 'pipelined'],
    [16, 16, 'overlap'],
    [32, 32, 'single'],
  ]),
  // 64 rows, 16 for each subgroup, several workgroups a multiprocessor.
  ...tilings(4, 1, 'registers', [
    [32, 16, 'prefetch', 'pipelined'],
    [32, 16, 'single', 'pipelined'],
    [16, 16, 'overlap'],
    [16, 16, 'overlap-single'],
    [32, 32, 'overlap'],
    [16, 16, 'prefetch'],
    [16, 16, 'single'],
  ]),
  ...tilings(4, 1, 'workgroup', [[32, 32, 'single']]),
  // For devices with 16 KiB of workgroup memory, and large heads.
  ...tilings(2, 1, 'registers', [
    [16, 16, 'prefetch'],
    [16, 16, 'overlap'],
    [16, 16, 'overlap-single'],
    [16, 16, 'single'],
  ]),
  // 64 rows, 32 for each pair.
  { ...PAIRS, subgroups: 4 },
  { ...PAIRS_V_FIRST, subgroups: 4 },
  SLICES,
];

/** 128 rows, 32 for each subgroup, two workgroups a multiprocessor: for heads small enough that all of this fits its registers. */
const TWO_STRIPS: TilingShape = tiling(4, 2, 'registers', [32, 16, 'prefetch', 'pipelined']);
/** The same with 64 rows. */
const TWO_STRIPS_64: TilingShape = tiling(2, 2, 'registers', [16, 16, 'overlap']);
/** 64 rows, 16 for each subgroup, three workgroups a multiprocessor. */
const FEW_KEYS: TilingShape = tiling(4, 1, 'registers', [16, 16, 'prefetch']);
/** For heads so large that no registers are left for what is fetched ahead. */
const LARGE_HEADS: TilingShape = tiling(4, 1, 'registers', [16, 16, 'overlap-single']);

type Tuned = TilingShape & { readonly shape: MatrixShape };
const in16x8 = (t: TilingShape): Tuned => ({ ...t, shape: { m: 16, n: 8, k: 16 } });
const in16x16 = (t: TilingShape): Tuned => ({ ...t, shape: { m: 16, n: 16, k: 16 } });

const smallHeads = (wide: TilingShape, blocks: TilingShape): Readonly<Record<MatrixKernel, Tuned>> => ({
  dense: in16x16(wide),
  a_shape: in16x16(wide),
  vertical_slash: in16x8(FEW_KEYS),
  block_sparse: in16x8(blocks),
  slash_band: in16x16(wide),
});

/**
 * The tuned table: what `bench tune` found fastest on an H100 for heads of up to this size (bench/NOTES.md). Devices that lack a
 * shape take their own first one, those that lack memory or registers the first of {@link MATRIX_TILINGS} that suits.
 */
const TUNED: readonly { readonly upTo: number; readonly tilings: Readonly<Record<MatrixKernel, Tuned>> }[] = [
  { upTo: 64, tilings: smallHeads({ ...TWO_STRIPS, unrolled: true }, { ...TWO_STRIPS_64, unrolled: true }) },
  { upTo: 96, tilings: smallHeads(TWO_STRIPS, FEW_KEYS) },
  {
    upTo: 128,
    tilings: {
      dense: in16x16(PAIRS),
      a_shape: in16x16(PAIRS),
      vertical_slash: in16x8(SLICES),
      block_sparse: in16x8(SLICES),
      slash_band: in16x8(PAIRS),
    },
  },
  {
    upTo: 256,
    tilings: {
      dense: in16x8(LARGE_HEADS),
      a_shape: in16x8(LARGE_HEADS),
      vertical_slash: in16x8({ ...LARGE_HEADS, staging: 'single' }),
      block_sparse: in16x8(LARGE_HEADS),
      slash_band: in16x8(LARGE_HEADS),
    },
  },
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
 * The first tiling, of the tuned table and then of {@link MATRIX_TILINGS}, that suits the kernel, the head size, the
 * device's matrix shapes and workgroup memory and a register file of 255 per invocation, or undefined when there is
 * none: then the f16 tier's kernel must do.
 */
export function chooseMatrixTiling(device: MatrixDevice, kernel: MatrixKernel, headDim: number): MatrixTiling | undefined {
  const { maxComputeWorkgroupStorageSize: memory, maxComputeInvocationsPerWorkgroup: invocations } = device.limits;
  const shape = device.shapes[0];
  if (!shape) return undefined;
  const listed = ({ m, n, k }: MatrixShape): boolean => device.shapes.some((s) => s.m === m && s.n === n && s.k === k);
  const best = TUNED.find(({ upTo }) => headDim <= upTo)?.tilings[kernel];
  const tuned = best ? [...(listed(best.shape) ? [best] : []), { ...best, shape }] : [];
  const candidates = [...tuned, ...MATRIX_TILINGS.map((t) => ({ ...t, shape }))];
  return candidates
    .map((t): MatrixTiling => ({ ...t, sync: device.sync ?? 'workgroup' }))
    .find(
      (t) =>
        tilingProblem(kernel, headDim, t) === undefined &&
        matrixWorkgroupBytes(kernel, headDim, t) <= memory &&
        t.subgroups * SUBGROUP_SIZE <= invocations &&
        estimateRegisters(headDim, t).total <= MAX_REGISTERS,
    );
}
