import { MinferenceError } from '../../src/errors.js';
import { dilated1, dilated2, reuseIndices, staticVerticalSlash, strided } from '../../src/patterns/static.js';
import { forcedBlocks, keysOfStatic, keysOfTriShape, xAttentionIndex, xAttentionScores } from '../../src/reference/methods.js';
import {
  type AttentionInput,
  type AttentionShape,
  attentionRows,
  keysOfBlockSparse,
  keysOfDense,
  queryOffsetOf,
  relativeError,
  type Visibility,
} from '../../src/reference/oracle.js';
import { plantedLayer, randomLayer } from '../../src/reference/random.js';
import { SparsePrefill } from '../../src/scheduler/prefill.js';
import type { HeadPattern, RunReport } from '../../src/scheduler/types.js';
import { assert, randomOf, type SuiteCase, type SuiteContext } from './context.js';
import { makeTensor, readTensor, roundInput } from './tensors.js';

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

/**
 * Fails unless every row block keeps the forced blocks and the fewest others that hold the threshold. Scores so close
 * that rounding may decide count as equal.
 */
function checkXAttention(
  input: AttentionInput,
  head: number,
  stride: number,
  threshold: number,
  kept: readonly Uint32Array[],
): void {
  const oracle = xAttentionScores(input, head, stride);
  const expected = xAttentionIndex(input, oracle, threshold);
  assert(kept.length === expected.length, 'a list for every row block');
  kept.forEach((list, b) => {
    if ([...list].join() === expected[b]?.join()) return;
    const row = oracle.scores.subarray(b * oracle.keyBlocks, (b + 1) * oracle.keyBlocks);
    const about = `row block ${b}, stride ${stride}, threshold ${threshold}: ${[...list].join()} instead of ${expected[b]?.join()} of ${[...row].map((x) => x.toPrecision(4)).join()}`;
    const near = 1e-4 * row.reduce((a, x) => a + x, 0);
    const forced = forcedBlocks(input, b);
    const others = [...list].filter((c) => !forced.has(c)).map((c) => row[c] as number);
    const sum = [...list].reduce((a, c) => a + (row[c] as number), 0);
    const needed = threshold * row.reduce((a, x) => a + x, 0);
    assert(
      [...forced].every((c) => list.includes(c)),
      `forced blocks; ${about}`,
    );
    assert(
      [...list].every((c, i) => i === 0 || c > (list[i - 1] as number)),
      `ascending; ${about}`,
    );
    assert(sum >= needed - near, `enough; ${about}`);
    assert(others.length === 0 || sum - Math.min(...others) < needed + near, `no more than needed; ${about}`);
    const dropped = [...row].filter((_x, c) => !list.includes(c));
    assert(others.length === 0 || Math.min(...others) >= Math.max(0, ...dropped) - near, `the largest; ${about}`);
  });
}

/** Tri-shape, static vertical-slash, dilated and strided patterns, index reuse. */
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
          return keysOfBlockSparse(
            input,
            index.blocks.map((b) => [...b]),
          );
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
      checkRun(ctx, input, run, [
        keysOfBlockSparse(
          input,
          index.blocks.map((b) => [...b]),
        ),
      ]);
    },
  },
];
