import fc from 'fast-check';
import { MinferenceError } from '../../src/errors.js';
import { RecallMeter } from '../../src/patterns/recall.js';
import { type SearchOptions, type SearchSource, searchPatterns } from '../../src/patterns/search.js';
import { SparsePrefill } from '../../src/scheduler/prefill.js';
import type { StageTimer } from '../../src/scheduler/submit.js';
import type { AttentionLayer, RunOptions } from '../../src/scheduler/types.js';
import { PATTERN_KINDS, resolveLayer } from '../../src/scheduler/validate.js';
import { assert, randomOf, type SuiteCase, type SuiteContext } from './context.js';
import { makeTensor, readTensor } from './tensors.js';

const HEAD_DIM = 64;
const HEADS = 4;
const KV_HEADS = 2;
const ROWS = 70;
const SPACE = { kind: 'a_shape', initSize: 4, localSize: 16 } as const;

type Change = { readonly name: string; readonly argument: RegExp; readonly apply: (layer: Record<string, unknown>) => unknown };

const NOT_INTEGERS: readonly unknown[] = [
  Number.NaN,
  Number.POSITIVE_INFINITY,
  Number.NEGATIVE_INFINITY,
  -1,
  0.5,
  1.5,
  '8',
  {},
  [],
  true,
  1n,
  2 ** 40,
  2 ** 53,
];
const NOT_BUFFERS: readonly unknown[] = [
  undefined,
  null,
  0,
  1,
  'q',
  {},
  [],
  new ArrayBuffer(64),
  new Float32Array(4),
  { buffer: null },
  { buffer: {} },
];

