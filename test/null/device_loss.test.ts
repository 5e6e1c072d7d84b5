import { expect, test } from 'vitest';
import { openNodeDevice } from '../../src/device/node.js';
import { MinferenceError } from '../../src/errors.js';
import { RecallMeter } from '../../src/patterns/recall.js';
import { searchPatterns } from '../../src/patterns/search.js';
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

test('reading an index, measuring and searching reject too when the device is lost meanwhile', async () => {
  const calls: Record<string, (prefill: SparsePrefill, layer: ReturnType<typeof layerOf>) => Promise<unknown>> = {
    inspect: (prefill, layer) => prefill.run(layer, { inspect: true, timestamps: true }),
    prepare: (prefill) => prefill.prepare({ headDim: 64, dtype: 'f32' }),
    reference: (prefill, layer) => new RecallMeter(prefill).reference(layer),
    measure: async (prefill, layer) => {
      const meter = new RecallMeter(prefill);
      const dense = await meter.reference(layer);
      setTimeout(() => prefill.device.destroy(), 0);
      for (;;) await meter.measure(dense, layer.patterns);
    },
    map: async (prefill, layer) => {
      const meter = new RecallMeter(prefill);
      const dense = await meter.reference(layer);
      setTimeout(() => prefill.device.destroy(), 0);
      for (;;) await meter.attentionMap(dense, 0);
    },
    search: (prefill, layer) => searchPatterns(prefill, { name: 'one layer', layers: 1, load: async () => ({ layer }) }),
  };
  for (const [name, call] of Object.entries(calls)) {
    const device = await openNodeDevice({ backend: 'null' });
    const prefill = new SparsePrefill(device, { tier: 'portable' });
    const running = failure(call(prefill, layerOf(device)));
    if (name !== 'measure' && name !== 'map') setTimeout(() => device.destroy(), name === 'search' ? 5 : 0);
    const error = await running;
    const early = (name === 'inspect' || name === 'prepare' || name === 'reference') && error === 'no error';
    expect(early || (error instanceof MinferenceError && error.code === 'device-lost'), `${name}: ${String(error)}`).toBe(true);
    device.destroy();
    await device.lost;
    expect(((await failure(call(prefill, layerOf(device)))) as MinferenceError).code, name).toBe('device-lost');
  }
});

test('a layer whose workspace does not fit the GPU is refused, and a smaller one runs', async () => {
  // The null backend has 512 MiB.
  const device = await openNodeDevice({ backend: 'null' });
  const errors: string[] = [];
  device.addEventListener('uncapturederror', (event) => errors.push((event as GPUUncapturedErrorEvent).error.message));
  const prefill = new SparsePrefill(device, { tier: 'portable', workspaceLimit: 2 ** 40 });
  const seqLen = 100_000;
  const big = (size: number): GPUBuffer => device.createBuffer({ size, usage: 0x80 });
  const tensor = 4 * seqLen * 32;
  const layer = {
    ...layerOf(device),
    q: big(tensor * 8),
    k: big(tensor),
    v: big(tensor),
    o: big(tensor * 8),
    numHeads: 8,
    numKvHeads: 1,
    headDim: 32,
    seqLen,
    patterns: { kind: 'vertical_slash', verticalSize: 50_000, slashSize: 60_000 } as const,
  };
  const hog = big(250 * 2 ** 20);
  for (let i = 0; i < 2; i++) {
    const error = await failure(prefill.run(layer));
    expect(error).toBeInstanceOf(MinferenceError);
    expect((error as MinferenceError).code).toBe('out-of-memory');
  }
  const measured = await failure(new RecallMeter(prefill).reference(layer));
  expect((measured as MinferenceError).code).toBe('out-of-memory');
  expect(prefill.memory().run).toMatchObject({ usedBytes: 0, allocatedBytes: 0 });
  hog.destroy();
  for (const buffer of [layer.q, layer.k, layer.v, layer.o]) buffer.destroy();
  await prefill.run(layerOf(device));
  expect(errors).toEqual([]);
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
