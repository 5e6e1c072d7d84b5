import { MinferenceError } from '../../src/errors.js';
import { parsePatternConfig, serializePatternConfig } from '../../src/patterns/config.js';
import { indexCoverage } from '../../src/patterns/coverage.js';
import { type MeasuredLayer, RecallMeter } from '../../src/patterns/recall.js';
import {
  type CandidateResult,
  type SearchOptions,
  type SearchPattern,
  type SearchSource,
  type SearchState,
  searchPatterns,
} from '../../src/patterns/search.js';
import { keysOfTriShape } from '../../src/reference/methods.js';
import {
  type AttentionInput,
  attentionRows,
  keysOfAShape,
  keysOfBlockSparse,
  keysOfDense,
  keysOfVerticalSlash,
  queryOffsetOf,
  relativeError,
  type Visibility,
} from '../../src/reference/oracle.js';
import { type PlantedHead, plantedLayer, Random, randomLayer } from '../../src/reference/random.js';
import { SparsePrefill } from '../../src/scheduler/prefill.js';
import type { HeadIndex, HeadPattern } from '../../src/scheduler/types.js';
import { assert, type SuiteCase, type SuiteContext } from './context.js';
import { inputFor } from './methods.js';
import { makeTensor } from './tensors.js';

/** Puts a layer on the GPU. */
function upload(ctx: SuiteContext, input: AttentionInput): { readonly layer: MeasuredLayer; readonly release: () => void } {
  const { heads, kvHeads, queries, keys, headDim } = input;
  const dtype = ctx.profile.tier === 'portable' ? 'f32' : 'f16';
  const q = makeTensor(ctx.device, { heads, rows: queries, headDim }, dtype, undefined, input.q).buffer;
  const k = makeTensor(ctx.device, { heads: kvHeads, rows: keys, headDim }, dtype, undefined, input.k).buffer;
  const v = makeTensor(ctx.device, { heads: kvHeads, rows: keys, headDim }, dtype, undefined, input.v).buffer;
  return {
    layer: {
      q,
      k,
      v,
      numHeads: heads,
      numKvHeads: kvHeads,
      headDim,
      seqLen: queries,
      kvLen: keys,
      queryOffset: queryOffsetOf(input),
      dtype,
    },
    release: () => [q, k, v].forEach((b) => b.destroy()),
  };
}

/** What a head sees, by its pattern and the index that was read back. */
function visibilityOf(input: AttentionInput, pattern: HeadPattern, index: HeadIndex): Visibility {
  if (pattern.kind === 'a_shape') return keysOfAShape(input, pattern.initSize, pattern.localSize);
  if (pattern.kind === 'tri_shape') return keysOfTriShape(input, pattern.initSize, pattern.localSize, pattern.lastSize);
  if (index.kind === 'block_sparse')
    return keysOfBlockSparse(
      input,
      index.blocks.map((b) => [...b]),
    );
  if (index.kind !== 'vertical_slash') return keysOfDense(input);
  const slashes: number[] = [];
  for (let i = 0; i < index.runs.length; i += 2) {
    for (let s = index.runs[i] as number; s <= (index.runs[i + 1] as number); s++) slashes.push(s);
  }
  return keysOfVerticalSlash(input, [...index.columns], slashes);
}

/** Attention probability of every row and key of one head, `[queries, keys]`. */
function probabilities(input: AttentionInput, head: number): Float64Array {
  const dense = attentionRows(input, () => keysOfDense(input));
  const { queries, keys, headDim, heads, kvHeads } = input;
  const kv = Math.floor((head * kvHeads) / heads);
  const out = new Float64Array(queries * keys);
  for (let row = 0; row < queries; row++) {
    for (let key = 0; key <= queryOffsetOf(input) + row; key++) {
      let dot = 0;
      for (let d = 0; d < headDim; d++) {
        dot += (input.q[(head * queries + row) * headDim + d] as number) * (input.k[(kv * keys + key) * headDim + d] as number);
      }
      out[row * keys + key] = Math.exp(dot / Math.sqrt(headDim) - (dense.lse[head * queries + row] as number));
    }
  }
  return out;
}

const MIXED: readonly HeadPattern[] = [
  { kind: 'vertical_slash', verticalSize: 31, slashSize: 101 },
  { kind: 'block_sparse', topK: 2 },
  { kind: 'a_shape', initSize: 20, localSize: 70 },
  { kind: 'tri_shape', initSize: 4, localSize: 9, lastSize: 30 },
];
const SHAPE = { heads: 4, kvHeads: 2, queries: 270, keys: 290, headDim: 64 } as const;

