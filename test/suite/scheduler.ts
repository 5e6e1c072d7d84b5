import fc from 'fast-check';
import { MinferenceError } from '../../src/errors.js';
import type { DType, Tensor } from '../../src/kernels/tensor.js';
import { staticVerticalSlash } from '../../src/patterns/static.js';
import { keysOfTriShape } from '../../src/reference/methods.js';
import {
  type AttentionInput,
  attentionRows,
  keysOfAShape,
  keysOfBlockSparse,
  keysOfDense,
  keysOfVerticalSlash,
  relativeError,
  type Visibility,
} from '../../src/reference/oracle.js';
import { randomLayer } from '../../src/reference/random.js';
import { SparsePrefill } from '../../src/scheduler/prefill.js';
import { StageTimer } from '../../src/scheduler/submit.js';
import type { AttentionLayer, HeadPattern, HeadReport, RunReport } from '../../src/scheduler/types.js';
import { assert, headDimOf, type SuiteCase, type SuiteContext } from './context.js';
import { type Layout, makeTensor, PLAIN, readTensor, roundInput } from './tensors.js';

/** A layer on the GPU, with its input on the CPU. */
interface TestLayer {
  readonly input: AttentionInput;
  readonly o: Tensor;
  readonly lse: Tensor;
  readonly layer: AttentionLayer;
}

interface TestShape {
  readonly heads: number;
  readonly kvHeads: number;
  readonly queries: number;
  readonly keys: number;
  readonly headDim: number;
}

function makeLayer(
  ctx: SuiteContext,
  shape: TestShape,
  patterns: HeadPattern | readonly HeadPattern[],
  dtype: DType = ctx.profile.tier === 'f16' ? 'f16' : 'f32',
  layout: Layout = PLAIN,
): TestLayer {
  const random = randomLayer(shape, ctx.seed);
  const input = dtype === 'f16' ? roundInput(random) : random;
  const { heads, kvHeads, queries, keys, headDim } = shape;
  const q = makeTensor(ctx.device, { heads, rows: queries, headDim }, dtype, layout, input.q);
  const k = makeTensor(ctx.device, { heads: kvHeads, rows: keys, headDim }, dtype, layout, input.k);
  const v = makeTensor(ctx.device, { heads: kvHeads, rows: keys, headDim }, dtype, layout, input.v);
  const o = makeTensor(ctx.device, { heads, rows: queries, headDim }, dtype, layout);
  const lse = makeTensor(ctx.device, { heads, rows: queries, headDim: 1 }, 'f32', { ...PLAIN, offset: 8 });
  const bytes = dtype === 'f16' ? 2 : 4;
  const bind = (t: Tensor) => ({ buffer: t.buffer, offset: t.offset * bytes, headStride: t.headStride, rowStride: t.rowStride });
  return {
    input,
    o,
    lse,
    layer: {
      q: bind(q),
      k: bind(k),
      v: bind(v),
      o: bind(o),
      lse: { buffer: lse.buffer, offset: lse.offset * 4 },
      numHeads: heads,
      numKvHeads: kvHeads,
      headDim,
      seqLen: queries,
      kvLen: keys,
      dtype,
      patterns,
    },
  };
}

/** What a head saw, by the index that the GPU built. */
function visibilityOf(input: AttentionInput, report: HeadReport): Visibility {
  const { pattern, index } = report;
  if (pattern.kind === 'a_shape') return keysOfAShape(input, pattern.initSize, pattern.localSize);
  if (pattern.kind === 'tri_shape') return keysOfTriShape(input, pattern.initSize, pattern.localSize, pattern.lastSize);
  if (index.kind === 'vertical_slash') {
    const slashes: number[] = [];
    for (let i = 0; i < index.runs.length; i += 2) {
      for (let s = index.runs[i] as number; s <= (index.runs[i + 1] as number); s++) slashes.push(s);
    }
    return keysOfVerticalSlash(input, [...index.columns], slashes);
  }
  if (index.kind === 'block_sparse')
    return keysOfBlockSparse(
      input,
      index.blocks.map((b) => [...b]),
    );
  return keysOfDense(input);
}

