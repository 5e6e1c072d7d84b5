import fc from 'fast-check';
import type { DeviceProfile } from '../../src/device/profile.js';
import {
  type AttentionKernel,
  type AttentionTiling,
  attentionGrid,
  attentionShader,
  candidateTilings,
  chooseTiling,
  HEAD_DIMS,
  tilingName,
} from '../../src/kernels/attention.js';
import { mergeSplitsShader } from '../../src/kernels/merge_splits.js';
import { storageFormat } from '../../src/kernels/shader_text.js';
import type { DType } from '../../src/kernels/tensor.js';
import {
  type AttentionInput,
  type AttentionShape,
  attentionRows,
  BLOCK,
  blockPositions,
  blockSparseIndex,
  blocksPerRow,
  keysOfAShape,
  keysOfBlockSparse,
  keysOfDense,
  keysOfVerticalSlash,
  kvHeadOf,
  queryOffsetOf,
  relativeError,
  type SlashRun,
  slashRuns,
  type Visibility,
  verticalSlashIndex,
  worstRowError,
} from '../../src/reference/oracle.js';
import { plantedLayer, type Random, randomLayer } from '../../src/reference/random.js';
import { attentionCall } from './attention_call.js';
import { assert, headDimOf, randomOf, type SuiteCase, type SuiteContext } from './context.js';
import { gpuOf, type Layout, PLAIN, recorderOf, roundInput, submit, uploadWords } from './tensors.js';

const KERNELS: readonly AttentionKernel[] = ['dense', 'a_shape', 'vertical_slash', 'block_sparse'];

/** What one head keeps, for one of the kernels. */
type HeadPattern =
  | { readonly kernel: 'dense' }
  | { readonly kernel: 'a_shape'; readonly initSize: number; readonly localSize: number }
  | { readonly kernel: 'vertical_slash'; readonly columns: readonly number[]; readonly slashes: readonly number[] }
  | { readonly kernel: 'block_sparse'; readonly blocks: readonly (readonly number[])[]; readonly topK: number };

/** One dispatch of an attention kernel, and how to check it. */
interface AttentionRun {
  readonly input: AttentionInput;
  /** One pattern per query head, all of the same kernel. */
  readonly heads: readonly HeadPattern[];
  readonly dtype?: DType;
  readonly layout?: Layout;
  readonly tiling?: AttentionTiling;
  readonly lse?: boolean;
  /** Query rows to check; all unless given. */
  readonly rows?: readonly number[];
  /** A dispatch for every two tiles of rows, in turn with heads and with tiles along x. */
  readonly split?: boolean;
  /** Deal out the keys of a row among so many workgroups. */
  readonly splits?: number;
}

/** The visibility of a pattern in the oracle's terms. */
function visibilityOf(shape: AttentionShape, pattern: HeadPattern): Visibility {
  switch (pattern.kernel) {
    case 'dense':
      return keysOfDense(shape);
    case 'a_shape':
      return keysOfAShape(shape, pattern.initSize, pattern.localSize);
    case 'vertical_slash':
      return keysOfVerticalSlash(shape, pattern.columns, pattern.slashes);
    case 'block_sparse':
      return keysOfBlockSparse(shape, pattern.blocks);
  }
}

