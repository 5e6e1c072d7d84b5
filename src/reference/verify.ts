import { Float16Array } from '@petamoriken/float16';
import { availableTiers, profileDevice, type Tier } from '../device/profile.js';
import { checkInteger, MinferenceError } from '../errors.js';
import { HEAD_DIMS } from '../kernels/attention.js';
import type { DType } from '../kernels/tensor.js';
import { staticVerticalSlash } from '../patterns/static.js';
import { SparsePrefill } from '../scheduler/prefill.js';
import type { HeadIndex, HeadPattern, HeadReport } from '../scheduler/types.js';
import { flexPrefillProblem, keysOfStatic, keysOfTriShape, xAttentionProblem } from './methods.js';
import {
  type AttentionInput,
  type AttentionShape,
  attentionRows,
  BLOCK,
  blockPositions,
  blockScores,
  blocksPerRow,
  forceVerticalSlash,
  keysOfAShape,
  keysOfBlockSparse,
  keysOfDense,
  type Numbers,
  relativeError,
  topK,
  type Visibility,
  verticalSlashScores,
} from './oracle.js';
import { deriveSeed, type PlantedHead, plantedLayer, Random, randomLayer } from './random.js';

/** Options of {@link verifyDevice}. */
export interface VerifyOptions {
  /** Tiers to check. Default: all that the device can run. */
  readonly tiers?: readonly Tier[];
  /** A few cases only. On software adapters nearly all of the time goes into compiling kernels. */
  readonly quick?: boolean;
  /** All input derives from it. Default: a new one. */
  readonly seed?: number;
  /** Stops between two cases; the promise then rejects with the signal's reason. */
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: { readonly fraction: number; readonly detail: string }) => void;
}

/** One pattern in one tier and element type, over all cases. */
export interface VerifyRow {
  readonly tier: Tier;
  readonly pattern: HeadPattern['kind'];
  readonly dtype: DType;
  /** Heads that were run, each in another layer or with another budget. */
  readonly cases: number;
  /** Largest relative error of a head's output: `||o - oracle|| / ||oracle||`. */
  readonly worstError: number;
  /** Largest error that passes. */
  readonly tolerance: number;
  /** What went wrong, case by case; nothing when all passed. */
  readonly failures: readonly string[];
}

/** What {@link verifyDevice} found. */
export interface VerifyReport {
  /** Name of the adapter. */
  readonly device: string;
  readonly seed: number;
  readonly rows: readonly VerifyRow[];
  readonly passed: boolean;
}

/** Largest passing relative error; f16 tensors cannot say more than three digits. */
const TOLERANCE: Readonly<Record<DType, number>> = { f32: 1e-5, f16: 2e-3 };
/** Scores as close as this (relative) count as equal when the kept set is compared with the oracle's. */
const TIE = 1e-4;

const DTYPES: readonly DType[] = ['f32', 'f16'];
const KINDS = [
  'dense',
  'a_shape',
  'vertical_slash',
  'block_sparse',
  'tri_shape',
  'static_vertical_slash',
  'x_attention',
  'flex_prefill',
] as const satisfies readonly HeadPattern['kind'][];

/**
 * Runs every pattern on fresh random and planted input and compares with the float64 oracle, in every tier,
 * element type and head size, for awkward lengths, grouped heads and query offsets:
 *
 * - the index that the GPU built must be the oracle's, up to scores that are equal within rounding;
 * - the output, which is filled with NaN before, must be the oracle's for that index;
 * - so must the log-sum-exp of every row.
 *
 * @throws {@link MinferenceError} `device-lost`, or `invalid-argument` for bad options. Wrong results do not throw.
 */
export async function verifyDevice(device: GPUDevice, options: VerifyOptions = {}): Promise<VerifyReport> {
  const {
    tiers = availableTiers(device),
    quick = false,
    seed = Math.floor(Math.random() * 2 ** 31),
    signal,
    onProgress,
  } = options;
  checkInteger('seed', seed, 0, 2 ** 32 - 1);
  const cases = quick ? quickCases() : allCases();
  const tallies = new Map<string, Tally>();
  let done = 0;
  for (const tier of tiers) {
    const prefill = new SparsePrefill(device, { tier });
    try {
      for (const test of cases) {
        signal?.throwIfAborted();
        onProgress?.({ fraction: done / (cases.length * tiers.length), detail: `${tier}: ${test.name}` });
        await runCase(prefill, test, deriveSeed(seed, test.name), (kind) => tallyOf(tallies, tier, kind, test.dtype));
        done++;
      }
    } finally {
      prefill.destroy();
    }
  }
  const rows = tiers.flatMap((tier) =>
    DTYPES.flatMap((dtype) => KINDS.flatMap((kind) => tallies.get(tallyKey(tier, kind, dtype)) ?? [])),
  );
  return { device: profileDevice(device).name, seed, rows, passed: rows.every((r) => r.failures.length === 0) };
}

