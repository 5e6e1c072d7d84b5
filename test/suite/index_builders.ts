import { BufferPool } from '../../src/device/pool.js';
import { Recorder } from '../../src/device/recorder.js';
import { type BlockSparseHead, blockSparseWorkspaceBytes, recordBlockSparseIndex } from '../../src/index/block_sparse.js';
import type { BuiltIndex, IndexLayer } from '../../src/index/layer.js';
import { recordSlashTiles, type SlashTilesSizes, slashTilesBytes } from '../../src/index/slash_tiles.js';
import { recordTopK, type TopKList } from '../../src/index/topk.js';
import {
  recordVerticalSlashIndex,
  recordVerticalSlashScores,
  type VerticalSlashHead,
  verticalSlashWorkspaceBytes,
} from '../../src/index/vertical_slash.js';
import { storageFormat } from '../../src/kernels/shader_text.js';
import type { DType } from '../../src/kernels/tensor.js';
import {
  type AttentionInput,
  type AttentionShape,
  blockPositions,
  blockScores,
  blockSparseIndex,
  blocksPerRow,
  forceVerticalSlash,
  keysOfVerticalSlash,
  kvHeadOf,
  type Numbers,
  queryOffsetOf,
  scaleOf,
  slashRuns,
  topK,
  verticalSlashScores,
} from '../../src/reference/oracle.js';
import { plantedLayer, randomLayer } from '../../src/reference/random.js';
import { assert, randomOf, type SuiteCase, type SuiteContext } from './context.js';
import { gpuOf, type Layout, makeTensor, PLAIN, readBuffer, roundInput, submit, uploadWords } from './tensors.js';

const UNLIMITED = 2 ** 40;

/** Hands out workspace full of 0xff bytes (NaN as f32, and far out of range as an index). */
class PoisonedPool extends BufferPool {
  readonly #queue: GPUQueue;

  constructor(device: GPUDevice) {
    super(device);
    this.#queue = device.queue;
  }

  override acquire(label: string, size: number): GPUBuffer {
    const buffer = super.acquire(label, size);
    this.#queue.writeBuffer(buffer, 0, new Uint8Array(buffer.size).fill(0xff));
    return buffer;
  }
}

function poisonedRecorder(ctx: SuiteContext): Recorder {
  return new Recorder(ctx.device, new PoisonedPool(ctx.device), gpuOf(ctx.device).pipelines);
}

interface TestShape extends AttentionShape {
  readonly dtype: DType;
  readonly layout?: Layout;
}

const SPREAD: Layout = { order: 'nhd', offset: 12, padding: 8 };

function makeLayer(ctx: SuiteContext, input: AttentionInput, shape: TestShape, workspaceLimit = UNLIMITED): IndexLayer {
  const layout = shape.layout ?? PLAIN;
  const { heads, kvHeads, queries, keys, headDim, dtype } = shape;
  return {
    profile: ctx.profile,
    storage: storageFormat(ctx.profile, dtype),
    q: makeTensor(ctx.device, { heads, rows: queries, headDim }, dtype, layout, input.q),
    k: makeTensor(ctx.device, { heads: kvHeads, rows: keys, headDim }, dtype, layout, input.k),
    queryOffset: queryOffsetOf(shape),
    scale: scaleOf(shape),
    workspaceLimit,
  };
}

/** The input as the GPU sees it. */
function stored(input: AttentionInput, dtype: DType): AttentionInput {
  return dtype === 'f16' ? roundInput(input) : input;
}

async function readIndex(ctx: SuiteContext, rec: Recorder, built: BuiltIndex): Promise<Uint32Array> {
  submit(rec);
  return new Uint32Array(await readBuffer(ctx.device, built.buffer, built.bytes));
}

interface ReadVerticalSlash {
  readonly columns: number[];
  readonly runs: { lo: number; hi: number; prefix: number }[];
}

function decodeVerticalSlash(words: Uint32Array, built: BuiltIndex, entry: number): ReadVerticalSlash {
  const { indexOffset = 0, args = [] } = built.entries[entry] ?? {};
  const [columnRoom = 0, runRoom = 0] = args;
  const nColumns = words[indexOffset] ?? 0;
  const nRuns = words[indexOffset + 1] ?? 0;
  assert(
    nColumns <= columnRoom && nRuns <= runRoom,
    `header (${nColumns}, ${nRuns}) exceeds its room (${columnRoom}, ${runRoom})`,
  );
  const columns = [...words.subarray(indexOffset + 4, indexOffset + 4 + nColumns)];
  const runs = Array.from({ length: nRuns }, (_, i) => {
    const at = indexOffset + 4 + columnRoom + 3 * i;
    return { lo: words[at] ?? 0, hi: words[at + 1] ?? 0, prefix: words[at + 2] ?? 0 };
  });
  return { columns, runs };
}