/** A random pattern, made to hit the corners of the kernel: run gaps of 64 and 65, columns inside and outside of runs. */
function randomPattern(kernel: AttentionKernel, shape: AttentionShape, random: Random): HeadPattern {
  const offset = queryOffsetOf(shape);
  const end = offset + shape.queries;
  switch (kernel) {
    case 'dense':
      return { kernel };
    case 'a_shape':
      return { kernel, initSize: random.integer(0, Math.min(100, end)), localSize: random.integer(1, Math.min(150, end)) };
    case 'vertical_slash': {
      const columns = random.distinct(random.integer(0, 70), 0, shape.keys - 1);
      const slashes = new Set([0]);
      let s = 0;
      for (let i = random.integer(0, 12); i > 0; i--) {
        s += random.pick([1, 2, 63, 64, 65, 66, 130, random.integer(1, 300)]);
        if (s < shape.keys) slashes.add(s);
      }
      return { kernel, columns, slashes: [...slashes].sort((a, b) => a - b) };
    }
    case 'block_sparse': {
      const topK = random.integer(1, Math.ceil(shape.keys / BLOCK) + 1);
      const room = blocksPerRow(shape, topK);
      const blocks = Array.from({ length: Math.ceil(shape.queries / BLOCK) }, (_, b) => {
        const { first, last } = blockPositions(shape, b);
        const diagonal = new Set([Math.floor(first / BLOCK), Math.floor(last / BLOCK)]);
        const earlier = random.distinct(room - diagonal.size, 0, Math.floor(first / BLOCK) - 1);
        return [...earlier, ...diagonal];
      });
      return { kernel, blocks, topK };
    }
  }
}

/** The GPU index of some heads, and what their head entries say of it (see the kernels' WGSL). */
interface PackedIndex {
  readonly words: Uint32Array<ArrayBuffer>;
  readonly entries: readonly { readonly offset: number; readonly arg0: number; readonly arg1: number }[];
}

// Filling for index words that no kernel may read: as a key or block number it lies far outside.
const JUNK = 0x7ffffff0;

function packIndex(shape: AttentionShape, heads: readonly HeadPattern[]): PackedIndex {
  const words: number[] = [JUNK, JUNK, JUNK];
  const entries = heads.map((head) => {
    const offset = words.length;
    switch (head.kernel) {
      case 'dense':
        return { offset: 0, arg0: 0, arg1: 0 };
      case 'a_shape':
        return { offset: 0, arg0: head.initSize, arg1: head.localSize };
      case 'vertical_slash': {
        const runs: SlashRun[] = slashRuns(head.slashes);
        const columnRoom = head.columns.length + 3;
        const runRoom = runs.length + 1;
        words.push(head.columns.length, runs.length, JUNK, JUNK, ...head.columns, JUNK, JUNK, JUNK);
        for (const run of runs) words.push(run.lo, run.hi, run.prefix);
        words.push(JUNK, JUNK, JUNK);
        return { offset, arg0: columnRoom, arg1: runRoom };
      }
      case 'block_sparse': {
        const room = blocksPerRow(shape, head.topK);
        for (const list of head.blocks) {
          for (let i = 0; i < room; i++) words.push(list[i] ?? JUNK);
        }
        return { offset, arg0: room, arg1: 0 };
      }
    }
  });
  return { words: new Uint32Array(words), entries };
}

/** Runs one attention kernel and returns its output as `[heads, rows, headDim]` and `[heads, rows]`. */
async function runAttention(ctx: SuiteContext, run: AttentionRun): Promise<{ o: Float32Array; lse: Float32Array }> {
  const { device } = ctx;
  const { input, dtype = 'f32', layout = PLAIN } = run;
  const { heads, queries, headDim } = input;
  const tiling = run.tiling ?? chooseTiling(ctx.profile, headDim);
  const kernel = run.heads[0]?.kernel ?? 'dense';
  const index = packIndex(input, run.heads);
  const indexBuffer = uploadWords(device, index.words);
  const entries = uploadWords(
    device,
    new Uint32Array(index.entries.flatMap((e, head) => [head, kvHeadOf(input, head), e.offset, e.arg0, e.arg1, 0, 0, 0])),
  );
  // Heads whose rows take turns have one entry, the first one's.
  const { group = 1 } = tiling;
  const firsts = uploadWords(
    device,
    new Uint32Array(Array.from({ length: heads / group }, (_, i) => [i * group, i, 0, 0, 0, 0, 0, 0]).flat()),
  );
  const recorder = recorderOf(device);
  const storage = storageFormat(ctx.profile, dtype);
  const shader = attentionShader(kernel, headDim, storage, tiling);
  const { splits = 1 } = run;
  const call = attentionCall(recorder, input, { dtype, layout, splits });
  const writesLse = run.lse ?? false;
  const record = (rowTileEnd: number, rowTiles: number, headsFirst = false): void => {
    const bindings = call.bindings({ rowTileEnd, headsFirst, writesLse });
    recorder.dispatch({
      stage: 'kernel',
      shader,
      bindings: [...bindings, group > 1 ? firsts : entries, indexBuffer],
      workgroups: attentionGrid(rowTiles, heads / group, headsFirst, splits),
    });
  };
  const tiles = Math.ceil((queries * group) / tiling.blockM);
  if (run.split) {
    for (let tile = tiles; tile > 0; tile -= 2) record(tile, Math.min(2, tile), tile % 4 < 2);
  } else {
    record(tiles, tiles);
  }
  call.merge(entries, writesLse, storage);
  await gpuOf(device).pipelines.prepare([shader, mergeSplitsShader(headDim, storage)]);
  submit(recorder);
  const result = await call.read();
  for (const buffer of [indexBuffer, entries, firsts]) buffer.destroy();
  return result;
}

