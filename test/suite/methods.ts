import { MinferenceError } from '../../src/errors.js';
import { recordFlexPrefillIndex } from '../../src/index/flex_prefill.js';
import { storageFormat } from '../../src/kernels/shader_text.js';
import { dilated1, dilated2, reuseIndices, staticVerticalSlash, strided } from '../../src/patterns/static.js';
import {
  type FlexPrefillBudgets,
  flexPrefillBlockScores,
  flexPrefillForcedBlocks,
  flexPrefillIndex,
  flexPrefillProblem,
  jensenShannonDistance,
  keysOfStatic,
  keysOfTriShape,
  xAttentionProblem,
} from '../../src/reference/methods.js';
import {
  type AttentionInput,
  type AttentionShape,
  attentionRows,
  keysOfBlockSparse,
  keysOfDense,
  kvHeadOf,
  queryOffsetOf,
  relativeError,
  scaleOf,
  type Visibility,
} from '../../src/reference/oracle.js';
import { plantedLayer, randomLayer } from '../../src/reference/random.js';
import { readIndices } from '../../src/scheduler/inspect.js';
import { SparsePrefill } from '../../src/scheduler/prefill.js';
import type { HeadIndex, HeadPattern, RunReport } from '../../src/scheduler/types.js';
import { assert, randomOf, type SuiteCase, type SuiteContext } from './context.js';
import { makeTensor, readTensor, recorderOf, roundInput, submit } from './tensors.js';

/** A layer's output and report. */
export interface LayerRun {
  readonly o: Float32Array;
  readonly lse: Float32Array;
  readonly report: RunReport;
}

/** The call as the kernels of this tier see it: rounded to f16 where they store f16. */
export function inputFor(ctx: SuiteContext, input: AttentionInput): AttentionInput {
  return ctx.profile.tier === 'portable' ? input : roundInput(input);
}

/** Runs one layer through the public API. */
export async function runLayer(
  ctx: SuiteContext,
  input: AttentionInput,
  patterns: HeadPattern | readonly HeadPattern[],
): Promise<LayerRun> {
  const { device } = ctx;
  const { heads, kvHeads, queries, keys, headDim } = input;
  const dtype = ctx.profile.tier === 'portable' ? 'f32' : 'f16';
  const q = makeTensor(device, { heads, rows: queries, headDim }, dtype, undefined, input.q);
  const k = makeTensor(device, { heads: kvHeads, rows: keys, headDim }, dtype, undefined, input.k);
  const v = makeTensor(device, { heads: kvHeads, rows: keys, headDim }, dtype, undefined, input.v);
  const o = makeTensor(device, { heads, rows: queries, headDim }, dtype);
  const lse = makeTensor(device, { heads, rows: queries, headDim: 1 }, 'f32');
  const prefill = new SparsePrefill(device, { tier: ctx.profile.tier });
  try {
    const report = await prefill.run(
      {
        q: q.buffer,
        k: k.buffer,
        v: v.buffer,
        o: o.buffer,
        lse: lse.buffer,
        numHeads: heads,
        numKvHeads: kvHeads,
        headDim,
        seqLen: queries,
        kvLen: keys,
        queryOffset: queryOffsetOf(input),
        dtype,
        patterns,
      },
      { inspect: true },
    );
    return { o: await readTensor(device, o, 'o'), lse: await readTensor(device, lse, 'lse'), report };
  } finally {
    prefill.destroy();
    for (const t of [q, k, v, o, lse]) t.buffer.destroy();
  }
}