interface Tally extends VerifyRow {
  cases: number;
  worstError: number;
  readonly failures: string[];
}

function tallyKey(tier: Tier, pattern: HeadPattern['kind'], dtype: DType): string {
  return `${tier} ${pattern} ${dtype}`;
}

function tallyOf(tallies: Map<string, Tally>, tier: Tier, pattern: HeadPattern['kind'], dtype: DType): Tally {
  const key = tallyKey(tier, pattern, dtype);
  const tally = tallies.get(key) ?? { tier, pattern, dtype, cases: 0, worstError: 0, tolerance: TOLERANCE[dtype], failures: [] };
  tallies.set(key, tally);
  return tally;
}

/** One layer whose heads have all kinds of patterns. */
interface VerifyCase {
  readonly name: string;
  readonly shape: AttentionShape;
  readonly dtype: DType;
  readonly planted: boolean;
}

/** Query heads of a case: one for each kind, and more of those that estimate an index, so that they can share key/value heads. */
const HEADS = 12;
/** How many key/value heads they share. */
const KV_HEADS = [12, 6, 4, 3, 2, 1];

function makeCase(shape: Omit<AttentionShape, 'heads'>, dtype: DType, planted: boolean): VerifyCase {
  const heads = HEADS;
  const { headDim, queries, keys, queryOffset } = shape;
  const offset = queryOffset === undefined ? '' : `, offset ${queryOffset}`;
  const name = `${queries} rows, ${keys} keys${offset}, ${heads}/${shape.kvHeads} heads of ${headDim}, ${dtype}, ${planted ? 'planted' : 'random'}`;
  return { name, shape: { ...shape, heads }, dtype, planted };
}

/** One head size per type: on software adapters most of the time goes into compiling kernels. */
function quickCases(): VerifyCase[] {
  const sizes = [
    ['f32', 64],
    ['f16', 128],
  ] as const;
  return sizes.flatMap(([dtype, headDim]) => [
    makeCase({ kvHeads: 4, queries: 200, keys: 200, headDim }, dtype, false),
    makeCase({ kvHeads: 6, queries: 130, keys: 350, headDim, queryOffset: 165 }, dtype, true),
  ]);
}

function allCases(): VerifyCase[] {
  const cases: VerifyCase[] = [];
  for (const dtype of DTYPES) {
    HEAD_DIMS.forEach((headDim, i) => {
      for (const planted of [false, true]) {
        cases.push(
          makeCase({ kvHeads: KV_HEADS[i % KV_HEADS.length] as number, queries: 200, keys: 200, headDim }, dtype, planted),
        );
      }
    });
    [1, 63, 64, 65, 127, 1000].forEach((n, i) => {
      cases.push(
        makeCase({ kvHeads: KV_HEADS[i % KV_HEADS.length] as number, queries: n, keys: n, headDim: 64 }, dtype, i % 2 === 1),
      );
    });
    [0, 37, 64, 300].forEach((queryOffset, i) => {
      cases.push(
        makeCase({ kvHeads: 4, queries: 130, keys: queryOffset + 130 + 50 * (i % 2), headDim: 32, queryOffset }, dtype, i >= 2),
      );
    });
    cases.push(makeCase({ kvHeads: 2, queries: 1, keys: 777, headDim: 128 }, dtype, false));
    cases.push(makeCase({ kvHeads: 4, queries: 200, keys: 1290, headDim: 64, queryOffset: 1077 }, dtype, false));
  }
  return cases;
}

/** Diagonals that the matrix tier computes in a pass of their own, where there are enough keys. */
function wideBand(keys: number, random: Random): number[] {
  return Array.from({ length: keys > 1024 ? random.integer(512, 600) : 0 }, (_, diagonal) => diagonal);
}