/** Every way in which one argument of a valid layer can be wrong. */
function changes(ctx: SuiteContext): Change[] {
  const list: Change[] = [];
  const set = (field: string, values: readonly unknown[], argument = new RegExp(`^${field}`)): void => {
    for (const value of values) {
      list.push({ name: `${field} = ${describe(value)}`, argument, apply: (layer) => ({ ...layer, [field]: value }) });
    }
  };
  set('numHeads', [0, ...NOT_INTEGERS, 5000, 3], /^num(Kv)?Heads/);
  set('numKvHeads', [0, 3, 8, ...NOT_INTEGERS]);
  set('headDim', [0, 1, 48, 63, 100, 512, ...NOT_INTEGERS]);
  set('seqLen', [0, 71, 1000, 2 ** 26, ...NOT_INTEGERS], /^(seqLen|kvLen|queryOffset|q|k|v|o|lse)/);
  set('kvLen', [0, 1, 69, 71, 1000, ...NOT_INTEGERS], /^(kvLen|queryOffset|k|v)/);
  set('queryOffset', [1, 70, 2 ** 25, ...NOT_INTEGERS], /^(queryOffset|kvLen|k|v)/);
  set('scale', [Number.NaN, Number.POSITIVE_INFINITY, '1', {}, 1n]);
  set('dtype', [undefined, null, 'bf16', 'F16', 'float32', 16, {}]);
  set('layout', ['hnd', 'BHND', 3, {}]);
  for (const tensor of ['q', 'k', 'v', 'o']) {
    set(tensor, NOT_BUFFERS);
    for (const field of ['offset', 'headStride', 'rowStride']) {
      for (const value of [Number.NaN, -4, 2, 1.5, '16', 2 ** 33]) {
        list.push({
          name: `${tensor}.${field} = ${describe(value)}`,
          argument: new RegExp(`^${tensor}`),
          apply: (layer) => ({ ...layer, [tensor]: { buffer: layer[tensor], [field]: value } }),
        });
      }
    }
    list.push({
      name: `${tensor} too small`,
      argument: new RegExp(`^${tensor}`),
      apply: (layer) => ({ ...layer, [tensor]: ctx.device.createBuffer({ size: 1024, usage: 0x80 }) }),
    });
    list.push({
      name: `${tensor} not for storage`,
      argument: new RegExp(`^${tensor}`),
      apply: (layer) => ({ ...layer, [tensor]: ctx.device.createBuffer({ size: 2 ** 20, usage: 0x08 }) }),
    });
    list.push({
      name: `${tensor} mapped`,
      argument: new RegExp(`^${tensor}`),
      apply: (layer) => ({ ...layer, [tensor]: ctx.device.createBuffer({ size: 2 ** 20, usage: 0x80, mappedAtCreation: true }) }),
    });
  }
  for (const tensor of ['q', 'k', 'v'])
    list.push({ name: `o is ${tensor}`, argument: /^o/, apply: (layer) => ({ ...layer, o: layer[tensor] }) });
  for (const tensor of ['q', 'k', 'v', 'o'])
    list.push({ name: `lse is ${tensor}`, argument: /^lse/, apply: (layer) => ({ ...layer, lse: layer[tensor] }) });
  set('lse', [
    null,
    1,
    'lse',
    {},
    { buffer: 3 },
    ctx.device.createBuffer({ size: 64, usage: 0x80 }),
    { buffer: ctx.device.createBuffer({ size: 2 ** 20, usage: 0x80 }), offset: 2 },
  ]);

  const pattern = (value: unknown): void => {
    list.push({
      name: `patterns = ${describe(value)}`,
      argument: /^patterns/,
      apply: (layer) => ({ ...layer, patterns: value }),
    });
    list.push({
      name: `patterns[2] = ${describe(value)}`,
      argument: /^patterns/,
      apply: (layer) => ({ ...layer, patterns: [{ kind: 'dense' }, { kind: 'dense' }, value, { kind: 'dense' }] }),
    });
  };
  for (const value of [
    undefined,
    null,
    'dense',
    7,
    {},
    { kind: 'stripes' },
    { kind: 3 },
    { kind: 'constructor' },
    { kind: '__proto__' },
  ])
    pattern(value);
  for (const bad of [Number.NaN, -1, 0.5, '9', undefined, Number.POSITIVE_INFINITY, 2 ** 40]) {
    pattern({ kind: 'a_shape', initSize: bad, localSize: 10 });
    pattern({ kind: 'a_shape', initSize: 10, localSize: bad });
    pattern({ kind: 'vertical_slash', verticalSize: bad, slashSize: 10 });
    pattern({ kind: 'vertical_slash', verticalSize: 10, slashSize: bad });
    pattern({ kind: 'block_sparse', topK: bad });
    pattern({ kind: 'tri_shape', initSize: bad, localSize: 10, lastSize: 10 });
    pattern({ kind: 'tri_shape', initSize: 10, localSize: bad, lastSize: 10 });
    pattern({ kind: 'tri_shape', initSize: 10, localSize: 10, lastSize: bad });
    pattern({ kind: 'static_vertical_slash', columns: bad, runs: [] });
    pattern({ kind: 'static_vertical_slash', columns: [], runs: bad });
    pattern({ kind: 'static_vertical_slash', columns: [1, bad], runs: [] });
    pattern({ kind: 'static_vertical_slash', columns: [], runs: [0, 3, bad, 9] });
    pattern({ kind: 'x_attention', stride: bad, threshold: 0.9 });
    if (bad !== 0.5) pattern({ kind: 'x_attention', stride: 8, threshold: bad });
    if (bad !== undefined && bad !== 0.5) {
      pattern({ kind: 'flex_prefill', gamma: bad });
      pattern({ kind: 'flex_prefill', tau: bad });
    }
    if (bad !== undefined) pattern({ kind: 'flex_prefill', minBudget: bad });
  }
  pattern({ kind: 'a_shape', initSize: 4, localSize: 0 });
  pattern({ kind: 'block_sparse', topK: 0 });
  for (const length of [0, 1, 3, 5]) {
    list.push({
      name: `${length} patterns`,
      argument: /^patterns/,
      apply: (layer) => ({ ...layer, patterns: new Array(length).fill({ kind: 'dense' }) }),
    });
  }
  for (const value of [undefined, null, 3, 'layer'])
    list.push({ name: `layer = ${describe(value)}`, argument: /^layer/, apply: () => value });
  return list;
}

function describe(value: unknown): string {
  if (typeof value === 'bigint') return `${value}n`;
  if (typeof value === 'object' && value !== null)
    return Object.prototype.toString.call(value) === '[object Object]'
      ? JSON.stringify(value, (_, v) => (typeof v === 'number' ? String(v) : v))
      : Object.prototype.toString.call(value);
  return typeof value === 'string' ? JSON.stringify(value) : String(value);
}

