import { expect, test, vi } from 'vitest';
import { SHAPES, syntheticModel } from '../../bench/synthetic_model.js';
import { openNodeDevice } from '../../src/device/node.js';
import { PipelineCache } from '../../src/device/pipelines.js';
import { BufferPool } from '../../src/device/pool.js';
import { profileDevice } from '../../src/device/profile.js';
import { Recorder } from '../../src/device/recorder.js';
import { LanguageModel } from '../../src/model/runtime.js';
import type { ModelConfig } from '../../src/model/types.js';
import { planLayer } from '../../src/scheduler/plan.js';
import { SparsePrefill } from '../../src/scheduler/prefill.js';
import { resolveLayer } from '../../src/scheduler/validate.js';

const device = await openNodeDevice({ backend: 'null' });
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

/** Workgroups of each of its dispatches. */
function workgroupsOf(matrix: boolean, dispatchFlops: number): number[] {
  const rec = new Recorder(device, new BufferPool(device), new PipelineCache(device));
  const chosen = matrix ? { ...profile, matrix: { shapes: [], sync: 'workgroup' as const } } : profile;
  const layer = resolveLayer(chosen, LAYER);
  planLayer(rec, layer, { profile: chosen, workspaceLimit: 2 ** 28, dispatchFlops });
  return rec.steps.flatMap((step) => (step.kind === 'dispatch' ? [step.workgroups[0] * step.workgroups[1]] : []));
}

test('dispatches are cut where they would take long, but never so small that they leave tensor cores idle', () => {
  const rows = 64;
  const total = (8192 / rows) * 4;
  expect(workgroupsOf(false, 1e15)).toEqual([total]);
  expect(workgroupsOf(false, 1e9).length).toBe(8192 / rows);
  // No piece is smaller than what fills a large GPU, save what remains.
  expect(workgroupsOf(true, 1e9)).toEqual([264, total - 264]);
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