/** Random budgets, small against the lengths, so that something is left out. */
function makePatterns(shape: AttentionShape, random: Random): HeadPattern[] {
  const { keys, queries, headDim } = shape;
  const patterns = KINDS.map((kind): HeadPattern => {
    switch (kind) {
      case 'dense':
        return { kind };
      case 'a_shape':
        return { kind, initSize: random.integer(0, 70), localSize: random.integer(1, 100) };
      case 'vertical_slash':
        return { kind, verticalSize: random.integer(0, Math.ceil(keys / 4)), slashSize: random.integer(1, Math.ceil(keys / 3)) };
      case 'block_sparse':
        return { kind, topK: random.integer(1, Math.ceil(keys / BLOCK / 2)) };
      case 'tri_shape':
        return {
          kind,
          initSize: random.integer(0, 70),
          localSize: random.integer(1, 100),
          lastSize: random.integer(0, Math.ceil(queries / 4)),
        };
      case 'static_vertical_slash':
        return staticVerticalSlash(random.distinct(10, 0, keys - 1), [
          ...wideBand(keys, random),
          ...random.distinct(8, 0, keys - 1),
        ]);
      case 'x_attention':
        return { kind, stride: headDim <= 80 ? 8 : 16, threshold: random.pick([0.3, 0.6, 0.9]) };
      case 'flex_prefill':
        return { kind, gamma: random.pick([0.5, 0.8, 0.95]), tau: 0.1, minBudget: random.integer(0, Math.ceil(keys / 3)) };
    }
  });
  patterns.push(
    // A few more than are kept whatever they score.
    { kind: 'vertical_slash', verticalSize: 30 + random.integer(1, 20), slashSize: 100 + random.integer(1, 20) },
    { kind: 'x_attention', stride: headDim <= 80 ? 8 : 16, threshold: random.pick([0.3, 0.6, 0.9]) },
    // Whatever the input is, one head with columns and diagonals and one with blocks.
    { kind: 'flex_prefill', gamma: random.pick([0.5, 0.8, 0.95]), tau: 0, minBudget: random.integer(0, 100) },
    { kind: 'flex_prefill', gamma: random.pick([0.5, 0.8, 0.95]), tau: 1, minBudget: random.integer(0, 100) },
  );
  // Every case gives the key/value heads to other patterns.
  const turn = random.integer(0, patterns.length - 1);
  return [...patterns.slice(turn), ...patterns.slice(0, turn)];
}

function makeInput(test: VerifyCase, random: Random): AttentionInput {
  const { shape, dtype } = test;
  const seed = random.integer(0, 2 ** 31 - 1);
  const plan = Array.from({ length: shape.heads }, (_, head): PlantedHead => {
    if (head % 2 === 0) return { columns: random.distinct(6, 0, shape.keys - 1), slashes: random.distinct(4, 0, shape.keys - 1) };
    const keyBlocks = Math.ceil(shape.keys / BLOCK);
    return { blocks: Array.from({ length: Math.ceil(shape.queries / BLOCK) }, () => random.distinct(2, 0, keyBlocks - 1)) };
  });
  const input = test.planted ? plantedLayer(shape, plan, seed) : randomLayer(shape, seed);
  if (dtype === 'f32') return input;
  const round = (x: Numbers): Float32Array => new Float32Array(new Float16Array(x));
  return { ...input, q: round(input.q), k: round(input.k), v: round(input.v) };
}

/** Runs one case and adds to the tallies of its patterns. */
async function runCase(
  prefill: SparsePrefill,
  test: VerifyCase,
  seed: number,
  tally: (kind: HeadPattern['kind']) => Tally,
): Promise<void> {
  const { shape, name } = test;
  const random = new Random(seed);
  const input = makeInput(test, random);
  const patterns = makePatterns(shape, random);
  let result: GpuResult;
  try {
    result = await runGpu(prefill, test, input, patterns);
  } catch (error) {
    if (error instanceof MinferenceError && error.code === 'device-lost') throw error;
    for (const kind of KINDS) {
      tally(kind).cases++;
      tally(kind).failures.push(`${name}: ${error instanceof Error ? error.message : String(error)}`);
    }
    return;
  }
  const expected = attentionRows(input, (head) =>
    visibility(shape, patterns[head] as HeadPattern, (result.heads[head] as HeadReport).index),
  );
  patterns.forEach((pattern, head) => {
    const to = tally(pattern.kind);
    to.cases++;
    const fail = (problem: string): void => {
      to.failures.push(`${name}, head ${head}: ${problem}`);
    };
    const size = shape.queries * shape.headDim;
    const error = relativeError(
      result.o.subarray(head * size, (head + 1) * size),
      expected.o.subarray(head * size, (head + 1) * size),
    );
    to.worstError = Math.max(to.worstError, error);
    if (error > to.tolerance) fail(`output has relative error ${error.toPrecision(3)}`);
    for (let row = 0; row < shape.queries; row++) {
      const at = head * shape.queries + row;
      const wanted = expected.lse[at] as number;
      const got = result.lse[at] as number;
      if (!(Math.abs(got - wanted) <= to.tolerance * Math.max(4, Math.abs(wanted)))) {
        fail(`log-sum-exp of row ${row} is ${got}, expected ${wanted}`);
        break;
      }
    }
    const problem = indexProblem(input, head, pattern, (result.heads[head] as HeadReport).index);
    if (problem) fail(problem);
  });
}

