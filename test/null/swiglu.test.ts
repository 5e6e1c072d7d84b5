import { expect, test } from 'vitest';
import { openNodeDevice } from '../../src/device/node.js';
import { PipelineCache } from '../../src/device/pipelines.js';
import { BufferPool } from '../../src/device/pool.js';
import { profileDevice } from '../../src/device/profile.js';
import { type Dispatch, type DispatchOptions, Recorder } from '../../src/device/recorder.js';
import { MATRIX_FEATURE } from '../../src/device/subgroup_matrix.js';
import { fusesSwiglu, type ModelKernels, productShaders, recordSwigluProduct, type WeightPart } from '../../src/model/gemm.js';
import { GEMM_TILINGS, type GemmTilingShape } from '../../src/model/matrix_gemm.js';
import type { WeightType } from '../../src/model/types.js';
import { encodeSteps } from '../../src/scheduler/submit.js';

const device = await openNodeDevice({ backend: 'null', optionalFeatures: [MATRIX_FEATURE] });
const pipelines = new PipelineCache(device);
const COLUMNS = 4096;

/** Kernels of a device whose bindings hold so many f16 weights, and that so many workgroups fill. */
function kernels(weights = 2 ** 26, workgroups = 1): ModelKernels {
  const profile = profileDevice(device, 'f16');
  const limits = { ...profile.limits, maxStorageBufferBindingSize: 2 * weights, maxBufferSize: 2 ** 30 };
  const { maxComputeWorkgroupsPerDimension } = profile.limits;
  return {
    profile: { ...profile, limits: { ...limits, maxComputeWorkgroupsPerDimension }, tilings: { workgroups } },
    activation: 'f16',
    matrix: { shape: { m: 16, n: 16, k: 16 }, ...(GEMM_TILINGS.at(-1) as GemmTilingShape) },
    dequantizeFrom: 512,
  };
}

function partsOf(...parts: readonly { readonly type: WeightType; readonly rows: number }[]): WeightPart[] {
  let rowStart = 0;
  return parts.map(({ type, rows }) => {
    const buffer = device.createBuffer({ size: 2 * rows * COLUMNS + 16, usage: 0x80 });
    const part = { type, rows, rowStart, buffer };
    rowStart += rows;
    return part;
  });
}

/** Constants and dispatches of the product. */
async function recorded(k: ModelKernels, parts: readonly WeightPart[], rows: number) {
  const matrix = { rows: parts.reduce((sum, p) => sum + p.rows, 0), columns: COLUMNS, parts };
  const constants: number[][] = [];
  const dispatches: DispatchOptions[] = [];
  class Watched extends Recorder {
    override constant(words: Uint32Array | readonly number[]) {
      constants.push([...words]);
      return super.constant(words);
    }
    override dispatch(options: DispatchOptions): void {
      dispatches.push(options);
      super.dispatch(options);
    }
  }
  const pool = new BufferPool(device);
  const rec = new Watched(device, pool, pipelines);
  const a = rec.workspace('a', 2 * rows * COLUMNS);
  const c = rec.workspace('c', rows * matrix.rows);
  await pipelines.prepare(productShaders(k, matrix, 'swiglu', rows));
  recordSwigluProduct(rec, k, { matrix, a, rows, c });
  device.pushErrorScope('validation');
  const encoder = device.createCommandEncoder();
  encodeSteps(encoder, rec.steps);
  device.queue.submit([encoder.finish()]);
  expect(await device.popErrorScope()).toBeNull();
  const labels = rec.steps.map((step) => (step as Dispatch).label);
  rec.releaseAll();
  pool.destroy();
  return { constants, dispatches, labels, fuses: fusesSwiglu(k, matrix, rows) };
}

test('gate and up in one buffer are one product, up half of the rows behind gate', async () => {
  const { constants, dispatches, fuses } = await recorded(kernels(), partsOf({ type: 'f16', rows: 640 }), 600);
  expect(fuses).toBe(true);
  // Rows, both of gate and up, columns, and where A, C and up begin.
  expect(constants).toEqual([[600, 640, COLUMNS, 0, COLUMNS / 4, 0, 320, 1, 320, 0, COLUMNS]]);
  expect(dispatches[0]?.workgroups).toEqual([Math.ceil(600 / 64), 10, 1]);
});

