import { expect, test } from 'vitest';
import { openNodeDevice } from '../../src/device/node.js';
import { MinferenceError } from '../../src/errors.js';
import { SparsePrefill } from '../../src/scheduler/prefill.js';
import { withErrorScopes } from '../../src/scheduler/submit.js';

const layerOf = (device: GPUDevice) => {
  const buffer = () => device.createBuffer({ size: 64 * 64 * 4, usage: 0x80 });
  const patterns = { kind: 'vertical_slash', verticalSize: 10, slashSize: 10 } as const;
  return {
    q: buffer(),
    k: buffer(),
    v: buffer(),
    o: buffer(),
    numHeads: 1,
    headDim: 64,
    seqLen: 64,
    dtype: 'f32' as const,
    patterns,
  };
};

const failure = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => 'no error',
    (error: unknown) => error,
  );

test('a lost device rejects running and later calls, and never hangs', async () => {
  const device = await openNodeDevice({ backend: 'null' });
  const prefill = new SparsePrefill(device, { tier: 'portable' });
  const layer = layerOf(device);
  const running = failure(prefill.run(layer));
  device.destroy();
  await device.lost;
  const first = await running;
  expect(first === 'no error' || (first instanceof MinferenceError && first.code === 'device-lost')).toBe(true);
  const later = await failure(prefill.run(layer));
  expect(later).toBeInstanceOf(MinferenceError);
  expect((later as MinferenceError).code).toBe('device-lost');
  expect(() => prefill.record({ beginComputePass: () => {} } as unknown as GPUCommandEncoder, layer)).toThrow(/device was lost/);
});

test('a GPU that is out of memory rejects with a typed error', async () => {
  // A device that reports what drivers report: memory errors cannot be had on demand.
  const results = [null, { message: 'no room for 3 GiB' }, null];
  const device = { pushErrorScope: () => {}, popErrorScope: () => Promise.resolve(results.shift()) } as unknown as GPUDevice;
  const error = await withErrorScopes(device, () => {
    throw new Error('a consequence of the failed allocation');
  });
  expect(error?.code).toBe('out-of-memory');
  expect(error?.message).toContain('no room for 3 GiB');
});

test('what the GPU rejects becomes a typed error', async () => {
  const device = await openNodeDevice({ backend: 'null' });
  const error = await withErrorScopes(device, () => {
    device.createBuffer({ size: 16, usage: 0x1 | 0x2 | 0x80 }); // mappable storage is invalid
  });
  expect(error?.code).toBe('gpu');
});