interface GpuResult {
  readonly o: Float32Array;
  readonly lse: Float32Array;
  readonly heads: readonly HeadReport[];
}

async function runGpu(
  prefill: SparsePrefill,
  test: VerifyCase,
  input: AttentionInput,
  patterns: readonly HeadPattern[],
): Promise<GpuResult> {
  const { device } = prefill;
  const { dtype } = test;
  const { heads, kvHeads, queries, keys, headDim, queryOffset } = input;
  const buffers: GPUBuffer[] = [];
  const upload = (values: Numbers, type: DType): GPUBuffer => {
    const data = type === 'f32' ? new Float32Array(values) : new Float16Array(values);
    const bytes = new Uint8Array(Math.ceil(data.byteLength / 4) * 4);
    bytes.set(new Uint8Array(data.buffer));
    const buffer = device.createBuffer({ size: bytes.length, usage: 0x80 | 0x04 | 0x08 }); // STORAGE | COPY_SRC | COPY_DST
    device.queue.writeBuffer(buffer, 0, bytes);
    buffers.push(buffer);
    return buffer;
  };
  const poison = (count: number): Float32Array => new Float32Array(count).fill(Number.NaN);
  try {
    const q = upload(input.q, dtype);
    const k = upload(input.k, dtype);
    const v = upload(input.v, dtype);
    const o = upload(poison(heads * queries * headDim), dtype);
    const lse = upload(poison(heads * queries), 'f32');
    await prefill.prepare({ headDim, dtype, kinds: KINDS });
    const report = await prefill.run(
      {
        q,
        k,
        v,
        o,
        lse,
        dtype,
        headDim,
        patterns,
        numHeads: heads,
        numKvHeads: kvHeads,
        seqLen: queries,
        kvLen: keys,
        ...(queryOffset === undefined ? {} : { queryOffset }),
      },
      { inspect: true },
    );
    return {
      o: await read(device, o, dtype, heads * queries * headDim),
      lse: await read(device, lse, 'f32', heads * queries),
      heads: report.heads ?? [],
    };
  } finally {
    for (const buffer of buffers) buffer.destroy();
  }
}

async function read(device: GPUDevice, buffer: GPUBuffer, dtype: DType, count: number): Promise<Float32Array> {
  const staging = device.createBuffer({ size: buffer.size, usage: 0x0001 | 0x0008 }); // MAP_READ | COPY_DST
  try {
    const encoder = device.createCommandEncoder();
    encoder.copyBufferToBuffer(buffer, 0, staging, 0, buffer.size);
    device.queue.submit([encoder.finish()]);
    await staging.mapAsync(1);
    const bytes = staging.getMappedRange().slice(0);
    return (dtype === 'f32' ? new Float32Array(bytes) : new Float32Array(new Float16Array(bytes))).subarray(0, count);
  } finally {
    staging.destroy();
  }
}

/** What a pattern lets the rows of a head see, given the index that the GPU built. */
function visibility(shape: AttentionShape, pattern: HeadPattern, index: HeadIndex): Visibility {
  if (index.kind === 'vertical_slash') return keysOfStatic(shape, index.columns, index.runs);
  if (index.kind === 'block_sparse')
    return keysOfBlockSparse(
      shape,
      index.blocks.map((list) => Array.from(list)),
    );
  if (pattern.kind === 'a_shape') return keysOfAShape(shape, pattern.initSize, pattern.localSize);
  if (pattern.kind === 'tri_shape') return keysOfTriShape(shape, pattern.initSize, pattern.localSize, pattern.lastSize);
  return keysOfDense(shape);
}

