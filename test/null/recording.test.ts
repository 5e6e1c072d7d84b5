import { expect, test, vi } from 'vitest';
import { SHAPES, syntheticModel } from '../../bench/synthetic_model.js';
import { openNodeDevice } from '../../src/device/node.js';
import { MATRIX_FEATURE, rememberMatrixShapes } from '../../src/device/subgroup_matrix.js';
import { defaultChunk, LanguageModel } from '../../src/model/runtime.js';
import type { ModelConfig } from '../../src/model/types.js';

/** Counts what a device's command encoders are told. */
function watchEncoders(device: GPUDevice) {
  const calls = { passes: 0, dispatches: 0, clears: 0 };
  const create = device.createCommandEncoder.bind(device);
  vi.spyOn(device, 'createCommandEncoder').mockImplementation((descriptor) => {
    const encoder = create(descriptor);
    const begin = encoder.beginComputePass.bind(encoder);
    const clear = encoder.clearBuffer.bind(encoder);
    encoder.beginComputePass = (options) => {
      const pass = begin(options);
      const dispatch = pass.dispatchWorkgroups.bind(pass);
      calls.passes++;
      pass.dispatchWorkgroups = (...size) => {
        calls.dispatches++;
        dispatch(...size);
      };
      return pass;
    };
    encoder.clearBuffer = (...range) => {
      calls.clears++;
      clear(...range);
    };
    return encoder;
  });
  return calls;
}

test('a prompt that was seen makes no buffers and bind groups for its layers again, and short ones share submissions and passes', async () => {
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

  const calls = watchEncoders(device);
  const buffers = vi.spyOn(device, 'createBuffer');
  const groups = vi.spyOn(device, 'createBindGroup');
  const submissions = vi.spyOn(device.queue, 'submit');
  await model.prefill(tokens, { patterns, denseBelow: 0 });
  const chunks = tokens.length / 128;
  // Not even for the logits' way back. Making them is a submission.
  expect(buffers).not.toHaveBeenCalled();
  expect(submissions).toHaveBeenCalledTimes(chunks + 1);
  expect(groups).not.toHaveBeenCalled();
  // Passes of a layer: before its attention, the attention up to the clearing of a histogram, from there, and behind it.
  expect(calls.clears).toBe(chunks * layers);
  expect(calls.passes).toBe(4 * chunks * layers + 1);
  model.destroy();
  device.destroy();
});

test('a chunk has 8192 tokens where activations are small, and fewer where they are wide', async () => {
  const device = await openNodeDevice({ backend: 'null' });
  const chunkOf = async (config: ModelConfig): Promise<number> => {
    const model = await LanguageModel.load(device, syntheticModel(config, 'f16'), { tier: 'f16', contextLength: 16384 });
    const ends: number[] = [];
    await model.prefill(new Array<number>(16384).fill(1), { onProgress: ({ tokens }) => ends.push(tokens) });
    model.destroy();
    return ends.find((tokens) => tokens > 0) ?? 0;
  };
  const tiny = SHAPES['tiny'] as ModelConfig;
  expect(await chunkOf(tiny)).toBe(8192);
  // 4 * 256 + 2 * (256 + 2 * 6 * 64 + 3 * 8192) bytes a token: 5120 in 256 MiB, and 16384 is four chunks of 4096.
  expect(await chunkOf({ ...tiny, layers: 1, intermediateSize: 8192 })).toBe(4096);
  device.destroy();
});