function same(actual: unknown, expected: unknown, what: string): void {
  const a = JSON.stringify(actual);
  const b = JSON.stringify(expected);
  assert(a === b, `${what}: got ${a.slice(0, 400)}, expected ${b.slice(0, 400)}`);
}

/** Fails unless `chosen` are the `k` best of `scores`, where scores closer than the tolerance count as equal. */
function checkBest(scores: Numbers, chosen: readonly number[], k: number, tolerance: number, what: string): void {
  assert(chosen.length === k, `${what}: ${chosen.length} chosen, expected ${k}`);
  for (let i = 1; i < k; i++) assert((chosen[i] ?? 0) > (chosen[i - 1] ?? 0), `${what}: not ascending at ${i}`);
  assert((chosen.at(-1) ?? 0) < scores.length, `${what}: ${chosen.at(-1)} is out of range`);
  const isChosen = new Set(chosen);
  let worst = Number.POSITIVE_INFINITY;
  let missed = Number.NEGATIVE_INFINITY;
  for (const [i, score] of scores.entries()) {
    if (isChosen.has(i)) worst = Math.min(worst, score);
    else missed = Math.max(missed, score);
  }
  assert(worst >= missed - tolerance, `${what}: chose a score of ${worst}, but left out one of ${missed}`);
}

function checkClose(actual: ArrayLike<number>, expected: Numbers, tolerance: number, what: string): void {
  for (const [i, b] of expected.entries()) {
    const a = actual[i] ?? Number.NaN;
    if (a === b) continue;
    assert(Math.abs(a - b) <= tolerance * (1 + Math.abs(b)), `${what}[${i}] is ${a}, expected ${b}`);
  }
}

const SCORE_TOLERANCE = 3e-5;

/** Builds the index of every head and compares each stage with the oracle. */
async function checkVerticalSlash(
  ctx: SuiteContext,
  input: AttentionInput,
  shape: TestShape,
  budgets: readonly { verticalSize: number; slashSize: number }[],
  workspaceLimit = UNLIMITED,
): Promise<void> {
  const { keys } = shape;
  const layer = makeLayer(ctx, input, shape, workspaceLimit);
  const heads: VerticalSlashHead[] = budgets.map((budget, i) => {
    // Not in ascending order, so that slots and heads differ.
    const head = (shape.heads - 1 - i + shape.heads) % shape.heads;
    return { head, kvHead: kvHeadOf(shape, head), ...budget };
  });

  const scoring = poisonedRecorder(ctx);
  const scores = recordVerticalSlashScores(scoring, layer, heads);
  submit(scoring);
  const values = new Float32Array(await readBuffer(ctx.device, scores.buffer, heads.length * 2 * scores.stride * 4));
  scoring.pool.destroy();

  const rec = poisonedRecorder(ctx);
  const built = recordVerticalSlashIndex(rec, layer, heads);
  const plan = verticalSlashWorkspaceBytes(layer, heads);
  same(plan.index, built.bytes, 'planned index bytes');
  const words = await readIndex(ctx, rec, built);
  checkPeak(rec, plan.transient + plan.index);
  rec.pool.destroy();

  for (const [i, { head, verticalSize, slashSize }] of heads.entries()) {
    const vertical = values.subarray(2 * i * scores.stride, 2 * i * scores.stride + keys);
    const slash = values.subarray((2 * i + 1) * scores.stride, (2 * i + 1) * scores.stride + keys);
    const expected = forceVerticalSlash(verticalSlashScores(input, head));
    checkClose(vertical, expected.vertical, SCORE_TOLERANCE, `vertical of head ${head}`);
    checkClose(slash, expected.slash, SCORE_TOLERANCE, `slash of head ${head}`);

    const nColumns = Math.min(verticalSize, keys);
    const nSlashes = Math.min(Math.max(slashSize, 1), keys);
    const { columns, runs } = decodeVerticalSlash(words, built, i);
    if (nColumns > 0) checkBest(expected.vertical, columns, nColumns, 2 * SCORE_TOLERANCE * 64, `columns of head ${head}`);
    same(columns, topK(vertical, nColumns), `columns of head ${head}`);
    const slashes = topK(slash, nSlashes);
    checkBest(expected.slash, slashes, nSlashes, 2 * SCORE_TOLERANCE * 64, `slashes of head ${head}`);
    same(
      runs,
      slashRuns(slashes).map(({ lo, hi, prefix }) => ({ lo, hi, prefix })),
      `runs of head ${head}`,
    );
  }
}

