import { expect, test } from 'vitest';
import { openNodeDevice } from '../../src/device/node.js';
import { PipelineCache } from '../../src/device/pipelines.js';
import { BufferPool } from '../../src/device/pool.js';
import { profileDevice } from '../../src/device/profile.js';
import { Recorder } from '../../src/device/recorder.js';
import { planLayer } from '../../src/scheduler/plan.js';
import { resolveLayer } from '../../src/scheduler/validate.js';

const device = await openNodeDevice({ backend: 'null' });
const profile = profileDevice(device, 'f16');
const [buffer, o] = [0, 1].map(() => device.createBuffer({ size: 2 ** 26, usage: 0x80 })) as [GPUBuffer, GPUBuffer];

/** Workgroups of each dispatch of a chunk of 8,192 rows of four heads at the end of 65,536 tokens. */
function workgroupsOf(matrix: boolean, dispatchFlops: number): number[] {
  const rec = new Recorder(device, new BufferPool(device), new PipelineCache(device));
  const chosen = matrix ? { ...profile, matrix: { shapes: [], sync: 'workgroup' as const } } : profile;
  const layer = resolveLayer(chosen, {
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
  });
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
