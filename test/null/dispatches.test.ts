import { expect, test, vi } from 'vitest';
import { SHAPES, syntheticModel } from '../../bench/synthetic_model.js';
import { openNodeDevice } from '../../src/device/node.js';
import { PipelineCache } from '../../src/device/pipelines.js';
import { BufferPool } from '../../src/device/pool.js';
import { profileDevice } from '../../src/device/profile.js';
import { Recorder } from '../../src/device/recorder.js';
import { MATRIX_FEATURE, MATRIX_SHAPES } from '../../src/device/subgroup_matrix.js';
import { LanguageModel } from '../../src/model/runtime.js';
import type { ModelConfig } from '../../src/model/types.js';
import { planLayer } from '../../src/scheduler/plan.js';
import { SparsePrefill } from '../../src/scheduler/prefill.js';
import type { AttentionLayer, HeadPattern } from '../../src/scheduler/types.js';
import { resolveLayer } from '../../src/scheduler/validate.js';

const device = await openNodeDevice({ backend: 'null', optionalFeatures: [MATRIX_FEATURE] });
const profile = profileDevice(device, 'f16');
const [buffer, o] = [0, 1].map(() => device.createBuffer({ size: 2 ** 26, usage: 0x80 })) as [GPUBuffer, GPUBuffer];

/** A chunk of 8,192 rows of four heads at the end of 65,536 tokens. */
const LAYER = {
  q: buffer,
  k: buffer,
  v: buffer,
  o,
  numHeads: 4,
  numKvHeads: 1,
  headDim: 64,
  seqLen: 8192,
  kvLen: 65_536,
  queryOffset: 57_344,
  dtype: 'f16',
  patterns: { kind: 'dense' },
} as const;

const H100 = { maxComputeWorkgroupStorageSize: 49_152, maxComputeInvocationsPerWorkgroup: 1024 } as GPUSupportedLimits;

interface Planned {
  readonly layer?: Partial<AttentionLayer>;
  /** Whether the device has matrices; `shapes`: such that kernels use, and as much workgroup memory as an H100. */
  readonly matrix?: boolean | 'shapes';
  readonly dispatchFlops?: number;
  readonly workspaceLimit?: number;
  readonly workgroups?: number;
}

/** The dispatches of a layer, by default {@link LAYER}, and the most workspace that they hold at once. */
function plan({ layer = {}, matrix = false, dispatchFlops = 1e15, workspaceLimit = 2 ** 28, workgroups }: Planned) {
  const pool = new BufferPool(device);
  const rec = new Recorder(device, pool, new PipelineCache(device));
  const chosen = {
    ...profile,
    ...(matrix ? { matrix: { shapes: matrix === 'shapes' ? MATRIX_SHAPES : [], sync: 'workgroup' as const } } : {}),
    ...(matrix === 'shapes' ? { limits: H100 } : {}),
    ...(workgroups ? { tilings: { workgroups } } : {}),
  };
  planLayer(rec, resolveLayer(chosen, { ...LAYER, ...layer }), { profile: chosen, workspaceLimit, dispatchFlops });
  const dispatches = rec.steps.flatMap((step) => (step.kind === 'dispatch' ? [step] : []));
  return { dispatches, peakBytes: pool.report().peakBytes };
}

/** Workgroups of each dispatch of {@link LAYER}. */
function workgroupsOf(matrix: boolean, dispatchFlops: number): number[] {
  return plan({ matrix, dispatchFlops, workgroups: matrix ? 264 : 1 }).dispatches.map(({ workgroups: [x, y, z] }) => x * y * z);
}

test('dispatches are cut where they would take long, but never so small that they leave tensor cores idle', () => {
  const rows = 64;
  const total = (8192 / rows) * 4;
  expect(workgroupsOf(false, 1e15)).toEqual([total]);
  expect(workgroupsOf(false, 1e9).length).toBe(8192 / rows);
  // No piece is smaller than what fills a large GPU, save what remains.
  expect(workgroupsOf(true, 1e9)).toEqual([264, total - 264]);
});

