import { expect, test } from 'vitest';
import { createNodeGpu, openNodeDevice } from '../../src/device/node.js';
import { MinferenceError } from '../../src/errors.js';
import { SparsePrefill } from '../../src/scheduler/prefill.js';
import type { AttentionLayer, RunOptions } from '../../src/scheduler/types.js';

const adapter = await createNodeGpu().requestAdapter();
const SEQ_LEN = 1500;

function layerOn(device: GPUDevice): AttentionLayer {
  const buffer = (): GPUBuffer => device.createBuffer({ size: 2 * SEQ_LEN * 64 * 4, usage: 0x80 });
  return {
    q: buffer(),
    k: buffer(),
    v: buffer(),
    o: buffer(),
    numHeads: 2,
    headDim: 64,
    seqLen: SEQ_LEN,
    dtype: 'f32',
    patterns: [{ kind: 'vertical_slash', verticalSize: 100, slashSize: 200 }, { kind: 'dense' }],
  };
}

const outcome = (work: Promise<unknown>): Promise<unknown> =>
  work.then(
    () => 'no error',
    (error: unknown) => error,
  );

test.skipIf(!adapter).each<[string, RunOptions]>([
  ['alone', {}],
  ['with timestamps and inspection', { timestamps: true, inspect: true }],
])('a device that is lost in the middle of a run rejects it at once, %s', async (_, options) => {
  const device = await openNodeDevice();
  const prefill = new SparsePrefill(device, { dispatchMs: 1e-3 });
  const layer = layerOn(device);
  let reports = 0;
  let lostAt = 0;
  const error = await outcome(
    prefill.run(layer, {
      ...options,
      onProgress: () => {
        if (++reports < 3) return;
        lostAt ||= performance.now();
        device.destroy();
      },
    }),
  );
  expect(reports).toBeGreaterThanOrEqual(3);
  expect(performance.now() - lostAt).toBeLessThan(10_000);
  expect(error).toBeInstanceOf(MinferenceError);
  expect((error as MinferenceError).code).toBe('device-lost');
  expect(((await outcome(prefill.run(layer, options))) as MinferenceError).code).toBe('device-lost');
  expect(prefill.memory().run.usedBytes).toBe(0);

  // A new device of the same adapter works.
  const next = await openNodeDevice();
  const again = new SparsePrefill(next);
  expect((await again.run(layerOn(next))).dispatches).toBeGreaterThan(1);
  again.destroy();
  next.destroy();
});

test.skipIf(!adapter)('runs that are waiting all reject when the device is lost', async () => {
  const device = await openNodeDevice();
  const prefill = new SparsePrefill(device, { dispatchMs: 1e-3 });
  const runs = [1, 2, 3].map(() => outcome(prefill.run(layerOn(device), { inspect: true })));
  setTimeout(() => device.destroy(), 0);
  for (const error of await Promise.all(runs)) expect((error as MinferenceError).code).toBe('device-lost');
});