/** Fails unless output, log-sum-exp and density are those of this visibility. */
export function checkRun(ctx: SuiteContext, input: AttentionInput, run: LayerRun, visible: readonly Visibility[]): void {
  const expected = attentionRows(input, (h) => visible[h] as Visibility);
  const tolerance = ctx.profile.tier === 'portable' ? 1e-5 : 2e-3;
  const error = relativeError(run.o, expected.o);
  assert(error < tolerance, `o: relative error ${error} against the oracle`);
  const lseError = relativeError(run.lse, expected.lse);
  assert(lseError < tolerance, `lse: relative error ${lseError} against the oracle`);
  visible.forEach((sees, head) => {
    let kept = 0;
    let causal = 0;
    for (let row = 0; row < input.queries; row++) {
      for (let key = 0; key <= queryOffsetOf(input) + row; key++) {
        causal++;
        if (sees(row, key)) kept++;
      }
    }
    const density = run.report.heads?.[head]?.density ?? Number.NaN;
    assert(
      Math.abs(density - kept / causal) < 1e-9,
      `head ${head}: density ${density}, but ${kept / causal} of the pairs are visible`,
    );
  });
}

const SHAPES: readonly (AttentionShape & { readonly note: string })[] = [
  { note: 'square', heads: 4, kvHeads: 2, queries: 200, keys: 200, headDim: 64 },
  { note: 'a chunk at an odd offset', heads: 4, kvHeads: 1, queries: 130, keys: 301, headDim: 64 },
  { note: 'a cache longer than the chunk', heads: 4, kvHeads: 4, queries: 70, keys: 260, headDim: 64, queryOffset: 150 },
];

/** The visibility that an index gives. */
function visibleBy(input: AttentionInput, index: HeadIndex | undefined): Visibility {
  if (index?.kind === 'vertical_slash') return keysOfStatic(input, index.columns, index.runs);
  assert(index?.kind === 'block_sparse', `an index of columns or blocks, not ${index?.kind}`);
  return keysOfBlockSparse(
    input,
    index.blocks.map((b) => [...b]),
  );
}

/** Fails unless XAttention's blocks are the oracle's. */
function checkXAttention(
  input: AttentionInput,
  head: number,
  stride: number,
  threshold: number,
  kept: readonly Uint32Array[],
): void {
  const problem = xAttentionProblem(input, head, { stride, threshold }, kept);
  assert(problem === undefined, `head ${head}, stride ${stride}, threshold ${threshold}: ${problem}`);
}

/** Runs a layer whose heads are all FlexPrefill's and fails unless pattern, index and output are the oracle's. */
async function checkFlexPrefill(
  ctx: SuiteContext,
  input: AttentionInput,
  budgets: readonly FlexPrefillBudgets[],
): Promise<HeadIndex[]> {
  const run = await runLayer(
    ctx,
    input,
    budgets.map((b): HeadPattern => ({ kind: 'flex_prefill', ...b })),
  );
  const indices = budgets.map((b, head) => {
    const index = run.report.heads?.[head]?.index ?? { kind: 'dense' };
    const problem = flexPrefillProblem(input, head, b, index);
    assert(problem === undefined, `head ${head}, ${JSON.stringify(b)}: ${problem}`);
    return index;
  });
  checkRun(
    ctx,
    input,
    run,
    indices.map((index) => visibleBy(input, index)),
  );
  return indices;
}

/** Builds the index of head 0, with all heads of the layer, without running any attention. */
async function buildFlexPrefill(
  ctx: SuiteContext,
  input: AttentionInput,
  budgets: FlexPrefillBudgets,
  workspaceLimit: number,
  maxBlocks?: number,
): Promise<HeadIndex> {
  const { device, profile } = ctx;
  const { heads, kvHeads, queries, keys, headDim } = input;
  const dtype = profile.tier === 'portable' ? 'f32' : 'f16';
  const q = makeTensor(device, { heads, rows: queries, headDim }, dtype, undefined, input.q);
  const k = makeTensor(device, { heads: kvHeads, rows: keys, headDim }, dtype, undefined, input.k);
  const storage = storageFormat(profile, dtype);
  const layer = { profile, storage, q, k, queryOffset: queryOffsetOf(input), scale: scaleOf(input), workspaceLimit };
  const rec = recorderOf(device);
  const list = Array.from({ length: heads }, (_, head) => ({ head, kvHead: kvHeadOf(input, head), ...budgets }));
  const built = recordFlexPrefillIndex(rec, layer, list, maxBlocks);
  submit(rec);
  try {
    const [index] = await readIndices(
      device,
      [
        {
          head: 0,
          kvHead: 0,
          pattern: { kind: 'flex_prefill', ...budgets },
          index: { buffer: built.buffer, offset: built.entries[0]?.indexOffset ?? 0, args: built.entries[0]?.args ?? [] },
        },
      ],
      { seqLen: queries, kvLen: keys, queryOffset: queryOffsetOf(input) },
    );
    assert(index !== undefined, 'an index');
    return index;
  } finally {
    q.buffer.destroy();
    k.buffer.destroy();
  }
}