test('a model of the matrix tier records what a device accepts, SwiGLU in its product', async () => {
  const device = await openNodeDevice({ backend: 'null', optionalFeatures: [MATRIX_FEATURE] });
  rememberMatrixShapes(device, {
    vendor: 'nvidia',
    subgroupMinSize: 32,
    subgroupMaxSize: 32,
    subgroupMatrixConfigs: [{ componentType: 'f16', resultComponentType: 'f32', M: 16, N: 16, K: 16 }],
  } as unknown as GPUAdapterInfo);
  for (const type of ['f16', 'q8_0'] as const) {
    const model = await LanguageModel.load(device, syntheticModel(SHAPES['tiny'] as ModelConfig, type), { contextLength: 1024 });
    expect(model.profile.tier).toBe('matrix');
    const groups = vi.spyOn(device, 'createBindGroup');
    await model.prefill(new Array<number>(1024).fill(1), {
      patterns: { kind: 'vertical_slash', verticalSize: 64, slashSize: 64 },
    });
    const labels = new Set(groups.mock.calls.map(([{ label }]) => label ?? ''));
    groups.mockRestore();
    expect([...labels].filter((l) => l.startsWith('gemm matrix f16 swiglu')).length).toBe(1);
    expect([...labels].filter((l) => l.startsWith('swiglu'))).toEqual([]);
    model.destroy();
  }
  device.destroy();
});

test('a token takes seven dispatches a layer, in one pass', async () => {
  const device = await openNodeDevice({ backend: 'null' });
  const layers = 3;
  const model = await LanguageModel.load(device, syntheticModel({ ...(SHAPES['tiny'] as ModelConfig), layers }, 'q4_0'), {
    contextLength: 256,
  });
  await model.prefill([1, 2, 3]);
  const calls = watchEncoders(device);
  const tokens: number[] = [];
  for await (const token of model.generate([4], { maxTokens: 2, stop: [] })) {
    // The second token is on its way when the first one comes.
    tokens.push(token);
  }
  expect(tokens.length).toBe(2);
  // The prompt of one token takes the way of long ones: its own attention instead of two dispatches, and no token of its logits.
  const [embedding, head, argmax] = [1, 1, 2];
  const token = embedding + 7 * layers + head + argmax;
  const prompt = embedding + 6 * layers + head;
  expect(calls.dispatches).toBe(token + prompt);
  expect(calls.passes).toBeLessThanOrEqual(1 + 3 * layers + 1);
  model.destroy();
  device.destroy();
});

test('activations may take an eighth of what the weights take', () => {
  const config = SHAPES['llama-3.1-8b'] as ModelConfig;
  const hardware = { software: false, tier: 'matrix' } as const;
  const [f16, q4] = [16e9, 4.9e9];
  expect(defaultChunk(hardware, config, f16, false)).toBe(8192);
  // 131,072 bytes a token in 612 MB, and 73,728 where gate and up never reach memory.
  expect(defaultChunk(hardware, config, q4, false)).toBe(4672);
  expect(defaultChunk(hardware, config, q4, true)).toBe(8192);
  expect(defaultChunk(hardware, config, 1e6, false)).toBe(2048);
  expect(defaultChunk(hardware, config, 1e6, true)).toBe(3584);
  expect(defaultChunk({ ...hardware, software: true }, config, f16, true)).toBe(2048);
});

test('a submission that fails while a later one is waited for rejects the prompt, and nothing else', async () => {
  const device = await openNodeDevice({ backend: 'null' });
  const model = await LanguageModel.load(device, syntheticModel(SHAPES['tiny'] as ModelConfig, 'f16'), { contextLength: 256 });
  const calls = { scopes: 0, waits: 0 };
  const popErrorScope = device.popErrorScope.bind(device);
  device.popErrorScope = async () => {
    const popped = await popErrorScope();
    // The second scope that a submission pops is for memory.
    return calls.scopes++ === 1 ? ({ message: 'full' } as GPUError) : popped;
  };
  const { queue } = device;
  const done = queue.onSubmittedWorkDone.bind(queue);
  queue.onSubmittedWorkDone = async () => {
    if (calls.waits++ > 0) await new Promise((resolve) => setTimeout(resolve, 100));
    return done();
  };
  // Vitest fails on a rejection that nobody handles.
  await expect(model.prefill([1, 2, 3])).rejects.toMatchObject({ code: 'out-of-memory' });
  expect(calls.waits).toBeGreaterThan(1);
  model.destroy();
  device.destroy();
});