/** What is wrong with an index, up to ties; nothing for patterns that estimate none. */
function indexProblem(input: AttentionInput, head: number, pattern: HeadPattern, index: HeadIndex): string | undefined {
  if (pattern.kind === 'vertical_slash' && index.kind === 'vertical_slash') {
    const { vertical, slash } = forceVerticalSlash(verticalSlashScores(input, head));
    const columns = selectionProblem('columns', vertical, Math.min(pattern.verticalSize, input.keys), Array.from(index.columns));
    return columns ?? runsProblem(slash, Math.min(Math.max(pattern.slashSize, 1), input.keys), index.runs);
  }
  if (pattern.kind === 'block_sparse' && index.kind === 'block_sparse') {
    const scores = blockScores(input, head);
    const keyBlocks = Math.ceil(input.keys / BLOCK);
    const room = blocksPerRow(input, pattern.topK);
    for (let b = 0; b * BLOCK < input.queries; b++) {
      const { first, last } = blockPositions(input, b);
      const allowed = scores.slice(b * keyBlocks, b * keyBlocks + Math.floor(last / BLOCK) + 1);
      allowed.fill(Number.POSITIVE_INFINITY, Math.floor(first / BLOCK));
      const kept = Array.from(index.blocks[b] ?? []);
      const problem = selectionProblem(`blocks of row block ${b}`, allowed, Math.min(room, allowed.length), kept);
      if (problem) return problem;
    }
  }
  if (pattern.kind === 'x_attention' && index.kind === 'block_sparse')
    return xAttentionProblem(input, head, pattern, index.blocks);
  if (pattern.kind === 'flex_prefill') {
    const { gamma = 0.9, tau = 0.1, minBudget = 1024 } = pattern;
    return flexPrefillProblem(input, head, { gamma, tau, minBudget }, index);
  }
  return undefined;
}

/**
 * The scores that a kept candidate must reach and that a left-out one must not exceed, when the best `k` are kept. (Both are infinite
 * when `k` does not even reach all forced candidates.)
 */
function threshold(scores: Float64Array, k: number): { readonly least: number; readonly most: number } {
  const last = Math.min(...topK(scores, k).map((i) => scores[i] as number));
  const largest = scores.reduce((a, b) => (Number.isFinite(b) ? Math.max(a, Math.abs(b)) : a), 0);
  // Sums of products that nearly cancel are as exact as their largest terms; a flushed denormal is off by itself.
  const slack = TIE * Math.max(Math.abs(Number.isFinite(last) ? last : 0), 1e-3 * largest) + 1e-30;
  return { least: last - slack, most: last + slack };
}

function selectionProblem(what: string, scores: Float64Array, k: number, kept: readonly number[]): string | undefined {
  if (kept.length !== k) return `${what}: ${kept.length} kept, expected ${k}`;
  if (kept.some((x, i) => x >= scores.length || (i > 0 && x <= (kept[i - 1] as number))))
    return `${what}: not ascending, or out of range`;
  if (k === 0) return undefined;
  const { least, most } = threshold(scores, k);
  const best = topK(scores, k);
  if (least === Number.POSITIVE_INFINITY && kept.some((x, i) => x !== best[i]))
    return `${what}: kept ${kept}, but the first forced ones are ${best}`;
  const set = new Set(kept);
  const low = kept.find((i) => (scores[i] as number) < least);
  if (low !== undefined) return `${what}: kept ${low} with score ${scores[low]}, the least should be ${least}`;
  const missed = scores.findIndex((x, i) => x > most && !set.has(i));
  return missed >= 0 ? `${what}: left out ${missed} with score ${scores[missed]}, although ${most} should do` : undefined;
}

/** Runs do not tell which diagonals within them are kept; they must be what some choice among ties gives. */
function runsProblem(scores: Float64Array, k: number, runs: Uint32Array): string | undefined {
  const { least, most } = threshold(scores, k);
  const may = (s: number): boolean => (scores[s] ?? Number.NEGATIVE_INFINITY) >= least;
  const covered = new Uint8Array(scores.length);
  let possible = 0;
  let last = Number.NEGATIVE_INFINITY;
  for (let r = 0; r < runs.length; r += 2) {
    const lo = runs[r] as number;
    const hi = runs[r + 1] as number;
    if (lo > hi || hi >= scores.length || lo - last <= BLOCK)
      return `run ${lo}..${hi} is out of order, out of range or too near to the one before`;
    if (!may(lo) || !may(hi)) return `run ${lo}..${hi} begins or ends at a diagonal whose score is too low`;
    let previous = lo;
    for (let s = lo; s <= hi; s++) {
      covered[s] = 1;
      if (!may(s)) continue;
      if (s - previous > BLOCK) return `run ${lo}..${hi} has a gap at ${previous}..${s}`;
      previous = s;
      possible++;
    }
    last = hi;
  }
  if (covered[0] !== 1) return 'diagonal 0 is not kept';
  const missed = scores.findIndex((x, s) => x > most && covered[s] !== 1);
  if (missed >= 0) return `diagonal ${missed} with score ${scores[missed]} is left out, although ${most} should do`;
  return possible < k ? `the runs hold ${possible} diagonals, expected ${k}` : undefined;
}
