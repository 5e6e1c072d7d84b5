import type { Bindable, Recorder } from '../../src/device/recorder.js';
import {
  MATRIX_FEATURE,
  MATRIX_SHAPES,
  type MatrixShape,
  matrixShapes,
  SUBGROUP_SIZE,
} from '../../src/device/subgroup_matrix.js';
import { recordSlashTiles, type SlashTilesSizes } from '../../src/index/slash_tiles.js';
import { type AttentionKernel, attentionGrid } from '../../src/kernels/attention.js';
import { type MatrixStorage, matrixAttentionShader } from '../../src/kernels/matrix_attention.js';
import {
  MATRIX_TILINGS,
  type MatrixKernel,
  type MatrixTiling,
  matrixBlockM,
  type TilingShape,
  tilingProblem,
} from '../../src/kernels/matrix_config.js';
import { EMULATION_BYTES, emulatedOps } from '../../src/kernels/matrix_emulation.js';
import type { MatrixOps } from '../../src/kernels/matrix_ops.js';
import { mergeSplitsShader } from '../../src/kernels/merge_splits.js';
import {
  type AttentionShape,
  attentionRows,
  BLOCK,
  blockPositions,
  blocksPerRow,
  keysOfAShape,
  keysOfBlockSparse,
  keysOfDense,
  keysOfVerticalSlash,
  kvHeadOf,
  queryOffsetOf,
  relativeError,
  slashRuns,
  type Visibility,
  worstRowError,
} from '../../src/reference/oracle.js';
import { type Random, randomLayer } from '../../src/reference/random.js';
import { attentionCall } from './attention_call.js';
import { assert, randomOf, type SuiteCase, type SuiteContext } from './context.js';
import { gpuOf, type Layout, PLAIN, recorderOf, roundInput, submit, uploadWords } from './tensors.js';

/** What one head keeps. */
interface HeadIndex {
  readonly visible: Visibility;
  readonly words: readonly number[];
  /** arg0, arg1 and arg2 of the head's entry. */
  readonly args: readonly [number, number, number];
}

// Filling for index words that no kernel may read: as a key or block number it lies far outside.
const JUNK = 0x7ffffff0;

/** The head entries and the index as a matrix kernel binds them: vertical-slash reads tiles, which are recorded. */
export function indexBindings(
  rec: Recorder,
  kernel: MatrixKernel,
  index: GPUBuffer,
  entries: Uint32Array<ArrayBuffer>,
  sizes: SlashTilesSizes,
): readonly Bindable[] {
  if (kernel !== 'vertical_slash') return [rec.constant(entries), index];
  const { heads, buffer } = recordSlashTiles(rec, index, entries, sizes);
  return [heads, buffer];
}

/**
 * A random pattern of one head, made to hit run gaps of 64 and 65 and columns inside and outside of runs.
 * @param band of vertical-slash: least diagonals of a band, which half of the heads then have
 * @param columns of vertical-slash: most columns
 */
function randomIndex(
  kernel: AttentionKernel,
  shape: AttentionShape,
  random: Random,
  { band, columns: most }: { readonly band: number; readonly columns: number },
): HeadIndex {
  const offset = queryOffsetOf(shape);
  const end = offset + shape.queries;
  switch (kernel) {
    case 'dense':
      return { visible: keysOfDense(shape), words: [], args: [0, 0, 0] };
    case 'a_shape': {
      const [initSize, localSize] = [random.integer(0, Math.min(100, end)), random.integer(1, Math.min(150, end))];
      // Tri-shape every other time: the last rows see every key.
      const last = random.pick([0, random.integer(1, shape.queries)]);
      const visible = keysOfAShape(shape, initSize, localSize);
      const causal = keysOfDense(shape);
      return {
        visible: (row, key) => visible(row, key) || (row >= shape.queries - last && causal(row, key)),
        words: [],
        args: [initSize, localSize, last],
      };
    }
    case 'vertical_slash': {
      const columns = random.distinct(random.integer(0, most), 0, shape.keys - 1);
      const width = band > 0 ? random.pick([1, Math.max(1, band - 1), band, band + random.integer(1, 100)]) : 1;
      const slashes = new Set(Array.from({ length: Math.min(width, shape.keys) }, (_, i) => i));
      let s = width - 1;
      for (let i = random.integer(0, 12); i > 0; i--) {
        s += random.pick([1, 2, 63, 64, 65, 66, 130, random.integer(1, 300)]);
        if (s < shape.keys) slashes.add(s);
      }
      const sorted = [...slashes].sort((a, b) => a - b);
      const runs = slashRuns(sorted);
      const words = [
        columns.length,
        runs.length,
        JUNK,
        JUNK,
        ...columns,
        JUNK,
        ...runs.flatMap((run) => [run.lo, run.hi, run.prefix]),
        JUNK,
      ];
      return { visible: keysOfVerticalSlash(shape, columns, sorted), words, args: [columns.length + 1, runs.length, band] };
    }
    case 'block_sparse': {
      const room = blocksPerRow(shape, random.integer(1, Math.ceil(shape.keys / BLOCK) + 1));
      const blocks = Array.from({ length: Math.ceil(shape.queries / BLOCK) }, (_, b) => {
        const { first, last } = blockPositions(shape, b);
        const diagonal = new Set([Math.floor(first / BLOCK), Math.floor(last / BLOCK)]);
        return [...random.distinct(room - diagonal.size, 0, Math.floor(first / BLOCK) - 1), ...diagonal];
      });
      const words = blocks.flatMap((list) => Array.from({ length: room }, (_, i) => list[i] ?? JUNK));
      return { visible: keysOfBlockSparse(shape, blocks), words, args: [room, 0, 0] };
    }
  }
}

