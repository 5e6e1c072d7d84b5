import { expect, test } from 'vitest';
import { SHAPES, syntheticModel } from '../../bench/synthetic_model.js';
import { openNodeDevice } from '../../src/device/node.js';
import { BufferPool } from '../../src/device/pool.js';
import { LanguageModel } from '../../src/model/runtime.js';
import type { ModelConfig } from '../../src/model/types.js';

/** Takes memory of Dawn's null backend, which has half a GiB, until less than `rest` bytes are left. */
async function hog(device: GPUDevice, rest: number): Promise<GPUBuffer[]> {
  const taken: GPUBuffer[] = [];
  for (let size = 2 ** 28; size >= rest; ) {
    device.pushErrorScope('out-of-memory');
    const buffer = device.createBuffer({ size, usage: 0x80 });
    if (await device.popErrorScope()) size /= 2;
    else taken.push(buffer);
  }
  return taken;
}

/** A model on a device whose errors nobody else is told of. */
async function open() {
  const device = await openNodeDevice({ backend: 'null' });
  const errors: string[] = [];
  device.addEventListener('uncapturederror', (event) => errors.push((event as GPUUncapturedErrorEvent).error.message));
  const model = await LanguageModel.load(device, syntheticModel(SHAPES['tiny'] as ModelConfig, 'f16'), { contextLength: 8192 });
  return { device, errors, model };
}

test('a prompt for which there was no memory runs when there is some', async () => {
  const { device, errors, model } = await open();
  const prompt = new Array<number>(8000).fill(1);
  const patterns = { kind: 'vertical_slash', verticalSize: 64, slashSize: 64 } as const;
  const taken = await hog(device, 2 ** 20);
  await expect(model.prefill(prompt, { patterns })).rejects.toMatchObject({ code: 'out-of-memory' });
  expect(model.length).toBe(0);
  for (const buffer of taken) buffer.destroy();
  await device.queue.onSubmittedWorkDone();
  await model.prefill(prompt, { patterns });
  expect(model.length).toBe(8000);
  expect(errors).toEqual([]);
  model.destroy();
  device.destroy();
});

test('so does an answer', async () => {
  const { device, errors, model } = await open();
  await model.prefill(new Array<number>(100).fill(1));
  const answer = async (sampling: { temperature: number }): Promise<number> => {
    let tokens = 0;
    for await (const _ of model.generate([1], { maxTokens: 5, stop: [], ...sampling })) tokens++;
    return tokens;
  };
  for (const temperature of [0, 1]) {
    const taken = await hog(device, 256);
    await expect(answer({ temperature })).rejects.toMatchObject({ code: 'out-of-memory' });
    for (const buffer of taken) buffer.destroy();
    await device.queue.onSubmittedWorkDone();
    expect(await answer({ temperature })).toBe(5);
  }
  expect(errors).toEqual([]);
  model.destroy();
  device.destroy();
});

test("a workspace beyond the device's limits is named before anything is submitted", async () => {
  const { device, errors, model } = await open();
  const { acquire } = BufferPool.prototype;
  let refuse = true;
  BufferPool.prototype.acquire = function (label, size) {
    return acquire.call(this, label, refuse && label === 'residual stream' ? 2 ** 40 : size);
  };
  await expect(model.prefill([1, 2, 3])).rejects.toMatchObject({ code: 'limit', argument: 'workspace "residual stream"' });
  refuse = false;
  await model.prefill([1, 2, 3]);
  BufferPool.prototype.acquire = acquire;
  expect(errors).toEqual([]);
  model.destroy();
  device.destroy();
});