function validLayer(ctx: SuiteContext): { layer: AttentionLayer; check: () => Promise<void> } {
  const random = randomOf(ctx, 'bad input');
  const values = (heads: number) => random.normals(heads * ROWS * HEAD_DIM);
  const tensor = (heads: number, fill: boolean) =>
    makeTensor(ctx.device, { heads, rows: ROWS, headDim: HEAD_DIM }, 'f32', undefined, fill ? values(heads) : undefined);
  const o = tensor(HEADS, false);
  return {
    layer: {
      q: tensor(HEADS, true).buffer,
      k: tensor(KV_HEADS, true).buffer,
      v: tensor(KV_HEADS, true).buffer,
      o: o.buffer,
      numHeads: HEADS,
      numKvHeads: KV_HEADS,
      headDim: HEAD_DIM,
      seqLen: ROWS,
      dtype: 'f32',
      patterns: { kind: 'dense' },
    },
    check: async () => {
      const out = await readTensor(ctx.device, o, 'o');
      assert(out.every(Number.isFinite), 'the device still computes after bad input');
    },
  };
}

/** Anything that a program may pass by mistake. */
const JUNK = fc.oneof(
  fc.constantFrom<unknown>(undefined, null, '', 'dense', 'f16', true, {}, [], Number.NaN, Number.POSITIVE_INFINITY, -0, 1n),
  fc.integer(),
  fc.double(),
  fc.string({ maxLength: 8 }),
  fc.array(fc.integer(), { maxLength: 3 }),
  fc.object({ maxDepth: 1, maxKeys: 3 }),
);

/** The error of one call, which must be a typed one that names an argument. */
async function typedError(what: string, call: () => unknown): Promise<MinferenceError> {
  let error: unknown;
  try {
    await call();
  } catch (e) {
    error = e;
  }
  assert(
    error instanceof MinferenceError && (error.code === 'invalid-argument' || error.code === 'limit'),
    `${what}: ${error === undefined ? 'no error' : String(error)}`,
  );
  assert((error.argument ?? '') !== '' && error.message.includes(error.argument ?? '?'), `${what} names it: ${error.message}`);
  return error;
}