/** One run of a matrix-tier kernel. */
export interface MatrixRun {
  readonly kernel: AttentionKernel;
  readonly shape: AttentionShape;
  readonly tiling: MatrixTiling;
  /** Of vertical-slash: bands of so many diagonals or more are another kernel's, which runs first. */
  readonly band?: { readonly diagonals: number; readonly tiling: MatrixTiling };
  /** Of vertical-slash: most columns of a head. */
  readonly columns?: number;
  readonly storage?: MatrixStorage;
  readonly layout?: Layout;
  readonly lse?: boolean;
  /** A dispatch for every two tiles of rows, in turn with heads and with tiles along x. */
  readonly split?: boolean;
  /** Deal out the keys of a row among so many workgroups; the tiling must allow that. */
  readonly splits?: number;
  /** Multiplies keys from this one on, so that row maxima rise late. */
  readonly boost?: { readonly key: number; readonly factor: number };
}

/**
 * Runs a matrix-tier kernel on random tensors and a random index and compares o and lse with the oracle. On a
 * device without subgroup matrices the kernel's emulation runs.
 */
export async function checkMatrix(ctx: SuiteContext, name: string, run: MatrixRun): Promise<void> {
  const { device } = ctx;
  const { kernel, shape, tiling, storage = 'f16-wide', layout = PLAIN } = run;
  const { heads, kvHeads, queries, keys, headDim } = shape;
  const random = randomOf(ctx, name);
  const offset = queryOffsetOf(shape);
  const raw = randomLayer(shape, random.integer(0, 2 ** 31));
  if (run.boost) {
    const { key, factor } = run.boost;
    for (let head = 0; head < kvHeads; head++) {
      for (let i = (head * keys + key) * headDim; i < (head + 1) * keys * headDim; i++) raw.k[i] = (raw.k[i] as number) * factor;
    }
  }
  const input = roundInput(raw);
  const index = Array.from({ length: heads }, () =>
    randomIndex(kernel, shape, random, { band: run.band?.diagonals ?? 0, columns: run.columns ?? 70 }),
  );
  const offsets: number[] = [];
  const words = [JUNK, JUNK, JUNK];
  for (const head of index) {
    offsets.push(words.length);
    words.push(...head.words);
  }
  const indexBuffer = uploadWords(device, new Uint32Array(words));
  const entryWords = new Uint32Array(
    index.flatMap((e, head) => [head, kvHeadOf(shape, head), offsets[head] ?? 0, ...e.args, 0, 0]),
  );
  const emulated = !device.features.has(MATRIX_FEATURE);
  const { group = 1 } = tiling;
  const { splits = 1 } = run;
  const recorder = recorderOf(device);
  const pass = (kernel: MatrixKernel, tiling: MatrixTiling, writesLse: boolean) => {
    const sizes = { rows: queries, queryOffset: offset, tile: tiling.keys };
    const firsts = entryWords.filter((_, i) => Math.floor(i / 8) % group === 0);
    const indexed = indexBindings(recorder, kernel, indexBuffer, firsts, sizes);
    const ops: MatrixOps | undefined = emulated ? emulatedOps(tiling.shape) : undefined;
    const shader = matrixAttentionShader(kernel, headDim, storage, tiling, ops);
    const tiles = Math.ceil((queries * group) / matrixBlockM(tiling));
    const bytes = tiles * heads * splits * tiling.subgroups * SUBGROUP_SIZE * EMULATION_BYTES;
    return { shader, tiles, writesLse, indexed, bank: emulated ? [recorder.workspace('emulated matrices', bytes)] : [] };
  };
  const call = attentionCall(recorder, input, { dtype: 'f16', layout, splits });
  const last = pass(kernel, tiling, run.lse ?? false);
  const passes = [...(run.band ? [pass('slash_band', run.band.tiling, true)] : []), last];
  const record = (
    { shader, bank, indexed, writesLse }: typeof last,
    rowTileEnd: number,
    rowTiles: number,
    headsFirst = false,
  ): void => {
    const bindings = call.bindings({ rowTileEnd, headsFirst, writesLse });
    recorder.dispatch({
      stage: 'kernel',
      shader,
      bindings: [...bindings, ...indexed, ...bank],
      workgroups: attentionGrid(rowTiles, heads / group, headsFirst, splits),
    });
  };
  await gpuOf(device).pipelines.prepare([...passes.map(({ shader }) => shader), mergeSplitsShader(headDim, 'f16')]);
  for (const each of passes) {
    const { tiles } = each;
    if (!run.split) {
      record(each, tiles, tiles);
      continue;
    }
    for (let tile = tiles; tile > 0; tile -= 2) record(each, tile, Math.min(2, tile), tile % 4 < 2);
  }
  call.merge(recorder.constant(entryWords), run.lse ?? false, 'f16');
  submit(recorder);
  const { o: actual, lse: actualLse } = await call.read();
  indexBuffer.destroy();

  const expected = attentionRows(input, (head) => (index[head] as HeadIndex).visible);
  const what = `${passes.map(({ shader }) => shader.label).join(', ')} ${JSON.stringify(shape)}`;
  const error = relativeError(actual, expected.o);
  const worst = worstRowError(actual, expected.o, headDim);
  const where = (row: number): string => `head ${Math.floor(row / queries)} row ${row % queries}`;
  assert(error <= 2e-3, `${what}: o has relative error ${error}, allowed 2e-3; worst ${where(worst.row)}: ${worst.error}`);
  assert(worst.error <= 1.6e-2, `${what}: o of ${where(worst.row)} has relative error ${worst.error}, allowed 1.6e-2`);
  if (run.lse) {
    expected.lse.forEach((value, row) => {
      const difference = Math.abs((actualLse[row] as number) - value);
      assert(
        difference <= 2e-3 * Math.max(4, Math.abs(value)),
        `${what}: lse of ${where(row)} is ${actualLse[row]}, expected ${value}`,
      );
    });
  } else {
    assert(actualLse.every(Number.isNaN), `${what}: lse was written without being asked for`);
  }
}