test('few rows that see many keys have their keys split, as far as workspace allows', async () => {
  const shapes = (planned: Planned) =>
    plan(planned).dispatches.map(({ label, workgroups }) => [label.split(' ')[0], ...workgroups]);
  // 66 workgroups for each of four heads fill a GPU; the results of 128 rows are merged 32 vec4 at a time.
  const rows = { seqLen: 128, queryOffset: 65_408 } as const;
  expect(shapes({ layer: rows })).toEqual([
    ['dense', 4, 2, 33],
    ['merge', (128 * 64) / 4 / 32, 4, 1],
  ]);
  const bytes = 4 * 128 * (64 * 2 + 4);
  const { dispatches, peakBytes } = plan({ layer: rows, workspaceLimit: 5 * bytes + 16 });
  expect(dispatches[0]?.workgroups).toEqual([4, 2, 5]);
  expect(peakBytes).toBeLessThanOrEqual(5 * bytes + 16);
  expect(shapes({ layer: rows, workspaceLimit: bytes + 16 })).toEqual([['dense', 4, 2, 1]]);
  // A kernel on matrices may have a multiprocessor to itself: then half as many are enough. (This device has too little memory for it.)
  device.pushErrorScope('validation');
  const alone = { ...rows, numHeads: 2, numKvHeads: 1, headDim: 128 };
  expect(shapes({ layer: alone, matrix: 'shapes' })[0]).toEqual(['dense', 2, 1, 66]);
  expect((await device.popErrorScope())?.message).toContain('workgroup storage');
  // No split has fewer than 512 keys, and enough rows are not split.
  expect(shapes({ layer: { seqLen: 128, kvLen: 1600, queryOffset: 1472 } })[0]).toEqual(['dense', 4, 2, 3]);
  expect(shapes({})).toEqual([['dense', 4, 128, 1]]);
  // The last rows of tri-shape see all keys, the others few.
  const patterns = { kind: 'tri_shape', initSize: 64, localSize: 512, lastSize: 64 } as const;
  expect(shapes({ layer: { patterns } })).toEqual([
    ['a_shape', 4, 1, 66],
    ['merge', (64 * 64) / 4 / 32, 4, 1],
    ['a_shape', 4, 127, 1],
  ]);
});

test('heavy rows of all heads come before light ones of any, unless the device is filled many times over or keys fit no cache', () => {
  const grid = (planned: Planned) => plan(planned).dispatches[0]?.workgroups;
  expect(grid({ workgroups: 33 })).toEqual([4, 128, 1]);
  expect(grid({ workgroups: 32 })).toEqual([128, 4, 1]);
  const long = { kvLen: 262_144, queryOffset: 253_952 };
  expect(grid({ layer: long })).toEqual([4, 128, 1]);
  expect(grid({ layer: { kvLen: 262_145, queryOffset: 253_953 } })).toEqual([128, 4, 1]);
  const patterns = { kind: 'a_shape', initSize: 64, localSize: 512 } as const;
  expect(grid({ layer: { patterns } })).toEqual([4, 128, 1]);
  expect(grid({ layer: { patterns }, workgroups: 4 })).toEqual([128, 4, 1]);
});