/** A layer of three heads that plainly have the three patterns. */
function plantPatterns(seed: number): AttentionInput {
  const shape = { heads: 3, kvHeads: 3, queries: 1024, keys: 1024, headDim: 64 };
  const random = new Random(seed);
  const planted: PlantedHead[] = [
    { columns: [0, 1, 2, 3], slashes: [0, 1, 2, 3] },
    { columns: random.distinct(14, 100, 900), slashes: random.distinct(2, 5, 45) },
    { blocks: Array.from({ length: 16 }, (_, b) => random.distinct(2, 0, Math.max(0, b - 1))) },
  ];
  return plantedLayer(shape, planted, seed, 20);
}

/** Seeds of the layers that a search must see through. */
const seedsOf = (ctx: SuiteContext): readonly number[] => (ctx.brief ? [1] : [1, 2, 3]);

const SPACE: readonly SearchPattern[] = [
  { kind: 'a_shape', initSize: 64, localSize: 256 },
  { kind: 'vertical_slash', verticalSize: 50, slashSize: 100 },
  { kind: 'vertical_slash', verticalSize: 100, slashSize: 50 },
  { kind: 'block_sparse', topK: 4 },
];

function sourceOf(ctx: SuiteContext, inputs: readonly AttentionInput[], name = 'planted'): SearchSource {
  return { name, layers: inputs.length, load: async (i) => upload(ctx, inputs[i] as AttentionInput) };
}