/** Matrix shapes to test: the device's own, or all in emulation. */
function shapes(ctx: SuiteContext): readonly MatrixShape[] {
  const own = matrixShapes(ctx.device);
  return own.length > 0 ? own : MATRIX_SHAPES;
}

/** Whether the device has subgroup matrices, and so more workgroup memory than software devices. */
function onDevice(ctx: SuiteContext): boolean {
  return matrixShapes(ctx.device).length > 0;
}

/** Both ways of ordering a subgroup's memory accesses; emulation knows only one. */
function syncs(ctx: SuiteContext): readonly MatrixTiling['sync'][] {
  return onDevice(ctx) ? ['workgroup', 'subgroup'] : ['workgroup'];
}

/** A tiling that suits every pattern and, at all head sizes up to 128, the memory of software devices. */
function plainTiling(ctx: SuiteContext, sync: MatrixTiling['sync'] = 'workgroup'): MatrixTiling {
  const shape = shapes(ctx)[0] as MatrixShape;
  return {
    shape,
    sync,
    subgroups: 4,
    strips: 1,
    keys: 32,
    scoreKeys: 32,
    queries: 'registers',
    staging: 'single',
    pipelined: false,
  };
}

const KERNELS: readonly AttentionKernel[] = ['dense', 'a_shape', 'vertical_slash', 'block_sparse'];

const cases: SuiteCase[] = [];