test('heads whose pattern keeps everything are dense, together and without an index', () => {
  const short = { seqLen: 4096, kvLen: 4096, queryOffset: 0 };
  const names = (patterns: AttentionLayer['patterns']) =>
    plan({ layer: { ...short, patterns } }).dispatches.map(({ label }) => label.split(' ')[0]);
  const all = [
    { kind: 'vertical_slash', verticalSize: 1000, slashSize: 4096 },
    { kind: 'block_sparse', topK: 64 },
    { kind: 'a_shape', initSize: 96, localSize: 4000 },
    { kind: 'tri_shape', initSize: 0, localSize: 64, lastSize: 4096 },
  ] as const;
  expect(names(all)).toEqual(['dense']);
  const last = [
    { kind: 'vertical_slash', verticalSize: 4095, slashSize: 4095 },
    { kind: 'block_sparse', topK: 63 },
    { kind: 'a_shape', initSize: 96, localSize: 3999 },
    { kind: 'tri_shape', initSize: 0, localSize: 64, lastSize: 4095 },
  ] as const;
  const kernels = names(last).filter((name) => ['dense', 'vertical_slash', 'block_sparse', 'a_shape'].includes(name ?? ''));
  expect(new Set(kernels)).toEqual(new Set(['vertical_slash', 'block_sparse', 'a_shape']));
  // Keys behind the last row count as diagonals, but not as blocks.
  const behind = { ...short, kvLen: 5000 };
  const kinds = (pattern: HeadPattern) =>
    plan({ layer: { ...behind, patterns: pattern } })
      .dispatches.at(-1)
      ?.label.split(' ')[0];
  expect([kinds(all[0]), kinds(all[1])]).toEqual(['vertical_slash', 'dense']);
});

test('the results of splits are no buffer that a kernel also writes, however small they are', async () => {
  const prefill = new SparsePrefill(device, { tier: 'f16', tilings: { workgroups: 4 } });
  device.pushErrorScope('validation');
  const encoder = device.createCommandEncoder();
  const row = { ...LAYER, numHeads: 1, seqLen: 1, kvLen: 2048, queryOffset: 2047 };
  expect(prefill.record(encoder, row).dispatches).toBe(2);
  device.queue.submit([encoder.finish()]);
  expect((await device.popErrorScope())?.message).toBeUndefined();
});

test('heads that share keys take turns where none of them fills a workgroup', () => {
  const shapes = (layer: Partial<AttentionLayer>) => plan({ layer }).dispatches.map(({ workgroups }) => workgroups);
  const chunk = { seqLen: 16, queryOffset: 65_520 };
  expect(shapes(chunk)[0]).toEqual([1, 1, 128]);
  expect(shapes({ ...chunk, seqLen: 33, queryOffset: 65_503 })[0]).toEqual([1, 3, 88]);
  expect(shapes({ ...chunk, numKvHeads: 4 })[0]).toEqual([4, 1, 66]);
  // Other heads see other keys.
  const dense = { kind: 'dense' } as const;
  expect(shapes({ ...chunk, patterns: [dense, dense, dense, { kind: 'a_shape', initSize: 64, localSize: 512 }] })[0]).toEqual([
    3, 1, 88,
  ]);
});

test('work that took less time than guessed leads to longer dispatches, in models as well', async () => {
  const prefill = new SparsePrefill(device, { tier: 'f16', dispatchMs: 1 });
  const dispatches = (): number => prefill.record(device.createCommandEncoder(), LAYER).dispatches;
  const before = dispatches();
  prefill.learnSpeed(1e12, 1); // too short to tell
  expect(dispatches()).toBe(before);
  for (let i = 0; i < 5; i++) prefill.learnSpeed(1e13, 10);
  expect(dispatches()).toBeLessThan(before / 4);

  const learn = vi.spyOn(SparsePrefill.prototype, 'learnSpeed');
  const config = SHAPES['tiny'] as ModelConfig;
  const model = await LanguageModel.load(device, syntheticModel(config, 'f16'), { contextLength: 256 });
  await model.prefill(new Array<number>(200).fill(1));
  // At least the products with weights and dense attention under the diagonal.
  const causal = (200 * 201) / 2;
  const least = config.layers * (2 * 200 * (2 * 256 * 256 + 3 * 256 * 512) + 4 * config.headDim * config.numHeads * causal);
  expect(learn.mock.calls.reduce((sum, [flops]) => sum + flops, 0)).toBeGreaterThanOrEqual(least);
  learn.mockRestore();
  model.destroy();
});
