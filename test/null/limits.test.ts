import { expect, test } from 'vitest';
import { createNodeGpu, openNodeDevice } from '../../src/device/node.js';
import { MinferenceError } from '../../src/errors.js';
import { strided } from '../../src/patterns/static.js';
import { SparsePrefill } from '../../src/scheduler/prefill.js';
import type { AttentionLayer, HeadPattern } from '../../src/scheduler/types.js';

const MIB = 2 ** 20;
const MILLION = 2 ** 20;

/** A device of the null backend with these features and WebGPU's default limits, which every adapter has. */
async function plainDevice(...requiredFeatures: string[]): Promise<GPUDevice> {
  const adapter = await createNodeGpu({ backend: 'null' }).requestAdapter();
  return (adapter as GPUAdapter).requestDevice({ requiredFeatures: requiredFeatures as GPUFeatureName[] });
}

test('the tier follows from the features of the device, and can be chosen among those that it can run', async () => {
  const tierOf = (device: GPUDevice): string => new SparsePrefill(device).profile.tier;
  const core = await plainDevice();
  expect(tierOf(core)).toBe('portable');
  expect(tierOf(await plainDevice('shader-f16'))).toBe('f16');
  const all = await openNodeDevice({ backend: 'null' });
  expect(new SparsePrefill(all, { tier: 'portable' }).profile.tier).toBe('portable');
  expect(new SparsePrefill(all, { tier: 'f16' }).profile.tier).toBe('f16');
  for (const tier of ['f16', 'matrix'] as const) {
    let error: unknown;
    try {
      new SparsePrefill(core, { tier });
    } catch (e) {
      error = e;
    }
    expect(error).toBeInstanceOf(MinferenceError);
    expect(error).toMatchObject({ code: 'unsupported', argument: 'tier', value: tier, allowed: '"portable"' });
  }
});

const patterns: readonly HeadPattern[] = [
  { kind: 'dense' },
  { kind: 'a_shape', initSize: 1024, localSize: 4096 },
  { kind: 'tri_shape', initSize: 1024, localSize: 4096, lastSize: 128 },
  { kind: 'vertical_slash', verticalSize: 1000, slashSize: 6096 },
  { kind: 'block_sparse', topK: 100 },
  { kind: 'flex_prefill', gamma: 0.9, tau: 0.1, minBudget: 1024 },
  strided(MILLION, { stride: 4096, localSize: 1024 }),
];

test.each(patterns)('a million tokens stay within the default limits: $kind', async (pattern) => {
  // The null backend checks every call and computes nothing; it has 512 MiB.
  const device = await plainDevice('shader-f16');
  const buffer = (): GPUBuffer => device.createBuffer({ size: MILLION * 32 * 2, usage: 0x80 });
  const layer: AttentionLayer = {
    q: buffer(),
    k: buffer(),
    v: buffer(),
    o: buffer(),
    numHeads: 1,
    headDim: 32,
    seqLen: MILLION,
    dtype: 'f16',
    patterns: pattern,
  };
  const errors: string[] = [];
  device.addEventListener('uncapturederror', (event) => errors.push((event as GPUUncapturedErrorEvent).error.message));
  const workspaceLimit = 96 * MIB;
  for (const dispatchMs of [100, 1e12]) {
    const prefill = new SparsePrefill(device, { workspaceLimit, dispatchMs });
    const report = await prefill.run(layer);
    expect(report.memory.peakBytes).toBeLessThan(1.3 * workspaceLimit + report.indexBytes);
    expect(report.indexBytes).toBeLessThanOrEqual(device.limits.maxStorageBufferBindingSize);
    // 100 ms at the speed that is guessed before anything is measured.
    if (dispatchMs === 100) expect(report.dispatches).toBeGreaterThan(report.flops / (3 * 100 * 1e9));
    prefill.destroy();
  }
  expect(errors).toEqual([]);
  device.destroy();
});
