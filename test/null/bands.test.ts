import { afterAll, expect, test } from 'vitest';
import { openNodeDevice } from '../../src/device/node.js';
import { PipelineCache } from '../../src/device/pipelines.js';
import { BufferPool } from '../../src/device/pool.js';
import { profileDevice } from '../../src/device/profile.js';
import { Recorder } from '../../src/device/recorder.js';
import { MATRIX_FEATURE, MATRIX_SHAPES } from '../../src/device/subgroup_matrix.js';
import { slashTilesBytes } from '../../src/index/slash_tiles.js';
import { chooseMatrixTiling, type MatrixTiling } from '../../src/kernels/matrix_config.js';
import { planLayer } from '../../src/scheduler/plan.js';
import type { HeadPattern } from '../../src/scheduler/types.js';
import { resolveLayer } from '../../src/scheduler/validate.js';

const device = await openNodeDevice({ backend: 'null', optionalFeatures: [MATRIX_FEATURE] });
const f16 = profileDevice(device, 'f16');
const shapes = { shapes: MATRIX_SHAPES, sync: 'subgroup' } as const;
// Bands have more rows than the rest, also with 16 KiB of workgroup memory.
const rest = chooseMatrixTiling({ ...shapes, limits: device.limits }, 'vertical_slash', 64) as MatrixTiling;
const matrix = {
  ...f16,
  tier: 'matrix',
  matrix: shapes,
  // Subgroups are of 128 here, so no workgroup may be smaller.
  tilings: { matrix: { slash_band: { ...rest, subgroups: 8 }, block_sparse: rest } },
} as const;
const [buffer, o, own] = [0, 1, 2].map(() => device.createBuffer({ size: 2 ** 24, usage: 0x80 })) as [
  GPUBuffer,
  GPUBuffer,
  GPUBuffer,
];

// Pipelines of a recorder are made at once, and what is wrong with one is only heard of here.
const errors: string[] = [];
device.addEventListener('uncapturederror', ({ error }) => errors.push(error.message));
afterAll(async () => {
  await device.queue.onSubmittedWorkDone();
  expect(errors).toEqual([]);
});

/** The attention kernels of a layer of two heads, in order, their work, and the workspace that they pass on. */
function record(pattern: HeadPattern, change: { seqLen?: number; lse?: boolean; plain?: boolean } = {}) {
  const { seqLen = 4096, lse = false, plain = false } = change;
  const pool = new BufferPool(device);
  const rec = new Recorder(device, pool, new PipelineCache(device));
  const workspaces = new Map<string, { readonly size: number; readonly buffer: GPUBuffer }>();
  const workspace = rec.workspace.bind(rec);
  rec.workspace = (label, size) => {
    const buffer = workspace(label, size);
    workspaces.set(label, { size, buffer });
    return buffer;
  };
  const profile = plain ? f16 : matrix;
  const layer = resolveLayer(profile, {
    q: buffer,
    k: buffer,
    v: buffer,
    o,
    numHeads: 2,
    numKvHeads: 1,
    headDim: 64,
    seqLen,
    dtype: 'f16',
    patterns: pattern,
    ...(lse ? { lse: own } : {}),
  });
  planLayer(rec, layer, { profile, workspaceLimit: 2 ** 28, dispatchFlops: 1e15 });
  const kernels = rec.steps.flatMap((s) => (s.kind === 'dispatch' && s.stage === 'kernel' ? [s.label.split(' ')[0]] : []));
  const flops = rec.steps.reduce((sum, s) => sum + (s.kind === 'dispatch' && s.stage === 'kernel' ? s.flops : 0), 0);
  pool.destroy();
  const [lseOfBands, tiles] = ['lse of the bands', 'slash tiles'].map((label) => workspaces.get(label));
  return { kernels, flops, lseBytes: lseOfBands?.size, tiles, share: tiles !== undefined && tiles.buffer === lseOfBands?.buffer };
}

const wide: HeadPattern = { kind: 'static_vertical_slash', columns: [1, 5], runs: [0, 600, 2000, 2050] };

test('wide bands of vertical-slash heads have a pass of their own, before the rest', () => {
  expect(record(wide)).toMatchObject({ kernels: ['slash_band', 'vertical_slash'], lseBytes: 2 * 4096 * 4 });
  // What the GPU is to choose may be a band.
  const chosen: HeadPattern = { kind: 'vertical_slash', verticalSize: 100, slashSize: 1000 };
  expect(record(chosen).kernels).toEqual(['slash_band', 'vertical_slash']);
  const flex = record({ kind: 'flex_prefill' });
  expect(flex.kernels).toEqual(['slash_band', 'vertical_slash', 'block_sparse']);
  // The caller's log-sum-exp does where there is one.
  expect(record(wide, { lse: true })).toMatchObject({ kernels: ['slash_band', 'vertical_slash'], lseBytes: undefined });
});

test('vertical-slash kernels of the matrix tier read tiles, which live as long as what the bands leave behind', () => {
  const { tiles, share } = record(wide);
  expect(tiles?.size).toBe(2 * slashTilesBytes([2], { rows: 4096, queryOffset: 0, tile: rest.keys }));
  expect(share).toBe(false);
  expect(record(wide, { plain: true }).tiles).toBeUndefined();
});

test('narrow bands, short prompts and other tiers have none', () => {
  const one = { kernels: ['vertical_slash'], lseBytes: undefined };
  expect(record({ ...wide, runs: [0, 510, 2000, 2050] })).toMatchObject(one);
  expect(record({ kind: 'vertical_slash', verticalSize: 100, slashSize: 500 })).toMatchObject(one);
  expect(record(wide, { seqLen: 1000 })).toMatchObject(one);
  expect(record(wide, { plain: true })).toMatchObject(one);
});

test('the work of a band is not counted twice', () => {
  expect(record(wide).flops / record(wide, { plain: true }).flops).toBeCloseTo(1, 1);
});