/** The pool may round every buffer up by a quarter. */
function checkPeak(rec: Recorder, planned: number): void {
  const { peakBytes } = rec.pool.report();
  assert(peakBytes <= 1.25 * planned + 2048, `${peakBytes} bytes of workspace were used, ${planned} planned`);
}

async function checkBlockSparse(
  ctx: SuiteContext,
  input: AttentionInput,
  shape: TestShape,
  budgets: readonly number[],
  workspaceLimit = UNLIMITED,
): Promise<number[][][]> {
  const layer = makeLayer(ctx, input, shape, workspaceLimit);
  const heads: BlockSparseHead[] = budgets.map((topK, i) => {
    const head = (shape.heads - 1 - i + shape.heads) % shape.heads;
    return { head, kvHead: kvHeadOf(shape, head), topK };
  });
  const rec = poisonedRecorder(ctx);
  const built = recordBlockSparseIndex(rec, layer, heads);
  const plan = blockSparseWorkspaceBytes(layer, heads);
  same(plan.index, built.bytes, 'planned index bytes');
  const words = await readIndex(ctx, rec, built);
  checkPeak(rec, plan.transient + plan.index);
  rec.pool.destroy();

  return checkBlockIndex(input, shape, heads, built, words);
}

/** Compares a block-sparse index with the oracle; returns each head's lists. */
export function checkBlockIndex(
  input: AttentionInput,
  shape: AttentionShape,
  heads: readonly BlockSparseHead[],
  built: BuiltIndex,
  words: Uint32Array,
): number[][][] {
  const rowBlocks = Math.ceil(shape.queries / 64);
  const keyBlocks = Math.ceil(shape.keys / 64);
  return heads.map(({ head, topK: budget }, i) => {
    const keep = blocksPerRow(shape, budget);
    const entry = built.entries[i];
    same(entry?.args, [keep], `args of head ${head}`);
    const scores = blockScores(input, head);
    return Array.from({ length: rowBlocks }, (_, b) => {
      const { first, last } = blockPositions(shape, b);
      const allowed = scores.slice(b * keyBlocks, b * keyBlocks + Math.floor(last / 64) + 1);
      allowed.fill(Number.POSITIVE_INFINITY, Math.floor(first / 64));
      const at = (entry?.indexOffset ?? 0) + b * keep;
      const kept = Math.min(keep, allowed.length);
      const list = [...words.subarray(at, at + kept)];
      checkBest(allowed, list, kept, 1e-5, `row block ${b} of head ${head}`);
      return list;
    });
  });
}

function shapeName(s: TestShape): string {
  const layout = s.layout ? ` ${s.layout.order}` : '';
  const offset = s.queryOffset === undefined ? '' : ` offset=${s.queryOffset}`;
  return `H=${s.heads}/${s.kvHeads} N=${s.queries} Nk=${s.keys} D=${s.headDim}${offset} ${s.dtype}${layout}`;
}

// Compiling dominates on software adapters, so there are few pairs of head size and type.
const SHAPES: readonly TestShape[] = [
  { heads: 1, kvHeads: 1, queries: 1, keys: 1, headDim: 64, dtype: 'f32' },
  { heads: 2, kvHeads: 1, queries: 63, keys: 63, headDim: 32, dtype: 'f16' },
  { heads: 1, kvHeads: 1, queries: 64, keys: 64, headDim: 80, dtype: 'f32', layout: SPREAD },
  { heads: 2, kvHeads: 2, queries: 65, keys: 65, headDim: 128, dtype: 'f16', layout: SPREAD },
  { heads: 4, kvHeads: 2, queries: 200, keys: 200, headDim: 32, dtype: 'f16' },
  { heads: 4, kvHeads: 2, queries: 1000, keys: 1000, headDim: 64, dtype: 'f32' },
  { heads: 2, kvHeads: 1, queries: 1000, keys: 1000, headDim: 128, dtype: 'f16', layout: SPREAD },
  { heads: 2, kvHeads: 1, queries: 1, keys: 300, headDim: 80, dtype: 'f32' },
  { heads: 2, kvHeads: 2, queries: 130, keys: 700, headDim: 64, dtype: 'f32', layout: SPREAD },
  { heads: 3, kvHeads: 1, queries: 64, keys: 640, headDim: 32, dtype: 'f16', layout: SPREAD },
  { heads: 2, kvHeads: 1, queries: 70, keys: 400, headDim: 80, queryOffset: 100, dtype: 'f32' },
  { heads: 1, kvHeads: 1, queries: 200, keys: 450, headDim: 128, queryOffset: 128, scale: 0.2, dtype: 'f16' },
];