async function checkAgainstOracle(ctx: SuiteContext, test: TestLayer, report: RunReport): Promise<void> {
  assert(report.heads?.length === test.input.heads, 'the report has an entry for every head');
  const heads = report.heads;
  const visible = heads.map((h) => visibilityOf(test.input, h));
  const expected = attentionRows(test.input, (h) => visible[h] as Visibility);
  const tolerance = test.layer.dtype === 'f16' ? 2e-3 : 1e-5;
  const error = relativeError(await readTensor(ctx.device, test.o, 'o'), expected.o);
  assert(error < tolerance, `o: relative error ${error} against the oracle`);
  const lseError = relativeError(await readTensor(ctx.device, test.lse, 'lse'), expected.lse);
  assert(lseError < tolerance, `lse: relative error ${lseError} against the oracle`);
  heads.forEach((h, i) => {
    let kept = 0;
    let causal = 0;
    for (let row = 0; row < test.input.queries; row++) {
      for (let key = 0; key <= test.input.keys - test.input.queries + row; key++) {
        causal++;
        if (visible[i]?.(row, key)) kept++;
      }
    }
    assert(
      Math.abs(h.density - kept / causal) < 1e-9,
      `head ${i} (${h.pattern.kind}): density ${h.density}, but ${kept / causal} of the pairs are visible`,
    );
  });
}

const MIXED: readonly HeadPattern[] = [
  { kind: 'vertical_slash', verticalSize: 40, slashSize: 110 },
  { kind: 'dense' },
  { kind: 'block_sparse', topK: 3 },
  { kind: 'a_shape', initSize: 20, localSize: 70 },
  { kind: 'vertical_slash', verticalSize: 64, slashSize: 130 },
  { kind: 'block_sparse', topK: 2 },
];
const SHAPE: TestShape = { heads: 6, kvHeads: 2, queries: 300, keys: 421, headDim: 64 };

async function rejection(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => undefined,
    (error: unknown) => error,
  );
}

function sameNumbers(a: Float32Array, b: Float32Array): boolean {
  return a.length === b.length && a.every((x, i) => x === b[i]);
}