function add(name: string, run: (ctx: SuiteContext, name: string) => Promise<void>): void {
  cases.push({ name, needs: 'f16', run: (ctx) => run(ctx, name) });
}

for (const kernel of KERNELS) {
  for (const headDim of [64, 96, 128]) {
    add(`${kernel}: head size ${headDim}, lengths, query offsets, grouped heads, lse`, async (ctx, name) => {
      for (const sync of syncs(ctx)) {
        const tiling = plainTiling(ctx, sync);
        for (const n of [1, 63, 64, 65, 200, 300]) {
          const shape = { heads: 2, kvHeads: n % 2 === 0 ? 1 : 2, queries: n, keys: n, headDim };
          await checkMatrix(ctx, `${name} ${sync} ${n}`, { kernel, shape, tiling, lse: n !== 64 });
        }
        for (const queryOffset of [37, 64]) {
          const shape = { heads: 4, kvHeads: 2, queries: 100, keys: queryOffset + 100 + 50, headDim, queryOffset };
          await checkMatrix(ctx, `${name} ${sync} offset ${queryOffset}`, { kernel, shape, tiling, lse: true });
        }
      }
    });
  }

  add(`${kernel}: strides, offsets and padding of both layouts`, async (ctx, name) => {
    for (const order of ['hnd', 'nhd'] as const) {
      for (const [offset, padding, storage] of [
        [0, 0, 'f16-wide'],
        [264, 8, 'f16-wide'],
        [260, 12, 'f16'],
      ] as const) {
        // Each storage format is a program of its own: one pattern shows it.
        if (storage === 'f16' && kernel !== 'dense') continue;
        const shape = { heads: 4, kvHeads: 2, queries: 70, keys: 110, headDim: 64 };
        const layout = { order, offset, padding };
        await checkMatrix(ctx, `${name} ${order} ${padding}`, {
          kernel,
          shape,
          tiling: plainTiling(ctx),
          storage,
          layout,
          lse: true,
        });
      }
    }
  });

  add(`${kernel}: maxima that rise late, scales of zero and below, work cut into many dispatches`, async (ctx, name) => {
    const tiling = plainTiling(ctx);
    const shape = { heads: 2, kvHeads: 1, queries: 130, keys: 170, headDim: 64 };
    const run = { kernel, tiling, lse: true };
    await checkMatrix(ctx, `${name} late`, { ...run, shape, boost: { key: 90, factor: 10 } });
    for (const scale of [0, -0.2]) await checkMatrix(ctx, `${name} ${scale}`, { ...run, shape: { ...shape, scale } });
    await checkMatrix(ctx, `${name} split`, { ...run, shape: { ...shape, queries: 330, keys: 330 }, split: true });
  });
}

// Bands in pairs and without, and the rest in one strip and in two.
for (const [rows, change] of [
  ['pairs', {}],
  ['strips', { subgroups: 2, strips: 2, keys: 16, scoreKeys: 16 }],
] as const) {
  add(`bands of vertical-slash first, ${rows}`, async (ctx, name) => {
    const tiling = { ...plainTiling(ctx), ...change };
    const pairs: MatrixTiling = { ...plainTiling(ctx), subgroups: onDevice(ctx) ? 8 : 4, staging: 'overlap', pairs: true };
    const plain: MatrixTiling = { ...plainTiling(ctx), subgroups: 8 };
    const run = { kernel: 'vertical_slash', tiling, lse: true } as const;
    for (const [diagonals, n, queryOffset, band, headDim] of [
      [1, 65, 0, plain, 32],
      [64, 200, 0, plain, 32],
      [100, 330, 0, pairs, 32],
      [70, 150, 37, pairs, rows === 'pairs' ? 80 : 32],
      [130, 129, 256, plain, 32],
    ] as const) {
      const shape = { heads: 4, kvHeads: 2, queries: n, keys: n + queryOffset, headDim, queryOffset };
      const bands = { diagonals, tiling: band };
      await checkMatrix(ctx, `${name} ${diagonals} ${n}`, { ...run, shape, band: bands, split: n === 330 });
    }
    const shape = { heads: 2, kvHeads: 1, queries: 150, keys: 187, headDim: 32, queryOffset: 37 };
    const band = { diagonals: 20, tiling: pairs };
    await checkMatrix(ctx, `${name} late`, { ...run, shape, band, boost: { key: 70, factor: 10 } });
    const layout = { order: 'nhd', offset: 260, padding: 12 } as const;
    await checkMatrix(ctx, `${name} strides`, { ...run, shape, band, layout, storage: 'f16', lse: true });
  });
}