/** Is it long, or of a head size that brief runs do not have? */
const isExtra = ({ headDim, queries }: TestShape): boolean => (headDim !== 64 && headDim !== 128) || queries > 200;

const BUDGETS = [
  { verticalSize: 40, slashSize: 130 },
  { verticalSize: 0, slashSize: 0 },
  { verticalSize: 100_000, slashSize: 100_000 },
  { verticalSize: 300, slashSize: 101 },
];

const topKCases: SuiteCase[] = [
  {
    name: 'top-k: exact for every length, budget and kind of score, ties to the lowest index',
    async run(ctx) {
      const random = randomOf(ctx, 'top-k');
      const many = ctx.brief ? [1, 64, 1000, 4097] : [1, 2, 63, 64, 65, 1000, 4095, 4096, 4097, 40_000];
      const few = ctx.brief ? [65, 5000] : [1, 65, 1000, 5000];
      const kinds: Record<string, (i: number) => number> = {
        uniform: () => random.uniform(),
        'log-uniform': () => 2 ** (60 * (random.uniform() - 0.5)),
        'few values': () => random.integer(0, 3) / 4,
        equal: () => 0.75,
        zeros: () => 0,
        'mostly zeros': () => (random.uniform() < 0.01 ? random.uniform() : 0),
        'forced head': (i) => (i < 30 ? Number.POSITIVE_INFINITY : random.uniform()),
        'close together': () => 1 + random.integer(0, 9) * 2 ** -23,
        subnormal: () => random.integer(0, 50) * 2 ** -149,
      };
      const values: number[] = [];
      const lists: (TopKList & { name: string })[] = [];
      let output = 0;
      for (const [kind, draw] of Object.entries(kinds)) {
        const thorough = kind === 'uniform' || kind === 'few values';
        for (const count of thorough ? many : few) {
          const start = values.length;
          for (let i = 0; i < count; i++) values.push(draw(i));
          for (const k of new Set([1, Math.min(2, count), Math.ceil(count / 3), random.integer(1, count), count])) {
            lists.push({ name: `${kind}, ${k} of ${count}`, start, count, k, output });
            output += k;
          }
        }
      }
      const scores = new Float32Array(values);
      const rec = poisonedRecorder(ctx);
      const out = rec.workspace('output', output * 4);
      recordTopK(rec, { scores: uploadWords(ctx.device, new Uint32Array(scores.buffer)), lists, output: out });
      submit(rec);
      const words = new Uint32Array(await readBuffer(ctx.device, out, output * 4));
      rec.pool.destroy();
      for (const list of lists) {
        const expected = topK(scores.subarray(list.start, list.start + list.count), list.k);
        same([...words.subarray(list.output, list.output + list.k)], expected, list.name);
      }
    },
  },
];

topKCases.push({
  name: 'top-k: 16,384 of a million, scores all different and nearly all equal',
  once: true,
  async run(ctx) {
    const random = randomOf(ctx, 'top-k of a million');
    const count = 2 ** 20;
    const scores = new Float32Array(2 * count);
    for (let i = 0; i < count; i++) {
      scores[i] = random.uniform();
      scores[count + i] = random.uniform() < 0.01 ? 2 : 1;
    }
    const k = 16_384;
    const lists = [0, 1].map((n): TopKList => ({ start: n * count, count, k, output: n * k }));
    const rec = poisonedRecorder(ctx);
    const out = rec.workspace('output', 2 * k * 4);
    recordTopK(rec, { scores: uploadWords(ctx.device, new Uint32Array(scores.buffer)), lists, output: out });
    submit(rec);
    const words = new Uint32Array(await readBuffer(ctx.device, out, 2 * k * 4));
    rec.pool.destroy();
    for (const n of [0, 1]) {
      same([...words.subarray(n * k, (n + 1) * k)], topK(scores.subarray(n * count, (n + 1) * count), k), `list ${n}`);
    }
  },
});