/** Wrong arguments are refused before anything is submitted, by one kind of error that names them. */
export const badInputCases: SuiteCase[] = [
  {
    name: 'bad input: hundreds of wrong arguments each give a typed error that names them',
    run: async (ctx) => {
      const prefill = new SparsePrefill(ctx.device, { tier: ctx.profile.tier });
      const { layer, check } = validLayer(ctx);
      const all = changes(ctx);
      assert(all.length >= 200, `there are only ${all.length} cases`);
      for (const change of all) {
        const bad = change.apply({ ...layer }) as AttentionLayer;
        for (const call of ['run', 'record'] as const) {
          let error: unknown;
          try {
            if (call === 'run') await prefill.run(bad);
            else prefill.record(ctx.device.createCommandEncoder(), bad);
          } catch (e) {
            error = e;
          }
          assert(
            error instanceof MinferenceError,
            `${call} with ${change.name}: ${error === undefined ? 'no error' : String(error)}`,
          );
          assert(error.code === 'invalid-argument' || error.code === 'limit', `${call} with ${change.name}: code ${error.code}`);
          assert(
            change.argument.test(error.argument ?? ''),
            `${call} with ${change.name} blames ${error.argument}: ${error.message}`,
          );
          assert(
            (error.allowed ?? '') !== '' && error.message.includes(error.argument ?? '?'),
            `${call} with ${change.name} explains itself: ${error.message}`,
          );
        }
      }
      await prefill.run(layer);
      await check();
      prefill.destroy();
    },
  },
  {
    name: 'bad input: several wrong arguments at once, at random, give a typed error, and the device stays usable',
    run: async (ctx) => {
      const prefill = new SparsePrefill(ctx.device, { tier: ctx.profile.tier });
      const { layer, check } = validLayer(ctx);
      const all = changes(ctx).filter((c) => !c.name.startsWith('layer ='));
      let cases = 0;
      await fc.assert(
        fc.asyncProperty(fc.uniqueArray(fc.nat(all.length - 1), { minLength: 1, maxLength: 4 }), async (chosen) => {
          const bad = chosen.reduce<unknown>((l, i) => all[i]?.apply(l as Record<string, unknown>), {
            ...layer,
          }) as AttentionLayer;
          const what = chosen.map((i) => all[i]?.name).join(', ');
          await typedError(what, () => prefill.run(bad));
          if (++cases % 50 === 0) {
            await prefill.run(layer);
            await check();
          }
        }),
        { seed: ctx.seed, numRuns: 250, endOnFailure: true },
      );
      prefill.destroy();
    },
  },
  {
    name: 'bad input: junk anywhere in a layer either gives a typed error or is valid, and the device stays usable',
    run: async (ctx) => {
      const prefill = new SparsePrefill(ctx.device, { tier: ctx.profile.tier });
      const { layer, check } = validLayer(ctx);
      const fields = fc.constantFrom(
        ...['q', 'k', 'v', 'o', 'lse', 'numHeads', 'numKvHeads', 'headDim', 'seqLen', 'kvLen', 'queryOffset', 'dtype', 'layout'],
        ...['scale', 'patterns'],
      );
      const nested = fc.oneof(
        fc.record({ buffer: JUNK, offset: JUNK, headStride: JUNK, rowStride: JUNK }, { requiredKeys: [] }),
        fc.record(
          { kind: fc.constantFrom(...PATTERN_KINDS), initSize: JUNK, localSize: JUNK, lastSize: JUNK },
          { requiredKeys: [] },
        ),
        fc.record({ kind: fc.constantFrom(...PATTERN_KINDS), topK: JUNK, columns: JUNK, runs: JUNK }, { requiredKeys: [] }),
      );
      let refused = 0;
      await fc.assert(
        fc.asyncProperty(fields, fc.oneof(JUNK, nested), async (field, value) => {
          const changed = { ...layer, [field]: value } as AttentionLayer;
          const what = `${field} = ${fc.stringify(value)}`;
          let valid = true;
          try {
            resolveLayer(ctx.profile, changed);
          } catch {
            valid = false;
          }
          if (valid) return;
          await typedError(what, () => prefill.run(changed));
          if (++refused % 100 === 0) {
            await prefill.run(layer);
            await check();
          }
        }),
        { seed: ctx.seed, numRuns: 400, endOnFailure: true },
      );
      assert(refused > 200, `${refused} of 400 were refused`);
      await prefill.run(layer);
      await check();
      prefill.destroy();
    },
  },
  {
    name: 'bad input: recall and search refuse wrong arguments by name',
    run: async (ctx) => {
      const prefill = new SparsePrefill(ctx.device, { tier: ctx.profile.tier });
      const { layer, check } = validLayer(ctx);
      const meter = new RecallMeter(prefill);
      const named = async (what: string, argument: string, call: () => unknown): Promise<void> => {
        const error = await typedError(what, call);
        assert(error.argument === argument, `${what} blames ${error.argument}: ${error.message}`);
      };
      for (const value of [undefined, null, 3]) {
        await named(`reference ${String(value)}`, 'layer', () => meter.reference(value as unknown as AttentionLayer));
      }
      for (const [field, value] of [
        ['seqLen', Number.NaN],
        ['seqLen', 0],
        ['numHeads', 1.5],
        ['headDim', '64'],
        ['dtype', 'f64'],
        ['scale', Number.NaN],
      ] as const) {
        await named(`reference ${field} = ${value}`, field, () =>
          meter.reference({ ...layer, [field]: value } as AttentionLayer),
        );
      }
      const dense = await meter.reference(layer);
      for (const value of [-1, ROWS, 0.5, Number.NaN]) {
        await named(`firstRow ${value}`, 'firstRow', () => meter.measure(dense, layer.patterns, { firstRow: value }));
      }
      await named('two patterns', 'patterns', () => meter.measure(dense, [{ kind: 'dense' }, { kind: 'dense' }]));
      await named('a map of head 4', 'head', () => meter.attentionMap(dense, HEADS));
      await named('a map of no size', 'size', () => meter.attentionMap(dense, 0, 0));
      dense.destroy();
      meter.destroy();

      const source: SearchSource = { name: 'bad input', layers: 1, load: async () => ({ layer }) };
      const wrong: readonly (readonly [string, object])[] = [
        ['space', { space: [] }],
        ['space', { space: 'a_shape' }],
        ['space[0].kind', { space: [{ kind: 'stripes' }] }],
        ['space[0].kind', { space: [{ kind: 'dense' }] }],
        ['space[1].topK', { space: [SPACE, { kind: 'block_sparse', topK: Number.NaN }] }],
        ['target', { target: 5 }],
        ['target.density', { target: { density: Number.NaN } }],
        ['target.density', { target: { density: '0.5' } }],
        ['target.initSize', { target: {} }],
        ['target.localSize', { target: { initSize: 4, localSize: 0 } }],
        ['criterion', { criterion: 'speed' }],
        ['costTolerance', { costTolerance: -1 }],
        ['tieTolerance', { tieTolerance: Number.NaN }],
        ['firstRow', { firstRow: 0.5 }],
        ['resume', { resume: null }],
        ['resume', { resume: { version: 1, fingerprint: 'another' } }],
      ];
      for (const [argument, options] of wrong) {
        await named(`search ${describe(options)}`, argument, () => searchPatterns(prefill, source, options as SearchOptions));
      }
      await named('no source', 'source', () => searchPatterns(prefill, undefined as unknown as SearchSource));
      await named('no layers', 'source.layers', () => searchPatterns(prefill, { ...source, layers: 0 }));
      await named('no load', 'source.load', () => searchPatterns(prefill, { name: 'x', layers: 1 } as unknown as SearchSource));
      await prefill.run(layer);
      await check();
      prefill.destroy();
    },
  },
  {
    name: 'bad input: wrong options and calls give typed errors',
    run: async (ctx) => {
      const refused = (what: string, argument: string, body: () => unknown): void => {
        let error: unknown;
        try {
          body();
        } catch (e) {
          error = e;
        }
        assert(error instanceof MinferenceError && error.argument === argument, `${what}: ${String(error)}`);
      };
      const make = (options: object) => () => new SparsePrefill(ctx.device, options);
      for (const value of [0, -5, Number.NaN, '512', 1.5])
        refused(`workspaceLimit ${String(value)}`, 'options.workspaceLimit', make({ workspaceLimit: value }));
      for (const value of [0, -5, Number.NaN, '100'])
        refused(`dispatchMs ${String(value)}`, 'options.dispatchMs', make({ dispatchMs: value }));
      for (const value of ['f64', 'matrixx', 3]) refused(`tier ${String(value)}`, 'tier', make({ tier: value }));
      for (const value of [undefined, null, {}, 'gpu'])
        refused(`device ${String(value)}`, 'device', () => new SparsePrefill(value as unknown as GPUDevice));
      const prefill = new SparsePrefill(ctx.device, { tier: ctx.profile.tier });
      const { layer, check } = validLayer(ctx);
      for (const value of [undefined, null, {}])
        refused(`encoder ${String(value)}`, 'encoder', () => prefill.record(value as unknown as GPUCommandEncoder, layer));
      refused('options null', 'options', make(null as unknown as object));
      refused('timer {}', 'timer', () => prefill.record(ctx.device.createCommandEncoder(), layer, {} as unknown as StageTimer));
      for (const [options, argument] of [
        [null, 'options'],
        [7, 'options'],
        [{ signal: null }, 'options.signal'],
        [{ signal: {} }, 'options.signal'],
        [{ onProgress: 'yes' }, 'options.onProgress'],
      ] as const) {
        const error = await prefill.run(layer, options as unknown as RunOptions).then(
          () => undefined,
          (e: unknown) => e,
        );
        assert(error instanceof MinferenceError && error.argument === argument, `run ${describe(options)}: ${String(error)}`);
      }
      for (const [options, argument] of [
        [undefined, 'options'],
        [{ headDim: 64, dtype: 'f32', kinds: 'dense' }, 'kinds'],
        [{ headDim: 64, dtype: 'f32', kinds: ['dense', 'stripes'] }, 'kinds[1]'],
        [{ headDim: 50, dtype: 'f32' }, 'headDim'],
        [{ headDim: 64, dtype: 'f64' }, 'dtype'],
      ] as const) {
        const error = await prefill.prepare(options as never).then(
          () => undefined,
          (e: unknown) => e,
        );
        assert(
          error instanceof MinferenceError && error.argument === argument,
          `prepare ${JSON.stringify(options)}: ${String(error)}`,
        );
      }
      await prefill.run(layer);
      await check();
      prefill.destroy();
    },
  },
];