// Keys of a row among several workgroups, of which some see none.
for (const [rows, change] of [
  ['pairs', { staging: 'overlap', pairs: true }],
  ['strips', { subgroups: 2, strips: 2, keys: 16, scoreKeys: 16 }],
] as const) {
  for (const kernel of ['dense', 'a_shape'] as const) {
    add(`${kernel}: split keys, ${rows}`, async (ctx, name) => {
      const tiling: MatrixTiling = { ...plainTiling(ctx), ...change, split: true };
      for (const [queries, queryOffset, splits] of [
        [5, 300, 4],
        [130, 37, 3],
        [1, 40, 8],
      ] as const) {
        const shape = { heads: 4, kvHeads: 2, queries, keys: queries + queryOffset + 20, headDim: 64, queryOffset };
        await checkMatrix(ctx, `${name} ${splits}`, { kernel, shape, tiling, splits, lse: splits !== 3 });
      }
      const shape = { heads: 2, kvHeads: 1, queries: 70, keys: 170, headDim: 32, queryOffset: 100 };
      const layout = { order: 'nhd', offset: 260, padding: 12 } as const;
      const run = { kernel, shape, tiling, splits: 2, lse: true };
      await checkMatrix(ctx, `${name} late`, { ...run, layout, storage: 'f16', boost: { key: 90, factor: 10 } });
    });
  }
  add(`dense: rows of heads that share keys take turns, ${rows}`, async (ctx, name) => {
    for (const [group, queries, queryOffset, splits] of [
      [3, 1, 50, 1],
      [3, 50, 33, 2],
    ] as const) {
      const shape = { heads: 2 * group, kvHeads: 2, queries, keys: queries + queryOffset + 9, headDim: 64, queryOffset };
      const tiling: MatrixTiling = { ...plainTiling(ctx), ...change, split: true, group };
      await checkMatrix(ctx, `${name} ${queries}`, { kernel: 'dense', shape, tiling, splits, lse: splits === 1 });
    }
  });
}

add('vertical_slash: many columns', async (ctx, name) => {
  const shape = { heads: 8, kvHeads: 4, queries: 70, keys: 2070, headDim: 32, queryOffset: 2000 };
  const one: MatrixTiling = { ...plainTiling(ctx), subgroups: 1, keys: 16, scoreKeys: 16 };
  for (const tiling of [one, { ...one, staging: 'prefetch' } as const]) {
    await checkMatrix(ctx, `${name} ${tiling.staging}`, { kernel: 'vertical_slash', shape, tiling, lse: true, columns: 700 });
  }
});

add('head size 80: columns that do not fill the last group', (ctx, name) => {
  const shape = { heads: 2, kvHeads: 1, queries: 150, keys: 187, headDim: 80 };
  return checkMatrix(ctx, name, {
    kernel: 'vertical_slash',
    shape,
    tiling: plainTiling(ctx),
    lse: true,
    boost: { key: 70, factor: 6 },
  });
});

/** What makes two tilings different programs. */
function program({ subgroups, keys, scoreKeys, ...rest }: TilingShape): string {
  return JSON.stringify({ ...rest, parts: Math.min(keys / scoreKeys, 2), narrow: scoreKeys === 16 });
}

// Software devices compile slowly: of tilings that differ in sizes only, the one with the least workgroup.
// `bench tune` checks them all.
const programs = new Map(MATRIX_TILINGS.map((t) => [program(t), t]));
for (const t of programs.values()) {
  add(`tiling ${JSON.stringify(t)}`, async (ctx, name) => {
    for (const sync of syncs(ctx)) {
      const tiling: MatrixTiling = { ...t, shape: shapes(ctx)[0] as MatrixShape, sync };
      const headDim = tilingProblem('a_shape', 32, tiling) ? 128 : 32;
      const kernel = headDim > 32 || tilingProblem('vertical_slash', headDim, tiling) ? 'a_shape' : 'vertical_slash';
      const shape = { heads: 2, kvHeads: 1, queries: 150, keys: 187, headDim };
      await checkMatrix(ctx, name, { kernel, shape, tiling, lse: true, boost: { key: 70, factor: 6 } });
    }
  });
}