const verticalSlashCases: SuiteCase[] = [
  {
    name: 'vertical-slash index: known answer',
    async run(ctx) {
      // All rows look at key 100 only. The last 64 rows, 336 to 399, see it at distances 236 to 299.
      const shape: TestShape = { heads: 1, kvHeads: 1, queries: 400, keys: 400, headDim: 64, scale: 1, dtype: 'f32' };
      const q = new Float32Array(400 * 64);
      const k = new Float32Array(400 * 64);
      for (let i = 0; i < 400; i++) q[i * 64 + 5] = 4;
      k[100 * 64 + 5] = 5;
      const layer = makeLayer(ctx, { ...shape, q, k, v: k }, shape);
      const rec = poisonedRecorder(ctx);
      const built = recordVerticalSlashIndex(rec, layer, [{ head: 0, kvHead: 0, verticalSize: 31, slashSize: 164 }]);
      same(built.entries, [{ indexOffset: 0, args: [31, 7] }], 'entries');
      const words = await readIndex(ctx, rec, built);
      const forced = Array.from({ length: 30 }, (_, i) => i);
      same([...words.subarray(0, 41)], [31, 2, 0, 0, ...forced, 100, 0, 99, 0, 236, 299, 163], 'index');
      rec.pool.destroy();
    },
  },
  {
    name: 'vertical-slash index: ties go to the lowest column',
    async run(ctx) {
      // q = 0: every row spreads its attention evenly, so all columns that all rows see are equal.
      const shape: TestShape = { heads: 1, kvHeads: 1, queries: 200, keys: 200, headDim: 64, dtype: 'f32' };
      const zeros = new Float32Array(200 * 64);
      const layer = makeLayer(ctx, { ...shape, q: zeros, k: zeros, v: zeros }, shape);
      const rec = poisonedRecorder(ctx);
      const built = recordVerticalSlashIndex(rec, layer, [{ head: 0, kvHead: 0, verticalSize: 60, slashSize: 1 }]);
      const words = await readIndex(ctx, rec, built);
      same(
        decodeVerticalSlash(words, built, 0),
        { columns: Array.from({ length: 60 }, (_, i) => i), runs: [{ lo: 0, hi: 0, prefix: 0 }] },
        'index',
      );
      rec.pool.destroy();
    },
  },
  ...SHAPES.map((shape): SuiteCase => {
    const name = `vertical-slash index: ${shapeName(shape)}`;
    return {
      name,
      once: isExtra(shape),
      async run(ctx) {
        const input = stored(randomLayer(shape, randomOf(ctx, name).integer(0, 2 ** 31)), shape.dtype);
        await checkVerticalSlash(ctx, input, shape, BUDGETS);
      },
    };
  }),
  {
    name: 'vertical-slash index: sharp attention (large logits)',
    async run(ctx) {
      const shape: TestShape = { heads: 2, kvHeads: 1, queries: 300, keys: 300, headDim: 64, scale: 4, dtype: 'f32' };
      const input = randomLayer(shape, randomOf(ctx, 'sharp').integer(0, 2 ** 31));
      await checkVerticalSlash(ctx, input, shape, [{ verticalSize: 50, slashSize: 120 }]);
    },
  },
  {
    name: 'vertical-slash index: more key tiles than one merge takes, dispatches and heads split',
    once: true,
    async run(ctx) {
      const shape: TestShape = { heads: 3, kvHeads: 1, queries: 64, keys: 20_000, headDim: 128, dtype: 'f16' };
      const input = stored(randomLayer(shape, randomOf(ctx, 'many tiles').integer(0, 2 ** 31)), 'f16');
      const budgets = [
        { verticalSize: 1000, slashSize: 2000 },
        { verticalSize: 100, slashSize: 6000 },
        { verticalSize: 5000, slashSize: 150 },
      ];
      await checkVerticalSlash(ctx, input, shape, budgets, 2 * 20_000 * 16);
    },
  },
  {
    name: 'vertical-slash index: one head at a time gives the same index',
    async run(ctx) {
      const shape: TestShape = { heads: 4, kvHeads: 2, queries: 333, keys: 333, headDim: 64, dtype: 'f32' };
      const input = randomLayer(shape, randomOf(ctx, 'batches').integer(0, 2 ** 31));
      await checkVerticalSlash(ctx, input, shape, BUDGETS, 0);
    },
  },
  {
    name: 'vertical-slash index: planted columns and diagonals are found',
    async run(ctx) {
      const shape: TestShape = { heads: 2, kvHeads: 1, queries: 900, keys: 1100, headDim: 128, dtype: 'f16' };
      const columns = [57, 333, 700];
      const slashes = [
        [150, 400, 555],
        [201, 777],
      ];
      const planted = slashes.map((s) => ({ columns, slashes: s }));
      const input = stored(plantedLayer(shape, planted, randomOf(ctx, 'planted').integer(0, 2 ** 31)), 'f16');
      const layer = makeLayer(ctx, input, shape);
      const rec = poisonedRecorder(ctx);
      const heads = slashes.map((s, head) => ({ head, kvHead: 0, verticalSize: 33, slashSize: 100 + s.length }));
      const built = recordVerticalSlashIndex(rec, layer, heads);
      const words = await readIndex(ctx, rec, built);
      for (const [head, s] of slashes.entries()) {
        const found = decodeVerticalSlash(words, built, head);
        same(found.columns.slice(30), columns, `columns of head ${head}`);
        same(
          found.runs.map(({ lo, hi }) => [lo, hi]),
          slashRuns([...Array(100).keys(), ...s]).map(({ lo, hi }) => [lo, hi]),
          `runs of head ${head}`,
        );
      }
      rec.pool.destroy();
    },
  },
];