test('shares of gate and up are summed before they meet', async () => {
  const { constants, dispatches, labels } = await recorded(kernels(2 ** 26, 40), partsOf({ type: 'q8_0', rows: 640 }), 20);
  // Ten blocks of 64 rows of the weights, and four shares, whose sums lie one after the other.
  expect(dispatches.map(({ workgroups }) => workgroups)).toEqual([
    [1, 10, 4],
    [(20 * 320) / 256, 1],
  ]);
  expect(constants).toEqual([
    [20, 640, COLUMNS, 0, COLUMNS / 4, 0, 640, 1, 320, 0, COLUMNS / 4],
    [20, 640, 4, 0, 320],
  ]);
  expect(labels[1]).toBe('gemm combine f16 swiglu');
});

test('quantised gate and up become f16 slab by slab, whatever parts they lie in', async () => {
  // Gate in one part and the beginning of another, up in the rest of that and one of another type; slabs of 192 rows of each.
  const parts = partsOf({ type: 'q4_k', rows: 320 }, { type: 'q6_k', rows: 448 }, { type: 'q8_0', rows: 192 });
  const inner = 480;
  const { constants, labels, fuses } = await recorded(kernels(2 * 192 * COLUMNS), parts, 600);
  expect(fuses).toBe(true);
  const covered: [number, number][] = [];
  for (let i = 0; i < constants.length; i += 3) {
    const [gate = [], up = [], product = []] = constants.slice(i, i + 3);
    const [, both = 0, , , , first = 0, stride, , upStart] = product;
    const rows = both / 2;
    expect(stride).toBe(inner);
    expect(upStart).toBe(rows);
    expect(2 * rows).toBeLessThanOrEqual(2 * 192);
    for (const [n, [count, columns, firstRow = 0, to]] of [gate, up].entries()) {
      expect([count, columns, to]).toEqual([rows, COLUMNS, n * rows]);
      // The part's own row, as a row of the matrix.
      const row = n * inner + first;
      const part = parts.find((p) => row < p.rowStart + p.rows) as WeightPart;
      expect(labels[i + n]).toBe(`gemm weights ${part.type} to f16`);
      expect(part.rowStart + firstRow).toBe(row);
      expect(firstRow + rows).toBeLessThanOrEqual(part.rows);
    }
    covered.push([first, first + rows]);
  }
  // Everything, once.
  expect(covered[0]?.[0]).toBe(0);
  expect(covered.at(-1)?.[1]).toBe(inner);
  covered.slice(1).forEach(([first], i) => {
    expect(first).toBe(covered[i]?.[1]);
  });
  expect(covered.length).toBeGreaterThan(3);
});

test('other kernels keep gate and up apart', () => {
  const k = kernels();
  const one = { rows: 640, columns: COLUMNS, parts: partsOf({ type: 'f16', rows: 640 }) };
  const two = { ...one, parts: partsOf({ type: 'f16', rows: 320 }, { type: 'f16', rows: 320 }) };
  const quantised = { ...one, parts: partsOf({ type: 'q8_0', rows: 320 }, { type: 'q4_0', rows: 320 }) };
  expect(fusesSwiglu(k, one, 5)).toBe(true);
  expect(fusesSwiglu({ ...k, matrix: undefined }, one, 600)).toBe(false);
  expect(fusesSwiglu({ ...k, activation: 'f32' }, one, 600)).toBe(false);
  expect(fusesSwiglu(k, two, 600)).toBe(false);
  expect(fusesSwiglu(k, quantised, 600)).toBe(true);
  // Too few rows to turn weights into f16 for.
  expect(fusesSwiglu(k, quantised, 511)).toBe(false);
  expect(fusesSwiglu(k, { ...one, rows: 644 }, 600)).toBe(false);
});