// Scores run ahead of the output, in each pattern's own order of keys. What is scored after the last tile is a stale K: the
// factor makes it count, were it not left out.
for (const kernel of KERNELS) {
  add(`${kernel}: scores ahead of the output`, async (ctx, name) => {
    const shape = { heads: 2, kvHeads: 1, queries: 150, keys: 187, headDim: 32 };
    const strips: Partial<MatrixTiling> = { subgroups: 2, strips: 2, keys: 16, scoreKeys: 16, staging: 'overlap' };
    const single: Partial<MatrixTiling> = { staging: 'overlap-single' };
    const parts: Partial<MatrixTiling> = { keys: 64, staging: 'prefetch', pipelined: true };
    for (const change of kernel === 'vertical_slash' ? [parts] : [strips, single, parts]) {
      const tiling = { ...plainTiling(ctx), ...change };
      await checkMatrix(ctx, name, { kernel, shape, tiling, lse: true, boost: { key: 70, factor: 30 } });
    }
  });
}

// Pairs whose scores pass through their slice of K: every pattern, lengths, late maxima, split keys, bands before.
for (const kernel of KERNELS) {
  add(`${kernel}: scores through slices of K`, async (ctx, name) => {
    // Four subgroups need heads of 128; two make the walk of vertical-slash too short.
    const walks = kernel === 'vertical_slash';
    const slices: Partial<MatrixTiling> = { staging: 'overlap', pairs: true, slices: true, subgroups: walks ? 4 : 2 };
    const headDim = walks ? 128 : 64;
    for (const sync of syncs(ctx)) {
      const tiling: MatrixTiling = { ...plainTiling(ctx, sync), ...slices };
      const run = { kernel, tiling, lse: true, boost: { key: 70, factor: 20 } };
      for (const [queries, queryOffset] of [
        [1, 130],
        [65, 37],
        [130, 0],
      ] as const) {
        const shape = { heads: 1, kvHeads: 1, queries, keys: queries + queryOffset + 9, headDim, queryOffset };
        await checkMatrix(ctx, `${name} ${queries}`, { ...run, shape });
      }
      const shape = { heads: 2, kvHeads: 1, queries: 70, keys: 130, headDim, queryOffset: 50 };
      const layout = { order: 'nhd', offset: 260, padding: 12 } as const;
      const negative = { ...shape, scale: -0.2 };
      await checkMatrix(ctx, `${name} strides`, { ...run, shape: negative, layout, storage: 'f16' });
      if (!onDevice(ctx) && walks) continue; // one dispatch with four subgroups is as slow as all of the above with two
      for (const other of shapes(ctx).slice(1)) {
        await checkMatrix(ctx, `${name} ${JSON.stringify(other)}`, { ...run, shape, tiling: { ...tiling, shape: other } });
      }
      if (kernel === 'dense' || kernel === 'a_shape')
        await checkMatrix(ctx, `${name} split`, { kernel, shape, tiling: { ...tiling, split: true }, splits: 3, lse: true });
    }
  });
}

add('vertical_slash: scores through slices of K, bands first, many columns', async (ctx, name) => {
  const slices: Partial<MatrixTiling> = { staging: 'overlap', pairs: true, slices: true };
  const tiling: MatrixTiling = { ...plainTiling(ctx), ...slices };
  const run = { kernel: 'vertical_slash', tiling, lse: true } as const;
  const shape = { heads: 2, kvHeads: 1, queries: 70, keys: 130, headDim: 128, queryOffset: 50 };
  await checkMatrix(ctx, `${name} band`, { ...run, shape, band: { diagonals: 20, tiling }, boost: { key: 70, factor: 10 } });
  const long = { ...shape, heads: 1, queries: 33, queryOffset: 900, keys: 933 };
  await checkMatrix(ctx, `${name} columns`, { ...run, shape: long, columns: 700 });
});

add('every matrix shape', async (ctx, name) => {
  for (const shape of shapes(ctx)) {
    const size = { heads: 1, kvHeads: 1, queries: 100, keys: 100, headDim: 32 };
    const tiling: MatrixTiling = { ...plainTiling(ctx), shape, subgroups: 2, keys: 32 };
    await checkMatrix(ctx, `${name} ${JSON.stringify(shape)}`, { kernel: 'dense', shape: size, tiling, lse: true });
  }
});

/** The matrix tier's attention kernels, emulated where the device has no subgroup matrices. */
export const matrixCases: readonly SuiteCase[] = cases;