const BLOCK_BUDGETS = [3, 1, 5, 1000];

const blockSparseCases: SuiteCase[] = [
  {
    name: 'block-sparse index: known answer',
    async run(ctx) {
      // Means of the key blocks along the one direction that q looks at: 1, 3, 2, 0.
      const shape: TestShape = { heads: 1, kvHeads: 1, queries: 256, keys: 256, headDim: 64, dtype: 'f32' };
      const q = new Float32Array(256 * 64);
      const k = new Float32Array(256 * 64);
      for (let i = 0; i < 256; i++) {
        q[i * 64 + 7] = 1;
        k[i * 64 + 7] = ([1, 3, 2, 0][Math.floor(i / 64)] ?? 0) + (i % 2 === 0 ? 0.5 : -0.5);
      }
      const lists = await checkBlockSparse(ctx, { ...shape, q, k, v: k }, shape, [2]);
      same(lists, [[[0], [0, 1], [1, 2], [1, 3]]], 'blocks');
    },
  },
  {
    name: 'block-sparse index: ties go to the lowest block, also between 0 and -0',
    async run(ctx) {
      const shape: TestShape = { heads: 2, kvHeads: 2, queries: 640, keys: 640, headDim: 64, dtype: 'f32' };
      const q = new Float32Array(2 * 640 * 64);
      // Head 0: every product is a zero of either sign. Head 1: every product is -2.
      const k = Float32Array.from({ length: 2 * 640 * 64 }, (_, i) => (Math.floor(i / 64 / 64) % 2 === 0 ? -1 : 1));
      for (let i = 640; i < 1280; i++) {
        q[i * 64] = 2;
        k[i * 64] = -1;
      }
      const lists = await checkBlockSparse(ctx, { ...shape, q, k, v: k }, shape, [3, 3]);
      const expected = [[0], [0, 1], [0, 1, 2], ...Array.from({ length: 7 }, (_, i) => [0, 1, i + 3])];
      same(lists, [expected, expected], 'blocks');
    },
  },
  ...SHAPES.map((shape): SuiteCase => {
    const name = `block-sparse index: ${shapeName(shape)}`;
    return {
      name,
      once: isExtra(shape),
      async run(ctx) {
        const input = stored(randomLayer(shape, randomOf(ctx, name).integer(0, 2 ** 31)), shape.dtype);
        await checkBlockSparse(ctx, input, shape, BLOCK_BUDGETS.slice(0, shape.heads));
      },
    };
  }),
  {
    name: 'block-sparse index: several strips of row blocks, one head at a time or all together',
    once: true,
    async run(ctx) {
      const shape: TestShape = { heads: 3, kvHeads: 1, queries: 9000, keys: 9100, headDim: 64, dtype: 'f32' };
      const input = randomLayer(shape, randomOf(ctx, 'strips').integer(0, 2 ** 31));
      const one = await checkBlockSparse(ctx, input, shape, [7, 1, 100], 0);
      const all = await checkBlockSparse(ctx, input, shape, [7, 1, 100]);
      same(one, all, 'blocks');
    },
  },
  {
    name: 'block-sparse index: more key blocks than one chunk of the selection takes, and rows that count as long',
    once: true,
    async run(ctx) {
      for (const blocks of [2100, 4099]) {
        const shape: TestShape = { heads: 3, kvHeads: 1, queries: 100, keys: blocks * 64 + 17, headDim: 32, dtype: 'f32' };
        const input = randomLayer(shape, randomOf(ctx, `${blocks} blocks`).integer(0, 2 ** 31));
        await checkBlockSparse(ctx, input, shape, [400, 100, 1]);
      }
    },
  },
  {
    // Short rows; so many equal scores that the list of candidates overflows; few enough that it does not.
    name: 'block-sparse index: hundreds of equal scores, of which some are kept',
    once: true,
    async run(ctx) {
      for (const [blocks, equal] of [
        [900, (b: number) => b < 10 || b >= 30],
        [4200, (b: number) => b < 10 || b >= 30],
        [4200, (b: number) => b % 15 === 1],
      ] as const) {
        const shape: TestShape = { heads: 1, kvHeads: 1, queries: 64, keys: blocks * 64, headDim: 64, dtype: 'f32' };
        const q = new Float32Array(64 * 64).fill(1);
        // Two blocks score more than all others, many 64 less, the rest still less.
        const k = new Float32Array(blocks * 64 * 64).fill(-1);
        for (let b = 0; b < blocks; b++) if (equal(b)) k.fill(0, b * 4096, (b + 1) * 4096);
        for (const b of [5, 611]) k.fill(1, b * 4096, (b + 1) * 4096);
        const [[list] = []] = await checkBlockSparse(ctx, { ...shape, q, k, v: k }, shape, [128]);
        const tied = Array.from({ length: blocks }, (_, b) => b).filter((b) => equal(b) && b !== 5 && b !== 611);
        same(
          list,
          [5, ...tied.slice(0, 125), 611, blocks - 1].sort((x, y) => x - y),
          `blocks of ${blocks}`,
        );
      }
    },
  },
  {
    name: 'block-sparse index: planted blocks are found',
    async run(ctx) {
      const shape: TestShape = { heads: 2, kvHeads: 1, queries: 640, keys: 640, headDim: 128, dtype: 'f16' };
      const plan = [0, 1].map((head) => Array.from({ length: 10 }, (_, b) => (b < 3 ? [] : [(b * 7 + head) % b])));
      const input = stored(
        plantedLayer(
          shape,
          plan.map((blocks) => ({ blocks })),
          randomOf(ctx, 'planted blocks').integer(0, 2 ** 31),
        ),
        'f16',
      );
      const lists = await checkBlockSparse(ctx, input, shape, [2, 2]);
      for (const head of [0, 1]) {
        same(lists[1 - head], blockSparseIndex(input, head, 2), `blocks of head ${head}`);
        for (let b = 3; b < 10; b++) same(lists[1 - head]?.[b], [plan[head]?.[b]?.[0], b], `row block ${b} of head ${head}`);
      }
    },
  },
];