/** Runs one attention kernel and compares o and lse with the oracle. */
async function checkAttention(ctx: SuiteContext, run: AttentionRun): Promise<void> {
  const { input, dtype = 'f32' } = run;
  const { heads, queries, headDim } = input;
  const tiling = run.tiling ?? chooseTiling(ctx.profile, headDim);
  const rounded = dtype === 'f16';
  const tolerance = rounded ? 2e-3 : 1e-5;
  const seen = rounded ? roundInput(input) : input;
  const what = `${run.heads[0]?.kernel} ${JSON.stringify({ heads, kvHeads: input.kvHeads, queries, keys: input.keys, headDim, offset: queryOffsetOf(input), dtype })} tiling ${JSON.stringify(tiling)}`;
  const actual = await runAttention(ctx, run);
  const expected = attentionRows(seen, (head) => visibilityOf(seen, run.heads[head] as HeadPattern), run.rows);
  const pick = (x: Float32Array, width: number): Float32Array => {
    const out = new Float32Array(heads * expected.rows.length * width);
    for (let head = 0; head < heads; head++) {
      expected.rows.forEach((row, i) => {
        const from = (head * queries + row) * width;
        out.set(x.subarray(from, from + width), (head * expected.rows.length + i) * width);
      });
    }
    return out;
  };
  const o = pick(actual.o, headDim);
  const where = (row: number): string =>
    `head ${Math.floor(row / expected.rows.length)} row ${expected.rows[row % expected.rows.length]}`;
  const error = relativeError(o, expected.o);
  const worst = worstRowError(o, expected.o, headDim);
  assert(
    error <= tolerance,
    `${what}: o has relative error ${error}, allowed ${tolerance}; worst ${where(worst.row)}: ${worst.error}`,
  );
  // Rows that attend to many keys have small outputs: rounding weighs more there than in the whole.
  assert(
    worst.error <= 8 * tolerance,
    `${what}: o of ${where(worst.row)} has relative error ${worst.error}, allowed ${8 * tolerance}`,
  );
  if (run.lse) {
    const lse = pick(actual.lse, 1);
    expected.lse.forEach((value, row) => {
      const difference = Math.abs((lse[row] as number) - value);
      const allowed = tolerance * Math.max(4, Math.abs(value));
      assert(difference <= allowed, `${what}: lse of ${where(row)} is ${lse[row]}, expected ${value}`);
    });
  } else {
    assert(actual.lse.every(Number.isNaN), `${what}: lse was written without being asked for`);
  }
}

interface RandomRun extends Omit<AttentionRun, 'input' | 'heads'> {
  readonly kernel: AttentionKernel;
  readonly shape: AttentionShape;
}

