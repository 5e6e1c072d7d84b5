import { expect, test } from 'vitest';
import { SHAPES, syntheticModel } from '../../bench/synthetic_model.js';
import { openNodeDevice } from '../../src/device/node.js';
import { LanguageModel } from '../../src/model/runtime.js';
import type { ModelConfig } from '../../src/model/types.js';

test('a prompt that was seen makes no buffers for its layers again, and short ones share submissions', async () => {
  const device = await openNodeDevice({ backend: 'null' });
  const layers = 12;
  const model = await LanguageModel.load(device, syntheticModel({ ...(SHAPES['tiny'] as ModelConfig), layers }, 'f16'), {
    contextLength: 512,
    chunkSize: 128,
  });
  const tokens = Array.from({ length: 512 }, (_, i) => i);
  const patterns = { kind: 'vertical_slash', verticalSize: 16, slashSize: 32 } as const;
  await model.prefill(tokens, { patterns, denseBelow: 0 });
  model.reset();

  const calls = { buffers: 0, submissions: 0 };
  const { queue } = device;
  const createBuffer = device.createBuffer.bind(device);
  const submit = queue.submit.bind(queue);
  device.createBuffer = (descriptor) => {
    calls.buffers++;
    return createBuffer(descriptor);
  };
  queue.submit = (buffers) => {
    calls.submissions++;
    submit(buffers);
  };
  await model.prefill(tokens, { patterns, denseBelow: 0 });
  const chunks = tokens.length / 128;
  // The logits' way back is one buffer and one submission, and making them another submission.
  expect(calls.buffers).toBe(1);
  expect(calls.submissions).toBe(chunks + 2);
  model.destroy();
  device.destroy();
});