/** Columns and diagonals of one head, and from how many diagonals on a run at the diagonal is a band (0: never). */
interface SlashHead {
  readonly columns: readonly number[];
  readonly slashes: readonly number[];
  readonly band: number;
}

const NO_KEY = 0xffffffff;

/** Runs the conversion of vertical-slash indices to tiles; the words of each head. */
async function slashTilesOf(ctx: SuiteContext, heads: readonly SlashHead[], sizes: SlashTilesSizes): Promise<Uint32Array[]> {
  const index: number[] = [];
  const entries = heads.flatMap(({ columns, slashes, band }, head) => {
    const runs = slashRuns(slashes);
    const at = index.length;
    index.push(
      columns.length,
      runs.length,
      NO_KEY,
      NO_KEY,
      ...columns,
      ...runs.flatMap(({ lo, hi, prefix }) => [lo, hi, prefix]),
    );
    return [head, 0, at, columns.length, runs.length, band, NO_KEY, NO_KEY];
  });
  const rec = poisonedRecorder(ctx);
  const buffer = uploadWords(ctx.device, new Uint32Array(index));
  const tiles = recordSlashTiles(rec, buffer, new Uint32Array(entries), sizes);
  const bytes = slashTilesBytes(
    heads.map((h) => h.columns.length),
    sizes,
  );
  submit(rec);
  const words = new Uint32Array(await readBuffer(ctx.device, tiles.buffer, bytes));
  checkPeak(rec, bytes);
  rec.pool.destroy();
  buffer.destroy();
  return tiles.offsets.map((start, head) => words.subarray(start, tiles.offsets[head + 1] ?? words.length));
}