/** Checks a kernel on random tensors with a random pattern per head. */
async function checkRandom(ctx: SuiteContext, name: string, run: RandomRun): Promise<void> {
  const random = randomOf(ctx, name);
  const input = randomLayer(run.shape, random.integer(0, 2 ** 31));
  const heads = Array.from({ length: run.shape.heads }, () => randomPattern(run.kernel, run.shape, random));
  await checkAttention(ctx, { ...run, input, heads });
}

/** A tiling and the element type of the tensors that it is for. */
export interface TilingCandidate {
  readonly dtype: DType;
  readonly tiling: AttentionTiling;
}

/** Every tiling that {@link candidateTilings} names for a device and for a GPU like it, and what either gets with 16 KiB and no subgroups. */
export function everyTiling(profile: DeviceProfile, headDim: number): TilingCandidate[] {
  const found = new Map<string, TilingCandidate>();
  const { maxComputeInvocationsPerWorkgroup } = profile.limits;
  const limits = { maxComputeWorkgroupStorageSize: 16384, maxComputeInvocationsPerWorkgroup } as GPUSupportedLimits;
  for (const software of new Set([profile.software, false])) {
    const candidates = [
      ...candidateTilings({ ...profile, software }, headDim),
      chooseTiling({ ...profile, software, subgroups: false, limits }, headDim),
    ];
    for (const candidate of candidates) {
      // Unrolled loops compile for minutes on software adapters.
      const tiling = { ...candidate, unroll: candidate.unroll && !profile.software };
      for (const dtype of ['f16', 'f32'] as const) found.set(`${dtype} ${tilingName(tiling)}`, { dtype, tiling });
    }
  }
  return [...found.values()];
}

/** On a software adapter compiling is slow: there every `count`-th variant stands for all. */
function isTurn(ctx: SuiteContext, variant: number, count: number, turn: number): boolean {
  return !ctx.profile.software || variant % count === turn;
}

const cases: SuiteCase[] = [];

function add(name: string, run: (ctx: SuiteContext, name: string) => Promise<void>, once = false): void {
  cases.push({ name, run: (ctx) => run(ctx, name), once });
}

const square = (heads: number, kvHeads: number, n: number, headDim: number): AttentionShape => ({
  heads,
  kvHeads,
  queries: n,
  keys: n,
  headDim,
});

/** The head size that a kernel is tried with on every runtime, beside the two of brief runs. */
const HEAD_DIM_EVERYWHERE: Readonly<Record<AttentionKernel, number>> = {
  dense: 32,
  a_shape: 80,
  vertical_slash: 96,
  block_sparse: 256,
};