/** Tri-shape, static vertical-slash, dilated and strided patterns, index reuse, XAttention, FlexPrefill. */
export const methodCases: SuiteCase[] = [
  ...SHAPES.map(
    (shape): SuiteCase => ({
      name: `methods: tri-shape agrees with the oracle, ${shape.note}`,
      run: async (ctx) => {
        const random = randomOf(ctx, `tri-shape ${shape.note}`);
        const input = inputFor(ctx, randomLayer(shape, ctx.seed));
        const sizes: readonly (readonly [number, number, number])[] = [
          [random.integer(0, 40), random.integer(1, 60), random.integer(0, 100)],
          [0, 1, 0],
          [3, 5, 1],
          [10, 20, shape.queries + 5],
        ];
        const patterns = sizes.map(
          ([initSize, localSize, lastSize]): HeadPattern => ({ kind: 'tri_shape', initSize, localSize, lastSize }),
        );
        checkRun(
          ctx,
          input,
          await runLayer(ctx, input, patterns),
          sizes.map((s) => keysOfTriShape(input, ...s)),
        );
      },
    }),
  ),
  ...SHAPES.map(
    (shape): SuiteCase => ({
      name: `methods: static columns and diagonals agree with the oracle, ${shape.note}`,
      run: async (ctx) => {
        const random = randomOf(ctx, `static ${shape.note}`);
        const input = inputFor(ctx, randomLayer(shape, ctx.seed));
        const patterns = [
          staticVerticalSlash(random.distinct(20, 0, shape.keys + 50), random.distinct(5, 0, shape.keys + 200)),
          staticVerticalSlash([], []),
          staticVerticalSlash([7, 3, 3, 9], [64, 0, 1, 128, 193]),
          strided(shape.keys, { stride: 100, localSize: 10, initSize: 2 }),
        ];
        checkRun(
          ctx,
          input,
          await runLayer(ctx, input, patterns),
          patterns.map((p) => keysOfStatic(input, p.columns, p.runs)),
        );
      },
    }),
  ),
  {
    name: 'methods: dilated patterns keep the keys that they name',
    run: async (ctx) => {
      const two = dilated2();
      assert(dilated1().columns.length === 1024 && two.columns.length === 1024, 'the first 1024 keys');
      const distances = (runs: ArrayLike<number>): number[] => {
        const out: number[] = [];
        for (let i = 0; i < runs.length; i += 2) for (let s = runs[i] as number; s <= (runs[i + 1] as number); s++) out.push(s);
        return out;
      };
      assert(
        distances(dilated1().runs).join() === Array.from({ length: 4096 }, (_, i) => 2 * i).join(),
        'dilated1: every other diagonal below 8192',
      );
      const expected = [...Array.from({ length: 2048 }, (_, i) => i), ...Array.from({ length: 2048 }, (_, i) => 2048 + 2 * i)];
      assert(distances(two.runs).join() === expected.join(), 'dilated2: 2048 diagonals, then every other one of 4096');
      const input = inputFor(ctx, randomLayer({ heads: 2, kvHeads: 1, queries: 70, keys: 70, headDim: 64 }, ctx.seed));
      const run = await runLayer(ctx, input, [dilated1(), two]);
      checkRun(ctx, input, run, [keysOfDense(input), keysOfDense(input)]);
    },
  },
  {
    name: 'methods: a reused index gives what the first run gave, also on a longer sequence',
    run: async (ctx) => {
      const shape = { heads: 3, kvHeads: 1, queries: 260, keys: 260, headDim: 64 };
      const input = inputFor(ctx, randomLayer(shape, ctx.seed));
      const patterns: HeadPattern[] = [
        { kind: 'vertical_slash', verticalSize: 40, slashSize: 105 },
        { kind: 'block_sparse', topK: 2 },
        { kind: 'vertical_slash', verticalSize: 31, slashSize: 120 },
      ];
      const first = await runLayer(ctx, input, patterns);
      const reused = reuseIndices(first.report.heads);
      assert(
        reused.map((p) => p.kind).join() === 'static_vertical_slash,block_sparse,static_vertical_slash',
        'vertical-slash heads are reused',
      );
      const second = await runLayer(ctx, input, reused);
      assert(
        second.o.every((x, i) => x === first.o[i]),
        'the outputs are equal to the bit',
      );
      const longer = inputFor(ctx, randomLayer({ ...shape, queries: 330, keys: 330 }, ctx.seed));
      const [one, , three] = reused;
      assert(one?.kind === 'static_vertical_slash' && three?.kind === 'static_vertical_slash', 'static patterns');
      const run = await runLayer(ctx, longer, [one, { kind: 'dense' }, three]);
      checkRun(ctx, longer, run, [
        keysOfStatic(longer, one.columns, one.runs),
        keysOfDense(longer),
        keysOfStatic(longer, three.columns, three.runs),
      ]);
    },
  },
  {
    name: 'methods: bad sizes and lists are refused by name',
    run: async (ctx) => {
      const input = randomLayer({ heads: 1, kvHeads: 1, queries: 8, keys: 8, headDim: 64 }, ctx.seed);
      const bad: [HeadPattern, string][] = [
        [{ kind: 'x_attention', stride: 4 as 8, threshold: 0.9 }, 'patterns.stride'],
        [{ kind: 'x_attention', stride: 8, threshold: 1.5 }, 'patterns.threshold'],
        [{ kind: 'flex_prefill', gamma: 0 }, 'patterns.gamma'],
        [{ kind: 'flex_prefill', gamma: 0.9, tau: -0.1 }, 'patterns.tau'],
        [{ kind: 'flex_prefill', minBudget: 0.5 }, 'patterns.minBudget'],
        [{ kind: 'tri_shape', initSize: 0, localSize: 0, lastSize: 1 }, 'patterns.localSize'],
        [{ kind: 'tri_shape', initSize: 0, localSize: 1, lastSize: Number.NaN }, 'patterns.lastSize'],
        [{ kind: 'static_vertical_slash', columns: [1, -1], runs: [] }, 'patterns.columns[1]'],
        [{ kind: 'static_vertical_slash', columns: [], runs: [0, 3, 5] }, 'patterns.runs'],
        [{ kind: 'static_vertical_slash', columns: [], runs: [9, 3] }, 'patterns.runs[1]'],
        [{ kind: 'static_vertical_slash', columns: new Uint8Array(2 ** 20 + 1), runs: [] }, 'patterns.columns'],
      ];
      for (const [pattern, argument] of bad) {
        const error: unknown = await runLayer(ctx, input, pattern).then(
          () => undefined,
          (e: unknown) => e,
        );
        assert(error instanceof MinferenceError && error.argument === argument, `${argument}: ${String(error)}`);
      }
    },
  },
  ...SHAPES.map(
    (shape): SuiteCase => ({
      name: `methods: XAttention keeps the fewest blocks that hold the threshold, ${shape.note}`,
      run: async (ctx) => {
        const random = randomLayer(shape, ctx.seed);
        // Sharper than chance, so that blocks differ.
        const input = inputFor(ctx, { ...random, q: random.q.map((x) => 3 * x) });
        const settings = [
          [8, 0.6],
          [16, 0.9],
          [8, 1],
          [16, 0.05],
        ] as const;
        const run = await runLayer(
          ctx,
          input,
          settings.map(([stride, threshold]): HeadPattern => ({ kind: 'x_attention', stride, threshold })),
        );
        const visible = settings.map(([stride, threshold], head) => {
          const index = run.report.heads?.[head]?.index;
          assert(index?.kind === 'block_sparse', 'a block-sparse index');
          checkXAttention(input, head, stride, threshold, index.blocks);
          return visibleBy(input, index);
        });
        checkRun(ctx, input, run, visible);
      },
    }),
  ),
  {
    name: 'methods: XAttention of a longer layer, with planted blocks, in several strips',
    run: async (ctx) => {
      const blocks = Array.from({ length: 18 }, (_, b) => (b < 3 ? [] : [1 + ((5 * b) % (b - 1))]));
      const shape = { heads: 1, kvHeads: 1, queries: 1100, keys: 1100, headDim: 64 };
      const input = inputFor(ctx, plantedLayer(shape, [{ blocks }], ctx.seed, 20));
      const run = await runLayer(ctx, input, { kind: 'x_attention', stride: 8, threshold: 0.9 });
      const index = run.report.heads?.[0]?.index;
      assert(index?.kind === 'block_sparse', 'a block-sparse index');
      checkXAttention(input, 0, 8, 0.9, index.blocks);
      blocks.forEach((list, b) => {
        for (const c of list)
          assert(
            index.blocks[b]?.includes(c) === true,
            `row block ${b} keeps its planted block ${c}: ${index.blocks[b]?.join()}`,
          );
      });
      checkRun(ctx, input, run, [visibleBy(input, index)]);
    },
  },
  {
    name: 'methods: XAttention, known answer',
    run: async (ctx) => {
      // Every query asks for the keys of one block: its head keeps block 0, the diagonal and that block.
      const shape = { heads: 2, kvHeads: 2, queries: 256, keys: 256, headDim: 64 };
      const size = 2 * 256 * 64;
      const [q, k, v] = [new Float32Array(size), new Float32Array(size), new Float32Array(size).fill(1)];
      for (let head = 0; head < 2; head++) {
        for (let i = 0; i < 256; i++) {
          q[(head * 256 + i) * 64 + 9] = 8;
          k[(head * 256 + i) * 64 + 9] = Math.floor(i / 64) === 1 + head ? 20 : 0;
        }
      }
      const run = await runLayer(ctx, { ...shape, q, k, v }, { kind: 'x_attention', stride: 16, threshold: 0.9 });
      const kept = run.report.heads?.map(({ index }) => (index.kind === 'block_sparse' ? index.blocks.map((b) => b.join()) : []));
      const expected = [
        ['0', '0,1', '0,1,2', '0,1,3'],
        ['0', '0,1', '0,2', '0,2,3'],
      ];
      assert(JSON.stringify(kept) === JSON.stringify(expected), `kept ${JSON.stringify(kept)}`);
      assert(
        run.o.every((x) => Math.abs(x - 1) < 1e-3),
        'rows of ones average to one',
      );
    },
  },
  ...[
    ...SHAPES,
    { note: 'fewer rows than the estimate looks at', heads: 4, kvHeads: 2, queries: 20, keys: 300, headDim: 64 },
    { note: 'one token', heads: 4, kvHeads: 1, queries: 1, keys: 1, headDim: 64 },
    { note: 'one row of a long cache', heads: 4, kvHeads: 4, queries: 1, keys: 500, headDim: 64 },
  ].map(
    (shape): SuiteCase => ({
      name: `methods: FlexPrefill agrees with the oracle, ${shape.note}`,
      run: async (ctx) => {
        const random = randomOf(ctx, `flex-prefill ${shape.note}`);
        const layer = randomLayer(shape, ctx.seed);
        // Sharper than chance, so that blocks differ.
        const input = inputFor(ctx, { ...layer, q: layer.q.map((x) => 2 * x) });
        const indices = await checkFlexPrefill(ctx, input, [
          { gamma: 0.5, tau: 0, minBudget: 1 },
          { gamma: 0.6, tau: 1, minBudget: 0 },
          { gamma: 0.9, tau: 0, minBudget: random.integer(65, 150) },
          { gamma: 0.8, tau: 1, minBudget: random.integer(65, 150) },
        ]);
        assert(
          indices.map((i) => i.kind).join() === 'vertical_slash,block_sparse,vertical_slash,block_sparse',
          'tau 0 is vertical-slash, tau 1 query-aware',
        );
      },
    }),
  ),
  {
    name: 'methods: FlexPrefill with everything, and with nothing but what is forced',
    run: async (ctx) => {
      const shape = { heads: 4, kvHeads: 1, queries: 330, keys: 330, headDim: 64 };
      const input = inputFor(ctx, randomLayer(shape, ctx.seed));
      const tiny = 1e-6;
      const [all, allBlocks, columns, blocks] = await checkFlexPrefill(ctx, input, [
        { gamma: 1, tau: 0, minBudget: 0 },
        { gamma: 1, tau: 1, minBudget: 0 },
        { gamma: tiny, tau: 0, minBudget: 0 },
        { gamma: tiny, tau: 1, minBudget: 0 },
      ]);
      assert(all?.kind === 'vertical_slash' && all.columns.length === 330 && all.runs.join() === '0,329', 'everything');
      assert(allBlocks?.kind === 'block_sparse' && allBlocks.blocks.every((b, i) => b.length === i + 1), 'all blocks');
      assert(
        columns?.kind === 'vertical_slash' && columns.columns.length === 64 && columns.runs.join() === '0,63',
        'forced columns',
      );
      assert(
        blocks?.kind === 'block_sparse' && blocks.blocks.every((b, i) => b.join() === [...new Set([0, i])].join()),
        'block 0 and the diagonal',
      );
    },
  },
  {
    name: 'methods: FlexPrefill finds out which head has blocks and which columns and diagonals',
    run: async (ctx) => {
      const shape = { heads: 4, kvHeads: 2, queries: 640, keys: 640, headDim: 64 };
      const blocks = Array.from({ length: 10 }, (_, b) => (b < 3 ? [] : [1 + ((3 * b) % (b - 1))]));
      const columns = [101, 250, 380];
      // One diagonal: as many whole blocks of diagonals are kept as the best diagonals would fill, so two may have to share one.
      const slash = 130;
      const budgets = { gamma: 0.9, tau: 0.1, minBudget: 0 };
      const planted = plantedLayer(shape, [{ blocks }, { blocks }, { slashes: [slash] }, { columns }], ctx.seed, 20);
      const input = inputFor(ctx, planted);
      const indices = await checkFlexPrefill(ctx, input, [budgets, budgets, budgets, budgets]);
      assert(
        indices.map((i) => i.kind).join() === 'block_sparse,block_sparse,vertical_slash,vertical_slash',
        `the patterns: ${indices.map((i) => i.kind).join()}`,
      );
      for (const index of indices.slice(0, 2)) {
        assert(index.kind === 'block_sparse', 'blocks');
        blocks.forEach((list, b) => {
          assert(
            list.every((c) => index.blocks[b]?.includes(c)),
            `row block ${b} keeps ${list.join()}: ${index.blocks[b]?.join()}`,
          );
        });
      }
      const [, , along, upright] = indices;
      assert(along?.kind === 'vertical_slash' && upright?.kind === 'vertical_slash', 'columns and diagonals');
      assert(
        columns.every((c) => upright.columns.includes(c)),
        'the planted columns are kept',
      );
      assert(
        along.runs.some((lo, i) => i % 2 === 0 && lo <= slash && slash <= (along.runs[i + 1] ?? 0)),
        'the planted diagonal is kept',
      );
    },
  },
  {
    name: 'methods: FlexPrefill in strips, with a bounded index, keeps the best blocks',
    once: true,
    run: async (ctx) => {
      const blocks = Array.from({ length: 70 }, (_, b) => (b < 3 ? [] : [1 + ((5 * b) % (b - 1)), 1 + ((3 * b) % (b - 1))]));
      const shape = { heads: 2, kvHeads: 1, queries: 70 * 64, keys: 70 * 64, headDim: 64 };
      const input = inputFor(ctx, plantedLayer(shape, [{ blocks }, { blocks }], ctx.seed, 20));
      const budgets = { gamma: 0.97, tau: 1, minBudget: 100 };
      const one = await buildFlexPrefill(ctx, input, budgets, 2 ** 29);
      const problem = flexPrefillProblem(input, 0, budgets, one);
      assert(problem === undefined, `${problem}`);
      const strips = await buildFlexPrefill(ctx, input, budgets, 2 ** 15);
      assert(JSON.stringify(strips) === JSON.stringify(one), 'strips give the same index');
      const most = 5;
      const bounded = await buildFlexPrefill(ctx, input, budgets, 2 ** 29, most);
      assert(one.kind === 'block_sparse' && bounded.kind === 'block_sparse', 'query-aware');
      const oracle = flexPrefillBlockScores(input, 0);
      assert(
        one.blocks.some((list) => list.length > most),
        'some row blocks keep more than the bound',
      );
      one.blocks.forEach((list, b) => {
        const kept = [...(bounded.blocks[b] ?? [])];
        if (list.length <= most) assert(kept.join() === [...list].join(), `row block ${b} keeps all of its blocks`);
        const forced = flexPrefillForcedBlocks(input, b, budgets.minBudget);
        const score = (c: number): number => (forced.has(c) ? Number.POSITIVE_INFINITY : (oracle[b * 70 + c] as number));
        const left = list.filter((c) => !kept.includes(c));
        assert(
          kept.length === Math.min(most, list.length) &&
            kept.every((c, i) => list.includes(c) && (i === 0 || c > (kept[i - 1] as number))),
          `row block ${b} keeps ${most} of ${[...list].join()}: ${kept.join()}`,
        );
        // Scores closer than rounding may come in either order.
        assert(
          Math.max(...left.map(score)) <= Math.min(...kept.map(score)) * (1 + 1e-3),
          `row block ${b} keeps the best ${most} of ${[...list].join()}: ${kept.join()}`,
        );
      });
    },
  },
  {
    name: 'methods: known distances, and known FlexPrefill indices',
    run: async (ctx) => {
      assert(jensenShannonDistance([0.5, 0.5], [0.5, 0.5]) === 0, 'equal distributions');
      assert(Math.abs(jensenShannonDistance([1, 0], [0, 1]) - Math.sqrt(Math.LN2)) < 1e-12, 'distributions that share nothing');
      // All keys but one are equal, and every query asks for that one: nothing but its column matters.
      const n = 300;
      const headDim = 64;
      const q = new Float32Array(n * headDim);
      const k = new Float32Array(n * headDim);
      const v = Float32Array.from({ length: n * headDim }, (_, i) => Math.sin(i));
      for (let row = 0; row < n; row++) q[row * headDim] = 16;
      k[200 * headDim] = 16;
      const input = inputFor(ctx, { heads: 1, kvHeads: 1, queries: n, keys: n, headDim, q, k, v });
      const budgets = { gamma: 0.9, tau: 0.1, minBudget: 0 };
      const oracle = flexPrefillIndex(input, 0, budgets);
      assert(oracle.kind === 'vertical_slash' && oracle.columns.join() === [...Array(64).keys(), 200].join(), 'the column alone');
      const [index] = await checkFlexPrefill(ctx, input, [budgets]);
      assert(index?.kind === 'vertical_slash' && index.columns.join() === oracle.columns.join(), 'the same on the GPU');
    },
  },
];