const slashTilesCases: SuiteCase[] = [
  {
    name: 'slash tiles: known answer',
    async run(ctx) {
      // Block 0 sees 64 keys of the run at 0, block 1 also 58 of the 64 of the run at 70: distances 70 to 127.
      const heads = [{ columns: [3, 40, 90], slashes: [0, 70], band: 0 }];
      const [words] = await slashTilesOf(ctx, heads, { rows: 100, queryOffset: 0, tile: 16 });
      const distances = [...Array(64).keys(), ...Array.from({ length: 64 }, (_, i) => 70 + i)];
      same(
        [...(words as Uint32Array)],
        [
          0,
          ...[4, 5, 8, 9],
          ...[3, 40, 90, ...Array(13).fill(NO_KEY)],
          ...[0xffffffff, 0xffffffff, 0xffffffc0, 0xffffffff],
          ...distances,
        ],
        'tiles',
      );
    },
  },
  {
    name: 'slash tiles: the keys of every block, against the oracle',
    async run(ctx) {
      const random = randomOf(ctx, 'slash tiles');
      for (const [rows, queryOffset, tile] of [
        [1, 0, 16],
        [63, 0, 32],
        [200, 37, 16],
        [330, 1000, 64],
      ] as const) {
        const keys = rows + queryOffset;
        const heads = [0, 1, 20, 64].map((band): SlashHead => {
          const width = Math.min(keys, random.pick([1, Math.max(1, band - 1), Math.max(1, band)]));
          const slashes = [...Array(width).keys()];
          for (let s = width - 1 + random.integer(1, 200); s < keys; s += random.pick([1, 63, 64, 65, 130, 300])) slashes.push(s);
          return { columns: random.distinct(Math.min(keys, random.integer(0, 50)), 0, keys - 1), slashes, band };
        });
        const read = await slashTilesOf(ctx, heads, { rows, queryOffset, tile });
        for (const [h, { columns, slashes, band }] of heads.entries()) {
          const words = read[h] as Uint32Array;
          const shape = { heads: 1, kvHeads: 1, queries: rows, keys, headDim: 32, queryOffset };
          const visible = keysOfVerticalSlash(shape, columns, slashes);
          const { hi } = slashRuns(slashes)[0] as { hi: number };
          const hasBand = band > 0 && hi + 1 >= band;
          const inBand = keysOfVerticalSlash(shape, [], hasBand ? [...Array(hi + 1).keys()] : []);
          same(words[0], hasBand ? 1 : 0, `head ${h}: band`);
          const blocks = Math.ceil(rows / 64);
          const room = Math.ceil(columns.length / tile) * tile;
          const columnsAt = 1 + 2 * blocks;
          const bitsAt = columnsAt + room;
          const distancesAt = bitsAt + Math.ceil((queryOffset + 64 * blocks) / 32);
          for (let b = 0; b < blocks; b++) {
            const [runTiles = 0, allTiles = 0] = words.subarray(1 + 2 * b);
            const end = queryOffset + 64 * b + 63;
            const ofRuns = [...words.subarray(distancesAt, distancesAt + runTiles * tile)].map((d) => end - d);
            const ofColumns = [...words.subarray(columnsAt, columnsAt + (allTiles - runTiles) * tile)].filter(
              (c) => c > end || (((words[bitsAt + Math.floor((end - c) / 32)] as number) >>> ((end - c) % 32)) & 1) === 0,
            );
            for (const row of [64 * b, Math.min(64 * b + 63, rows - 1)]) {
              const seen = [...ofRuns, ...ofColumns].filter((key) => key >= 0 && key <= queryOffset + row).sort((x, y) => x - y);
              const expected = [...Array(keys).keys()].filter((key) => visible(row, key) && !inBand(row, key));
              same(seen, expected, `head ${h} of ${rows} rows from ${queryOffset} on: keys of row ${row}`);
            }
          }
        }
      }
    },
  },
];

/** Index builders: known answers, and every stage against the float64 oracle. */
export const indexBuilderCases: SuiteCase[] = [...topKCases, ...verticalSlashCases, ...slashTilesCases, ...blockSparseCases];