KERNELS.forEach((kernel, kernelNumber) => {
  HEAD_DIMS.forEach((headDim, dimNumber) => {
    const briefType = headDim === 64 ? 'f32' : headDim === 128 ? 'f16' : undefined;
    add(
      `${kernel}: head size ${headDim}, with lse`,
      async (ctx, name) => {
        for (const [i, dtype] of (['f32', 'f16'] as const).entries()) {
          const wanted =
            ctx.brief && briefType ? dtype === briefType : headDim === 64 || isTurn(ctx, i, 2, (kernelNumber + dimNumber) % 2);
          if (!wanted) continue;
          await checkRandom(ctx, `${name} ${dtype}`, { kernel, shape: square(2, 1, 200, headDim), dtype, lse: true });
        }
      },
      briefType === undefined && headDim !== HEAD_DIM_EVERYWHERE[kernel],
    );
  });

  add(`${kernel}: lengths 1, 63, 64, 65, 127, 200`, async (ctx, name) => {
    for (const n of [1, 63, 64, 65, 127, 200]) {
      await checkRandom(ctx, `${name} ${n}`, { kernel, shape: square(2, 2, n, 64), lse: n % 2 === 1 });
    }
  });

  add(
    `${kernel}: 1000 rows of 4 heads`,
    (ctx, name) => checkRandom(ctx, name, { kernel, shape: square(4, 2, 1000, 64), lse: true, dtype: 'f16' }),
    true,
  );

  add(`${kernel}: 1, 2, 3 and 4 query heads for each key/value head`, async (ctx, name) => {
    for (const group of [1, 2, 3, 4]) {
      const shape = square(2 * group, 2, 127, headDimOf(ctx, 'f32', 32));
      await checkRandom(ctx, `${name} ${group}`, { kernel, shape, lse: true });
    }
  });

  add(`${kernel}: query offsets 0, 37, 64 and keys beyond the last row`, async (ctx, name) => {
    for (const queryOffset of [0, 37, 64, 300]) {
      for (const extra of [0, 50]) {
        const [keys, headDim] = [queryOffset + 130 + extra, headDimOf(ctx, 'f32', 32)];
        const shape = { heads: 2, kvHeads: 1, queries: 130, keys, headDim, queryOffset };
        await checkRandom(ctx, `${name} ${queryOffset} ${extra}`, { kernel, shape, lse: true });
      }
    }
  });

  add(`${kernel}: one row on a long cache`, (ctx, name) =>
    checkRandom(ctx, name, { kernel, shape: { heads: 2, kvHeads: 1, queries: 1, keys: 777, headDim: 64 }, lse: true }),
  );

  add(`${kernel}: strides, offsets and padding of both layouts`, async (ctx, name) => {
    for (const order of ['hnd', 'nhd'] as const) {
      for (const dtype of ['f32', 'f16'] as const) {
        for (const layout of [
          { order, offset: 0, padding: 0 },
          { order, offset: 260, padding: 12 },
        ]) {
          const shape = { heads: 4, kvHeads: 2, queries: 70, keys: 110, headDim: headDimOf(ctx, dtype, 64) };
          await checkRandom(ctx, `${name} ${JSON.stringify(layout)} ${dtype}`, { kernel, shape, dtype, layout, lse: true });
        }
      }
    }
  });

  add(`${kernel}: custom scale`, async (ctx, name) => {
    for (const scale of [0, 0.01, 0.5]) {
      await checkRandom(ctx, `${name} ${scale}`, { kernel, shape: { ...square(2, 1, 100, 64), scale }, lse: true });
    }
  });

  add(`${kernel}: work cut into many dispatches`, (ctx, name) =>
    checkRandom(ctx, name, { kernel, shape: square(3, 1, 330, headDimOf(ctx, 'f32', 32)), split: true, lse: true }),
  );

  add(`${kernel}: keys of a row split among workgroups, of which some see none`, async (ctx, name) => {
    for (const [queries, queryOffset, splits, dtype] of [
      [1, 0, 2, 'f32'],
      [5, 700, 4, 'f32'],
      [130, 37, 3, 'f16'],
      [70, 100, 20, 'f32'],
    ] as const) {
      const shape = {
        heads: 4,
        kvHeads: 2,
        queries,
        keys: queries + queryOffset + 20,
        headDim: headDimOf(ctx, dtype, 64),
        queryOffset,
      };
      await checkRandom(ctx, `${name} ${splits}`, { kernel, shape, dtype, splits, lse: splits !== 3 });
    }
    const layout = { order: 'nhd', offset: 260, padding: 12 } as const;
    await checkRandom(ctx, `${name} strides`, { kernel, shape: square(3, 1, 150, 64), layout, splits: 2, lse: true });
  });

  add(
    `${kernel}: every tiling of every head size`,
    async (ctx, name) => {
      const random = randomOf(ctx, name);
      const all = HEAD_DIMS.flatMap((headDim) =>
        everyTiling(ctx.profile, headDim).map((candidate) => ({ headDim, ...candidate })),
      );
      // Other ones each time where compiling is slow.
      const tried = ctx.profile.software ? [random.pick(all), random.pick(all)] : all;
      for (const { headDim, dtype, tiling } of tried) {
        const shape = { heads: 1, kvHeads: 1, queries: 40, keys: 150, headDim, queryOffset: 100 };
        await checkRandom(ctx, `${name} ${headDim} ${dtype} ${tilingName(tiling)}`, { kernel, shape, dtype, tiling, lse: true });
      }
    },
    true,
  );

  add(`${kernel}: random shapes`, async (ctx, name) => {
    const shapes = fc.record({
      headDim: fc.constantFrom(32, 64),
      kvHeads: fc.integer({ min: 1, max: 2 }),
      group: fc.integer({ min: 1, max: 3 }),
      queries: fc.integer({ min: 1, max: 220 }),
      queryOffset: fc.integer({ min: 0, max: 150 }),
      extra: fc.integer({ min: 0, max: 70 }),
      dtype: fc.constantFrom<DType>('f32', 'f16'),
      order: fc.constantFrom<Layout['order']>('hnd', 'nhd'),
      lse: fc.boolean(),
    });
    await fc.assert(
      fc.asyncProperty(shapes, ({ headDim: size, kvHeads, group, queries, queryOffset, extra, dtype, order, lse }) => {
        const [keys, headDim] = [queryOffset + queries + extra, headDimOf(ctx, dtype, size)];
        return checkRandom(ctx, name, {
          kernel,
          shape: { heads: kvHeads * group, kvHeads, queries, keys, headDim, queryOffset },
          dtype,
          layout: { order, offset: 0, padding: 0 },
          lse,
        });
      }),
      { seed: ctx.seed, numRuns: ctx.brief ? 3 : 8, endOnFailure: true },
    );
  });
});

