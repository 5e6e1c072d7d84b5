import { expect, test, vi } from 'vitest';
import { BindGroups } from '../../src/device/bind_groups.js';
import { Constants } from '../../src/device/constants.js';
import { openNodeDevice } from '../../src/device/node.js';
import { PipelineCache, type ShaderSpec } from '../../src/device/pipelines.js';
import { BufferPool } from '../../src/device/pool.js';
import { Recorder } from '../../src/device/recorder.js';
import { encodeSteps } from '../../src/scheduler/submit.js';

const shader: ShaderSpec = {
  label: 'sum of constants',
  code: `@group(0) @binding(0) var<uniform> a: vec4<u32>;
@group(0) @binding(1) var<storage, read> b: array<u32>;
@group(0) @binding(2) var<storage, read_write> c: array<u32>;
@compute @workgroup_size(1) fn main() { c[0] = a.x + b[arrayLength(&b) - 1u]; }`,
  bindings: ['uniform', 'read', 'write'],
};

const device = await openNodeDevice({ backend: 'null' });
const pipelines = new PipelineCache(device);

/** Counts the objects of a kind that `body` makes. */
function made(method: 'createBuffer' | 'createBindGroup', body: () => void): number {
  const spy = vi.spyOn(device, method);
  body();
  const { length } = spy.mock.calls;
  spy.mockRestore();
  return length;
}

test('constants of a plan share a page, each at a place that can be bound', () => {
  const constants = new Constants(device);
  const ranges = Array.from({ length: 20 }, (_, i) => constants.get(Uint32Array.of(1000 + i, 1, 2, 3, 4)));
  expect(new Set(ranges.map((r) => r.buffer)).size).toBe(1);
  expect(ranges.map((r) => r.offset)).toEqual(ranges.map((_, i) => 256 * i));
  expect(ranges.map((r) => r.size)).toEqual(ranges.map(() => 32));
  // The same content once more is no second constant.
  expect(constants.get(Uint32Array.of(1003, 1, 2, 3, 4))).toBe(ranges[3]);
});

test('a full page makes way for the next one, and what is large has a buffer of its own', () => {
  const constants = new Constants(device);
  const count = made('createBuffer', () => {
    // 1000 words are four kilobytes: two fill a page of 8192 bytes.
    for (let i = 0; i < 4; i++) constants.get(new Uint32Array(1000).fill(2000 + i));
  });
  expect(count).toBe(2);
  const open = constants.open;
  const large = constants.get(new Uint32Array(1025).fill(7));
  expect(large).toMatchObject({ offset: 0, size: 4112 });
  expect(large.buffer.size).toBe(4112);
  expect(constants.open).toBe(open);
  // Nobody shares what is large.
  expect(new Constants(device).get(new Uint32Array())).toMatchObject({ size: 16 });
  expect(constants.get(new Uint32Array(1025).fill(7)).buffer).not.toBe(large.buffer);
});

test('others get to know a constant when its page is sealed, not before', () => {
  const [first, second] = [new Constants(device), new Constants(device)];
  const data = Uint32Array.of(3000);
  const range = first.get(data);
  const own = second.get(data);
  expect(own).not.toBe(range);
  first.open?.seal();
  expect(new Constants(device).get(data)).toBe(range);
  // A sealed page takes no more; later constants go to another one.
  expect(first.get(Uint32Array.of(3001)).buffer).not.toBe(range.buffer);
});

test('encoding seals what the steps bind, so that a submission is accepted', async () => {
  const pool = new BufferPool(device);
  const rec = new Recorder(device, pool, pipelines);
  const out = rec.workspace('out', 16);
  rec.dispatch({ stage: 'kernel', shader, bindings: [rec.constant([4000]), rec.constant([4001, -1]), out], workgroups: [1] });
  device.pushErrorScope('validation');
  const encoder = device.createCommandEncoder();
  encodeSteps(encoder, rec.steps);
  device.queue.submit([encoder.finish()]);
  expect(await device.popErrorScope()).toBeNull();
  pool.destroy();
});

test('bind groups are made once for the same buffers, until they are to be forgotten', () => {
  const pool = new BufferPool(device);
  const groups = new BindGroups(device);
  const out = pool.acquire('out', 512);
  const record = (bindings: readonly (GPUBuffer | { buffer: GPUBuffer; offset: number; size: number })[]): number =>
    made('createBindGroup', () => {
      const rec = new Recorder(device, pool, pipelines, groups);
      rec.dispatch({
        stage: 'kernel',
        shader,
        bindings: [rec.constant([5000]), rec.constant([5001]), ...bindings],
        workgroups: [1],
      });
      rec.steps.forEach((step) => {
        if (step.kind === 'dispatch') step.constants?.seal();
      });
    });
  expect(record([out])).toBe(1);
  expect(record([out])).toBe(0);
  expect(record([{ buffer: out, offset: 256, size: 256 }])).toBe(1);
  expect(record([{ buffer: out, offset: 256, size: 256 }])).toBe(0);
  groups.clear();
  expect(record([out])).toBe(1);
  pool.destroy();
});