/** Recall, attention maps, and the pattern search. */
export const patternCases: SuiteCase[] = [
  {
    name: 'recall: the share of attention mass kept is that of the oracle, per row, head and pattern',
    run: async (ctx) => {
      const input = inputFor(ctx, randomLayer(SHAPE, ctx.seed));
      const prefill = new SparsePrefill(ctx.device, { tier: ctx.profile.tier });
      const meter = new RecallMeter(prefill);
      const { layer, release } = upload(ctx, input);
      const dense = await meter.reference(layer);
      const firstRow = 100;
      const { heads } = await meter.measure(dense, MIXED, { firstRow, perRow: true });
      const tolerance = ctx.profile.tier === 'portable' ? 1e-5 : 2e-3;
      const visible = heads.map((h) => visibilityOf(input, h.pattern, h.index));
      const rows = Array.from({ length: input.queries - firstRow }, (_, i) => firstRow + i);
      const expectedDense = attentionRows(input, () => keysOfDense(input), rows);
      const expectedSparse = attentionRows(input, (h) => visible[h] as Visibility, rows);
      for (const h of heads) {
        const p = probabilities(input, h.head);
        const kept = Array.from({ length: input.queries }, (_, row) => {
          let sum = 0;
          for (let key = 0; key < input.keys; key++) if (visible[h.head]?.(row, key)) sum += p[row * input.keys + key] as number;
          return sum;
        });
        const late = kept.slice(firstRow);
        assert(relativeError(h.rowRecall ?? [], kept) < tolerance, `head ${h.head}: recall per row`);
        assert(
          Math.abs(h.recall - late.reduce((a, b) => a + b, 0) / late.length) < tolerance,
          `head ${h.head}: mean recall ${h.recall}`,
        );
        assert(Math.abs(h.worstRecall - Math.min(...late)) < tolerance, `head ${h.head}: worst recall ${h.worstRecall}`);
        const size = rows.length * input.headDim;
        const error = relativeError(
          expectedSparse.o.subarray(h.head * size, (h.head + 1) * size),
          expectedDense.o.subarray(h.head * size, (h.head + 1) * size),
        );
        assert(Math.abs(h.error - error) < tolerance, `head ${h.head}: output error ${h.error}, expected ${error}`);
      }
      const all = await meter.measure(dense, { kind: 'dense' });
      assert(
        all.heads.every((h) => h.recall > 1 - 1e-6 && h.error === 0 && h.density === 1),
        'dense keeps everything',
      );
      dense.destroy();
      release();
      meter.destroy();
      prefill.destroy();
    },
  },
  {
    name: 'recall: attention maps and index coverage are those of the oracle, in every cell size',
    run: async (ctx) => {
      const input = inputFor(ctx, randomLayer(SHAPE, ctx.seed));
      const prefill = new SparsePrefill(ctx.device, { tier: ctx.profile.tier });
      const meter = new RecallMeter(prefill);
      const { layer, release } = upload(ctx, input);
      const dense = await meter.reference(layer);
      const { heads } = await meter.measure(dense, MIXED);
      const offset = queryOffsetOf(input);
      for (const [size, cell] of [
        [40, 8],
        [10, 32],
        [5, 64],
        [3, 128],
      ] as const) {
        for (const h of size === 10 ? heads : heads.slice(0, 1)) {
          const map = await meter.attentionMap(dense, h.head, size);
          assert(
            map.cell === cell && map.rows === Math.ceil(270 / cell) && map.keys === Math.ceil(290 / cell),
            `cells of ${map.cell}`,
          );
          const coverage = indexCoverage(h.pattern, h.index, { seqLen: 270, kvLen: 290, queryOffset: offset }, map);
          const visible = visibilityOf(input, h.pattern, h.index);
          const p = probabilities(input, h.head);
          const mass = new Float64Array(map.rows * map.keys);
          const kept = new Float64Array(mass.length);
          const causal = new Float64Array(mass.length);
          for (let row = 0; row < input.queries; row++) {
            const rowsOfCell = Math.min(input.queries, (Math.floor(row / cell) + 1) * cell) - Math.floor(row / cell) * cell;
            for (let key = 0; key <= offset + row; key++) {
              const at = Math.floor(row / cell) * map.keys + Math.floor(key / cell);
              mass[at] = (mass[at] as number) + (p[row * input.keys + key] as number) / rowsOfCell;
              causal[at] = (causal[at] as number) + 1;
              if (visible(row, key)) kept[at] = (kept[at] as number) + 1;
            }
          }
          const error = relativeError(map.values, mass);
          assert(
            error < (ctx.profile.tier === 'portable' ? 1e-5 : 2e-3),
            `head ${h.head}, cells of ${cell}: map is off by ${error}`,
          );
          kept.forEach((n, at) => {
            const share = causal[at] ? n / (causal[at] as number) : 0;
            assert(
              Math.abs((coverage[at] as number) - share) < 1e-6,
              `head ${h.head}, cells of ${cell}: coverage of cell ${at} is ${coverage[at]}, not ${share}`,
            );
          });
        }
      }
      dense.destroy();
      release();
      meter.destroy();
      prefill.destroy();
    },
  },
  {
    name: 'search: finds the planted pattern of every head',
    run: async (ctx) => {
      const prefill = new SparsePrefill(ctx.device, { tier: ctx.profile.tier });
      for (const seed of seedsOf(ctx)) {
        const input = inputFor(ctx, plantPatterns(seed));
        const result = await searchPatterns(prefill, sourceOf(ctx, [input]), { space: SPACE, target: { density: 0.35 } });
        const chosen = result.layers[0]?.heads.map((h) => h.candidates[h.best]?.pattern.kind).join();
        const table = JSON.stringify(
          result.layers[0]?.heads.map((h) => h.candidates.map((c) => [c.pattern.kind, c.error, c.recall, c.cost])),
        );
        assert(chosen === 'a_shape,vertical_slash,block_sparse', `seed ${seed}: ${chosen} of ${table}`);
        for (const head of result.layers[0]?.heads ?? []) {
          for (const c of head.candidates)
            assert(c.cost <= 1 && c.cost > 0.6, `seed ${seed}: candidates cost what the target costs: ${JSON.stringify(c)}`);
          assert((head.candidates[head.best]?.recall ?? 0) > 0.9, `seed ${seed}: the choice keeps the planted mass: ${table}`);
        }
        const again = parsePatternConfig(serializePatternConfig(result.config));
        assert(JSON.stringify(again.layers) === JSON.stringify(result.config.layers), 'the config survives writing and reading');
      }
      prefill.destroy();
    },
  },
  {
    name: 'search: shares one density among the heads, and finds their planted patterns',
    run: async (ctx) => {
      const prefill = new SparsePrefill(ctx.device, { tier: ctx.profile.tier });
      const space: readonly SearchPattern[] = [
        { kind: 'a_shape', initSize: 16, localSize: 32 },
        { kind: 'vertical_slash', verticalSize: 50, slashSize: 102 },
        { kind: 'block_sparse', topK: 4 },
        { kind: 'a_shape', initSize: 64, localSize: 256 },
      ];
      for (const seed of seedsOf(ctx)) {
        const source = sourceOf(ctx, [inputFor(ctx, plantPatterns(seed))]);
        let state: SearchState | undefined;
        const { layers } = await searchPatterns(prefill, source, {
          space,
          targetDensity: 0.35,
          onState: (s) => {
            state = s;
          },
        });
        const heads = layers[0]?.heads ?? [];
        const chosen = heads.map((h) => h.candidates[h.best] as CandidateResult);
        const table = JSON.stringify(heads.map((h) => [h.best, h.candidates.map((c) => [c.pattern.kind, c.density, c.recall])]));
        assert(chosen.map((c) => c.pattern.kind).join() === 'a_shape,vertical_slash,block_sparse', `seed ${seed}: ${table}`);
        assert(
          chosen.every((c) => c.recall > 0.9),
          `seed ${seed}: the planted mass is kept: ${table}`,
        );
        assert(chosen.reduce((sum, c) => sum + c.density, 0) / 3 <= 0.35, `seed ${seed}: mean density: ${table}`);
        const again = await searchPatterns(prefill, source, { space, targetDensity: 0.2, resume: state as SearchState });
        const densities = again.layers[0]?.heads.map((h) => h.candidates[h.best]?.density ?? 1) ?? [];
        assert(densities.reduce((sum, d) => sum + d, 0) / 3 <= 0.2, `seed ${seed}: a tighter limit: ${densities.join()}`);
        const refused = async (options: SearchOptions): Promise<unknown> =>
          searchPatterns(prefill, source, { space, ...options }).then(
            () => undefined,
            (e: unknown) => (e instanceof MinferenceError ? e.argument : e),
          );
        for (const targetDensity of [0, 1.01, Number.NaN]) {
          assert((await refused({ targetDensity })) === 'targetDensity', `target density ${targetDensity}`);
        }
        assert((await refused({ targetDensity: 0.3, target: { density: 0.3 } })) === 'target', 'two targets');
        assert(
          (await refused({ targetDensity: 0.01, resume: state as SearchState })) === 'targetDensity',
          'less than the cheapest',
        );
      }
      prefill.destroy();
    },
  },
  {
    name: 'search: goes on where it was stopped, and refuses the state of another search',
    run: async (ctx) => {
      const prefill = new SparsePrefill(ctx.device, { tier: ctx.profile.tier });
      const inputs = [ctx.seed, ctx.seed + 1].map((seed) =>
        inputFor(ctx, randomLayer({ ...SHAPE, queries: 192, keys: 192 }, seed)),
      );
      const options: SearchOptions = { space: SPACE, target: { initSize: 16, localSize: 64 } };
      const whole = await searchPatterns(prefill, sourceOf(ctx, inputs), options);
      const controller = new AbortController();
      const reason = new Error('enough');
      let saved = '';
      let steps = 0;
      const stopped: unknown = await searchPatterns(prefill, sourceOf(ctx, inputs), {
        ...options,
        signal: controller.signal,
        onState: (state) => {
          saved = JSON.stringify(state);
          if (++steps === 2) controller.abort(reason);
        },
      }).then(
        () => undefined,
        (e: unknown) => e,
      );
      assert(stopped === reason, `stopped with the reason, not ${String(stopped)}`);
      const resume = JSON.parse(saved) as SearchState;
      assert(resume.partial.length === 2 && resume.layers.length === 0, 'two candidates were done');
      const fractions: number[] = [];
      const rest = await searchPatterns(prefill, sourceOf(ctx, inputs), {
        ...options,
        resume,
        onProgress: (p) => fractions.push(p.fraction),
      });
      assert(fractions.length === 6 && fractions.at(-1) === 1, `the six other candidates were measured: ${fractions.join()}`);
      const sizes = (r: typeof rest) =>
        JSON.stringify(r.layers.map((l) => l.heads.map((h) => h.candidates.map((c) => [c.pattern, c.recall, c.error]))));
      assert(sizes(rest) === sizes(whole), 'the result is that of a search in one go');
      const error: unknown = await searchPatterns(prefill, sourceOf(ctx, inputs, 'other'), { ...options, resume }).then(
        () => undefined,
        (e: unknown) => e,
      );
      assert(error instanceof MinferenceError && error.argument === 'resume', `another search's state: ${String(error)}`);
      prefill.destroy();
    },
  },
];