add('dense: rows of heads that share keys take turns', async (ctx, name) => {
  // Every group is a program of its own.
  for (const [group, queries, queryOffset, splits, dtype] of [
    [3, 1, 50, 1, 'f32'],
    [3, 23, 500, 3, 'f32'],
    [7, 20, 33, 2, 'f16'],
  ] as const) {
    if (ctx.brief && group === 7) continue;
    const headDim = headDimOf(ctx, dtype, 64);
    const shape = { heads: 2 * group, kvHeads: 2, queries, keys: queries + queryOffset + 9, headDim, queryOffset };
    const tiling = { ...chooseTiling(ctx.profile, headDim), group };
    await checkRandom(ctx, `${name} ${group} ${queries}`, { kernel: 'dense', shape, dtype, tiling, splits, lse: queries !== 23 });
  }
  const shape = { heads: 6, kvHeads: 2, queries: 30, keys: 90, headDim: headDimOf(ctx, 'f32', 64) };
  const layout = { order: 'nhd', offset: 260, padding: 12 } as const;
  const tiling = { ...chooseTiling(ctx.profile, shape.headDim), group: 3 };
  await checkRandom(ctx, `${name} strides`, { kernel: 'dense', shape, tiling, layout, lse: true });
});

add('a_shape: no initial keys, a window of one, windows longer than the input', async (ctx, name) => {
  const input = randomLayer(square(4, 2, 140, 64), randomOf(ctx, name).integer(0, 2 ** 31));
  const heads: HeadPattern[] = [
    { kernel: 'a_shape', initSize: 0, localSize: 1 },
    { kernel: 'a_shape', initSize: 0, localSize: 64 },
    { kernel: 'a_shape', initSize: 1000, localSize: 1 },
    { kernel: 'a_shape', initSize: 5, localSize: 100_000 },
  ];
  await checkAttention(ctx, { input, heads, lse: true });
});