/** One call of the public API does a whole layer. */
export const schedulerCases: SuiteCase[] = [
  {
    name: 'scheduler: a layer of mixed patterns agrees with the oracle',
    run: async (ctx) => {
      const prefill = new SparsePrefill(ctx.device, { tier: ctx.profile.tier });
      const test = makeLayer(ctx, SHAPE, MIXED);
      const report = await prefill.run(test.layer, { inspect: true });
      await checkAgainstOracle(ctx, test, report);
      assert(report.tier === ctx.profile.tier, 'the report names the tier');
      assert(report.indexBytes > 0 && report.memory.peakBytes >= report.indexBytes, 'index memory is reported');
      assert(prefill.memory().run.usedBytes === 0, 'all workspace went back to the pool');
      const held = prefill.memory().run.allocatedBytes;
      await prefill.run(test.layer, { inspect: true });
      assert(prefill.memory().run.allocatedBytes === held, 'a second run reuses the workspace of the first');
      prefill.trim();
      assert(prefill.memory().run.allocatedBytes === 0, 'trim frees what is not in use');
      prefill.destroy();
    },
  },
  {
    name: 'scheduler: few rows that see many keys, which are split',
    run: async (ctx) => {
      const prefill = new SparsePrefill(ctx.device, { tier: ctx.profile.tier, tilings: { workgroups: 24 } });
      const grouped = { heads: 8, kvHeads: 2, queries: 20, keys: 2100, headDim: headDimOf(ctx, 'f32', 64) };
      const tri = { kind: 'tri_shape', initSize: 30, localSize: 100, lastSize: 10 } as const;
      for (const [shape, patterns, dispatches] of [
        [grouped, { kind: 'dense' }, 2],
        [{ ...grouped, heads: 2, queries: 150 }, tri, 3],
        [{ ...grouped, heads: 6, queries: 70 }, MIXED, undefined],
      ] as const) {
        const test = makeLayer(ctx, shape, patterns);
        const report = await prefill.run(test.layer, { inspect: true });
        await checkAgainstOracle(ctx, test, report);
        if (dispatches) assert(report.dispatches === dispatches, `${report.dispatches} dispatches, expected ${dispatches}`);
      }
      prefill.destroy();
    },
  },
  {
    name: 'scheduler: [N, H, D] layout with padding and offsets agrees with the oracle',
    run: async (ctx) => {
      const prefill = new SparsePrefill(ctx.device, { tier: ctx.profile.tier });
      const test = makeLayer(ctx, { ...SHAPE, queries: 131, keys: 131 }, MIXED, undefined, {
        order: 'nhd',
        offset: 12,
        padding: 4,
      });
      await checkAgainstOracle(ctx, test, await prefill.run(test.layer, { inspect: true }));
      prefill.destroy();
    },
  },
  {
    name: 'scheduler: f16 tensors in every tier',
    run: async (ctx) => {
      const prefill = new SparsePrefill(ctx.device, { tier: ctx.profile.tier });
      const headDim = headDimOf(ctx, 'f16', 64);
      const test = makeLayer(ctx, { ...SHAPE, queries: 150, keys: 150, headDim }, MIXED, 'f16');
      await checkAgainstOracle(ctx, test, await prefill.run(test.layer, { inspect: true }));
      prefill.destroy();
    },
  },
  {
    name: "scheduler: layers recorded into the caller's encoder give what run gives",
    run: async (ctx) => {
      const prefill = new SparsePrefill(ctx.device, { tier: ctx.profile.tier });
      await prefill.prepare({ headDim: 64, dtype: 'f32' });
      const reference = makeLayer(ctx, SHAPE, MIXED);
      const first = makeLayer(ctx, SHAPE, MIXED);
      const second = makeLayer(ctx, SHAPE, [...MIXED].reverse());
      const encoder = ctx.device.createCommandEncoder();
      const plan = prefill.record(encoder, first.layer);
      prefill.record(encoder, second.layer);
      ctx.device.queue.submit([encoder.finish()]);
      assert(plan.dispatches > 4 && plan.flops > 0 && plan.indexBytes > 0, 'the plan is reported');
      assert(prefill.memory().record.usedBytes === 0, 'recorded layers share their workspace');
      const run = await prefill.run(reference.layer, { inspect: true });
      await checkAgainstOracle(ctx, reference, run);
      assert(
        sameNumbers(await readTensor(ctx.device, first.o, 'o'), await readTensor(ctx.device, reference.o, 'o')),
        'record and run agree to the bit',
      );
      const reversed = await prefill.run(second.layer, { inspect: true });
      await checkAgainstOracle(ctx, second, reversed);
      prefill.destroy();
    },
  },
  {
    name: 'scheduler: work cut into many short dispatches gives the same, with rising progress',
    run: async (ctx) => {
      const whole = new SparsePrefill(ctx.device, { tier: ctx.profile.tier, dispatchMs: 1e6 });
      const cut = new SparsePrefill(ctx.device, { tier: ctx.profile.tier, dispatchMs: 1e-3, workspaceLimit: 1 });
      const a = makeLayer(ctx, SHAPE, MIXED);
      const b = makeLayer(ctx, SHAPE, MIXED);
      const wholeReport = await whole.run(a.layer);
      const fractions: number[] = [];
      const cutReport = await cut.run(b.layer, { onProgress: (p) => fractions.push(p.fraction) });
      assert(wholeReport.submits === 1, 'short work is one submission');
      assert(cutReport.submits > 3 && cutReport.dispatches > wholeReport.dispatches, 'long work is cut');
      assert(
        fractions.length === cutReport.submits && fractions.every((f, i) => i === 0 || f >= (fractions[i - 1] as number)),
        'progress rises',
      );
      assert(Math.abs((fractions.at(-1) ?? 0) - 1) < 1e-9, 'progress ends at 1');
      assert(
        sameNumbers(await readTensor(ctx.device, a.o, 'o'), await readTensor(ctx.device, b.o, 'o')),
        'cutting changes nothing',
      );
      whole.destroy();
      cut.destroy();
    },
  },
  {
    name: 'scheduler: layers of random shape, layout and patterns agree with the oracle',
    run: async (ctx) => {
      const prefill = new SparsePrefill(ctx.device, { tier: ctx.profile.tier });
      const size = (max: number, min = 0): fc.Arbitrary<number> => fc.integer({ min, max });
      const share = fc.constantFrom(0.3, 0.6, 0.9, 1);
      const pattern: fc.Arbitrary<HeadPattern> = fc.oneof(
        fc.record({ kind: fc.constant('dense' as const) }),
        fc.record({ kind: fc.constant('a_shape' as const), initSize: size(90), localSize: size(150, 1) }),
        fc.record({ kind: fc.constant('tri_shape' as const), initSize: size(90), localSize: size(150, 1), lastSize: size(250) }),
        fc.record({ kind: fc.constant('vertical_slash' as const), verticalSize: size(300), slashSize: size(300) }),
        fc.record({ kind: fc.constant('block_sparse' as const), topK: size(6, 1) }),
        fc.record({
          kind: fc.constant('x_attention' as const),
          stride: fc.constantFrom(8 as const, 16 as const),
          threshold: share,
        }),
        fc.record({
          kind: fc.constant('flex_prefill' as const),
          gamma: share,
          tau: fc.constantFrom(0, 0.1, 1),
          minBudget: size(150),
        }),
        fc
          .tuple(fc.array(size(300), { maxLength: 9 }), fc.array(size(300), { maxLength: 5 }))
          .map(([columns, slashes]) => staticVerticalSlash(columns, slashes)),
      );
      const layers = fc
        .record({ kvHeads: size(2, 1), group: size(3, 1), queries: size(200, 1), before: size(130), nhd: fc.boolean() })
        .chain((shape) =>
          fc.record({
            shape: fc.constant(shape),
            patterns: fc.array(pattern, { minLength: shape.kvHeads * shape.group, maxLength: shape.kvHeads * shape.group }),
          }),
        );
      await fc.assert(
        fc.asyncProperty(layers, async ({ shape: { kvHeads, group, queries, before, nhd }, patterns }) => {
          const shape = { heads: kvHeads * group, kvHeads, queries, keys: queries + before, headDim: 64 };
          const test = makeLayer(ctx, shape, patterns, undefined, nhd ? { order: 'nhd', offset: 4, padding: 8 } : PLAIN);
          await checkAgainstOracle(ctx, test, await prefill.run(test.layer, { inspect: true }));
        }),
        { seed: ctx.seed, numRuns: ctx.brief ? 4 : 12, endOnFailure: true },
      );
      assert(prefill.memory().run.usedBytes === 0, 'all workspace went back to the pool');
      prefill.destroy();
    },
  },
  {
    name: 'scheduler: several runs at once do not disturb each other',
    run: async (ctx) => {
      const prefill = new SparsePrefill(ctx.device, { tier: ctx.profile.tier, dispatchMs: 1e-2 });
      const tests = [MIXED, [...MIXED].reverse(), MIXED].map((p) => makeLayer(ctx, { ...SHAPE, queries: 200, keys: 200 }, p));
      const reports = await Promise.all(tests.map((t) => prefill.run(t.layer, { inspect: true })));
      for (const [i, test] of tests.entries()) await checkAgainstOracle(ctx, test, reports[i] as RunReport);
      prefill.destroy();
    },
  },
  {
    name: "scheduler: an abort rejects with the signal's reason and leaves device and inputs usable",
    run: async (ctx) => {
      const prefill = new SparsePrefill(ctx.device, { tier: ctx.profile.tier, dispatchMs: 1e-3 });
      const test = makeLayer(ctx, SHAPE, MIXED);
      const reason = new Error('enough');
      const before = await rejection(prefill.run(test.layer, { signal: AbortSignal.abort(reason) }));
      assert(before === reason, 'a signal that is aborted already rejects at once');
      const controller = new AbortController();
      let calls = 0;
      const during = await rejection(
        prefill.run(test.layer, {
          signal: controller.signal,
          onProgress: () => {
            calls++;
            controller.abort(reason);
          },
        }),
      );
      assert(during === reason, `aborting while running rejects with the reason, not ${String(during)}`);
      assert(calls <= 3, 'nothing more is submitted after the abort');
      assert(prefill.memory().run.usedBytes === 0, 'the workspace is given back');
      await checkAgainstOracle(ctx, test, await prefill.run(test.layer, { inspect: true }));
      prefill.destroy();
    },
  },
  {
    name: 'scheduler: stage times come from timestamps',
    run: async (ctx) => {
      const prefill = new SparsePrefill(ctx.device, { tier: ctx.profile.tier });
      const test = makeLayer(ctx, SHAPE, MIXED);
      const report = await prefill.run(test.layer, { timestamps: true });
      if (ctx.device.features.has('timestamp-query')) {
        const s = report.stages;
        assert(s !== undefined && s.kernel > 0 && s.estimate > 0, `stages are timed: ${JSON.stringify(s)}`);
        assert(Math.abs((report.gpuMs ?? 0) - (s.estimate + s.topk + s.convert + s.kernel)) < 1e-9, 'gpuMs is their sum');
      } else {
        assert(report.stages === undefined && report.gpuMs === undefined, 'no times without timestamp-query');
      }
      prefill.destroy();
    },
  },
  {
    name: 'scheduler: more passes than a query set has room for are timed, in order',
    once: true,
    run: async (ctx) => {
      const prefill = new SparsePrefill(ctx.device, { tier: ctx.profile.tier });
      const test = makeLayer(ctx, { heads: 1, kvHeads: 1, queries: 64, keys: 64, headDim: 64 }, { kind: 'dense' });
      if (!ctx.device.features.has('timestamp-query')) {
        let refused: unknown;
        try {
          new StageTimer(ctx.device);
        } catch (error) {
          refused = error;
        }
        assert(refused instanceof MinferenceError && refused.code === 'unsupported', `a timer without timestamps: ${refused}`);
        return;
      }
      const timer = new StageTimer(ctx.device);
      const rounds = [2048, 2100];
      for (const empty of rounds) {
        const encoder = ctx.device.createCommandEncoder();
        for (let i = 0; i < empty; i++) encoder.beginComputePass({ timestampWrites: timer.next('topk') }).end();
        prefill.record(encoder, test.layer, timer);
        ctx.device.queue.submit([encoder.finish()]);
        const passes = await timer.readPasses();
        assert(passes.length === empty + 1, `${passes.length} passes, expected ${empty + 1}`);
        assert(
          passes.every(({ stage }, i) => stage === (i < empty ? 'topk' : 'kernel')),
          `stages out of order: ${passes.findIndex(({ stage }, i) => stage !== (i < empty ? 'topk' : 'kernel'))}`,
        );
        const kernel = passes.at(-1)?.ms ?? 0;
        assert(kernel > 0, `the kernel behind ${empty} empty passes took ${kernel} ms`);
      }
      assert((await timer.readPasses()).length === 0, 'passes are reported twice');
      timer.destroy();
      prefill.destroy();
    },
  },
  {
    name: 'scheduler: heads are grouped so that tensors stay within the binding limit',
    run: async (ctx) => {
      const limit = ctx.device.limits.maxStorageBufferBindingSize;
      const headDim = 128;
      // Rows such that one head is a bit over 40% of the limit: at most two heads fit one binding.
      const seqLen = Math.floor((0.41 * limit) / (headDim * 4));
      const size = 4 * seqLen * headDim * 4;
      if (size > ctx.device.limits.maxBufferSize || size > 2 ** 30) return; // Such a buffer cannot exist (or not be afforded) here.
      const prefill = new SparsePrefill(ctx.device, { tier: ctx.profile.tier, dispatchMs: 1e9 });
      const q = ctx.device.createBuffer({ size, usage: 0x80 });
      const kv = ctx.device.createBuffer({ size: size / 4, usage: 0x80 });
      const o = ctx.device.createBuffer({ size, usage: 0x80 });
      const layer: AttentionLayer = {
        q,
        k: kv,
        v: kv,
        o,
        numHeads: 4,
        numKvHeads: 1,
        headDim,
        seqLen,
        dtype: 'f32',
        patterns: { kind: 'a_shape', initSize: 64, localSize: 64 },
      };
      const encoder = ctx.device.createCommandEncoder(); // Planned and encoded, never submitted.
      const plan = prefill.record(encoder, layer);
      encoder.finish();
      assert(plan.dispatches === 2, `two groups of two heads, not ${plan.dispatches} dispatches`);
      const rows = Math.ceil(limit / (headDim * 4)) + 1;
      const error = await rejection(
        Promise.resolve().then(() => prefill.record(ctx.device.createCommandEncoder(), { ...layer, numHeads: 1, seqLen: rows })),
      );
      assert(error instanceof MinferenceError && error.code === 'limit', `a head beyond the limit is refused: ${String(error)}`);
      for (const b of [q, kv, o]) b.destroy();
      prefill.destroy();
    },
  },
];