add(
  'vertical_slash: no columns, all columns, slashes 64 and 65 apart, all slashes, slashes that no row reaches',
  async (ctx, name) => {
    const n = 260;
    const shape = square(6, 2, n, headDimOf(ctx, 'f32', 32));
    const all = Array.from({ length: n }, (_, i) => i);
    const input = randomLayer(shape, randomOf(ctx, name).integer(0, 2 ** 31));
    const heads: HeadPattern[] = [
      { kernel: 'vertical_slash', columns: [], slashes: [0] },
      { kernel: 'vertical_slash', columns: all, slashes: [0] },
      { kernel: 'vertical_slash', columns: [0, 63, 64, 65, 127, 128, 195, 259], slashes: [0, 64, 129, 194] },
      { kernel: 'vertical_slash', columns: [], slashes: [0, 65, 130, 195] },
      { kernel: 'vertical_slash', columns: all, slashes: all },
      { kernel: 'vertical_slash', columns: [1], slashes: [0, 1, 2, 258, 259] },
    ];
    await checkAttention(ctx, { input, heads, lse: true });
  },
);

add('vertical_slash: rows that see no key get zeros and an lse of minus infinity', async (ctx, name) => {
  const shape = square(1, 1, 150, headDimOf(ctx, 'f16', 64));
  const column = 20;
  const input = roundInput(randomLayer(shape, randomOf(ctx, name).integer(0, 2 ** 31)));
  const heads: HeadPattern[] = [{ kernel: 'vertical_slash', columns: [column], slashes: [] }];
  const { o, lse } = await runAttention(ctx, { input, heads, dtype: 'f16', lse: true });
  const value = input.v.slice(column * shape.headDim, (column + 1) * shape.headDim);
  for (let row = 0; row < shape.queries; row++) {
    const actual = o.subarray(row * shape.headDim, (row + 1) * shape.headDim);
    const expected = row >= column ? value : value.map(() => 0);
    assert(
      actual.every((x, d) => Math.abs(x - (expected[d] as number)) <= 2e-3 * Math.abs(expected[d] as number)),
      `row ${row} is ${actual}, expected ${expected}`,
    );
    const finite = Number.isFinite(lse[row]);
    assert(row >= column ? finite : lse[row] === Number.NEGATIVE_INFINITY, `lse of row ${row} is ${lse[row]}`);
  }
});

add('vertical_slash: planted columns and diagonals, index built by the oracle', async (ctx, name) => {
  const shape: AttentionShape = { heads: 4, kvHeads: 2, queries: 600, keys: 700, headDim: 64 };
  const planted = [
    { columns: [111, 400], slashes: [250] },
    { columns: [111, 400], slashes: [130, 333] },
    { columns: [55, 650] },
    { slashes: [200, 201, 202, 265] },
  ];
  const input = plantedLayer(shape, planted, randomOf(ctx, name).integer(0, 2 ** 31));
  const heads = planted.map(
    (_, head): HeadPattern => ({ kernel: 'vertical_slash', ...verticalSlashIndex(input, head, 40, 110) }),
  );
  await checkAttention(ctx, { input, heads, lse: true });
});

add('block_sparse: planted blocks, index built by the oracle, one pattern size per head', async (ctx, name) => {
  const shape: AttentionShape = { heads: 4, kvHeads: 2, queries: 500, keys: 600, headDim: 64 };
  const planted = [0, 1, 2, 3].map(() => ({ blocks: Array.from({ length: 8 }, (_, b) => (b > 2 ? [0, 2] : [0])) }));
  const input = plantedLayer(shape, planted, randomOf(ctx, name).integer(0, 2 ** 31));
  const heads = [1, 3, 5, 100].map(
    (topK, head): HeadPattern => ({ kernel: 'block_sparse', topK, blocks: blockSparseIndex(input, head, topK) }),
  );
  await checkAttention(ctx, { input, heads, lse: true });
});

add('dense: large logits neither overflow nor lose the largest one', async (ctx, name) => {
  const shape = { ...square(1, 1, 130, 64), scale: 3 };
  const random = randomOf(ctx, name);
  const input = randomLayer(shape, random.integer(0, 2 ** 31));
  await checkAttention(ctx, { input, heads: [{ kernel: 'dense' }], lse: true });
});

/** The four attention kernels, driven with hand-made and oracle-built indices, against the float64 oracle. */
export const attentionCases: readonly SuiteCase[] = cases;
