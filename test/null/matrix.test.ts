import { expect, test } from 'vitest';
import { openNodeDevice } from '../../src/device/node.js';
import { MATRIX_FEATURE, MATRIX_SHAPES, shapesOf } from '../../src/device/subgroup_matrix.js';
import { HEAD_DIMS } from '../../src/kernels/attention.js';
import { matrixAttentionShader } from '../../src/kernels/matrix_attention.js';
import {
  chooseMatrixTiling,
  estimateRegisters,
  MATRIX_TILINGS,
  type MatrixTiling,
  matrixBlockM,
  matrixWorkgroupBytes,
  tilingProblem,
} from '../../src/kernels/matrix_config.js';

const KERNELS = ['dense', 'a_shape', 'vertical_slash', 'block_sparse', 'slash_band'] as const;

test('every tiling of the matrix tier compiles without a message', async () => {
  const device = await openNodeDevice({ backend: 'null', optionalFeatures: [MATRIX_FEATURE] });
  expect(device.features.has(MATRIX_FEATURE)).toBe(true);
  const compile = async (
    kernel: (typeof KERNELS)[number],
    headDim: number,
    tiling: MatrixTiling,
    storage: 'f16' | 'f16-wide',
  ) => {
    const { label, code } = matrixAttentionShader(kernel, headDim, storage, tiling);
    const info = await device.createShaderModule({ label, code }).getCompilationInfo();
    expect(info.messages.map((m) => `${label}: ${m.lineNum}: ${m.message}`)).toEqual([]);
  };
  let count = 0;
  for (const [i, t] of MATRIX_TILINGS.entries()) {
    for (const kernel of KERNELS) {
      // Every tiling with every pattern, way of ordering and head size; shapes and storage in turn.
      const shape = MATRIX_SHAPES[i % MATRIX_SHAPES.length] ?? MATRIX_SHAPES[0];
      if (!shape) continue;
      const tiling: MatrixTiling = { ...t, shape, sync: i % 2 === 0 ? 'subgroup' : 'workgroup' };
      const other: MatrixTiling = { ...tiling, shape: { m: 16, n: 8, k: 16 }, sync: i % 2 === 0 ? 'workgroup' : 'subgroup' };
      for (const headDim of HEAD_DIMS) {
        if (tilingProblem(kernel, headDim, tiling)) continue;
        await compile(kernel, headDim, tiling, 'f16-wide');
        await compile(kernel, headDim, other, 'f16');
        count += 2;
      }
    }
  }
  expect(count).toBeGreaterThan(300);
  // What an H100 gets.
  const limits = { maxComputeWorkgroupStorageSize: 49_152, maxComputeInvocationsPerWorkgroup: 1024 };
  for (const kernel of KERNELS) {
    for (const headDim of HEAD_DIMS) {
      const tuned = chooseMatrixTiling({ shapes: MATRIX_SHAPES, limits, sync: 'subgroup' }, kernel, headDim);
      await compile(kernel, headDim, tuned as MatrixTiling, 'f16-wide');
    }
  }
});

test('unsuitable tilings are refused by name', () => {
  const tiling: MatrixTiling = {
    shape: { m: 16, n: 8, k: 16 },
    sync: 'workgroup',
    subgroups: 8,
    strips: 1,
    keys: 32,
    scoreKeys: 32,
    queries: 'registers',
    staging: 'single',
    pipelined: false,
  };
  const build =
    (kernel: (typeof KERNELS)[number], headDim: number, change: Partial<MatrixTiling> = {}) =>
    () =>
      matrixAttentionShader(kernel, headDim, 'f16', { ...tiling, ...change });
  expect(build('dense', 128)).not.toThrow();
  expect(build('vertical_slash', 128)).toThrow(/128 rows span more than an index block/);
  expect(build('dense', 40)).toThrow(/head size 40/);
  expect(build('dense', 64, { pipelined: true })).toThrow(/nothing to pipeline/);
  expect(build('dense', 64, { keys: 64, staging: 'overlap' })).toThrow(/overlap staging/);
  expect(build('block_sparse', 64, { subgroups: 4, keys: 128 })).toThrow(/128 keys span more than a block/);
  const slices = { subgroups: 4, staging: 'overlap', pairs: true, slices: true } as const;
  expect(build('block_sparse', 128, slices)).not.toThrow();
  expect(build('block_sparse', 64, slices)).toThrow(/the scores of 4 subgroups do not fit their slices of K/);
  expect(build('block_sparse', 80, slices)).toThrow(/rows of 80 columns are not whole shares/);
  expect(build('block_sparse', 128, { ...slices, vFirst: true })).toThrow(/slices have no choice/);
  expect(build('block_sparse', 128, { subgroups: 4, slices: true })).toThrow(/only pairs have slices/);
  expect(build('dense', 256, { ...slices, subgroups: 6 })).toThrow(/32 keys are not whole slices of 6 subgroups/);
  expect(build('vertical_slash', 64, { ...slices, subgroups: 2 })).toThrow(/four tiles ahead/);
  expect(build('vertical_slash', 64, { subgroups: 2, keys: 64 })).toThrow(/64 keys are more than half of 64 invocations/);
  expect(build('vertical_slash', 64, { subgroups: 4, staging: 'overlap' })).toThrow(/overlap staging needs neighbouring keys/);
  expect(build('vertical_slash', 64, { subgroups: 4, keys: 128 })).toThrow(/128 keys span more than a block/);
  expect(build('dense', 64, { vFirst: true })).toThrow(/only pairs can ask for V first/);
  expect(build('dense', 64, { subgroups: 1, keys: 64 })).toThrow(/64 keys are more than 32 invocations/);
  expect(build('dense', 64, { keys: 64, staging: 'overlap-single' })).toThrow(/overlap-single staging/);
});

test('rows of a subgroup are as many as registers allow for heads of a size', () => {
  const limits = { maxComputeWorkgroupStorageSize: 49_152, maxComputeInvocationsPerWorkgroup: 1024 };
  const rows = (kernel: (typeof KERNELS)[number]) =>
    HEAD_DIMS.map((headDim) => {
      const t = chooseMatrixTiling({ shapes: MATRIX_SHAPES, limits }, kernel, headDim) as MatrixTiling;
      return `${matrixBlockM(t)}/${16 * t.strips * (t.pairs ? 2 : 1)}`;
    });
  // Head sizes of 32, 64, 80, 96, 128 and 256: rows of a workgroup, and of a subgroup or a pair.
  for (const kernel of ['dense', 'a_shape', 'slash_band'] as const)
    expect(rows(kernel)).toEqual(['128/32', '128/32', '128/32', '128/32', '128/32', '64/16']);
  expect(rows('block_sparse')).toEqual(['64/32', '64/32', '64/16', '64/16', '64/32', '64/16']);
  expect(rows('vertical_slash')).toEqual(['64/16', '64/16', '64/16', '64/16', '64/32', '64/16']);
  // Two workgroups of either pattern fit a multiprocessor.
  for (const kernel of ['block_sparse', 'vertical_slash'] as const) {
    const slices = chooseMatrixTiling({ shapes: MATRIX_SHAPES, limits, sync: 'subgroup' }, kernel, 128) as MatrixTiling;
    expect(slices.slices).toBe(true);
    expect(matrixWorkgroupBytes(kernel, 128, slices)).toBeLessThanOrEqual(24_576);
  }
  // Devices with other matrices tile the same way.
  const apple = chooseMatrixTiling({ shapes: [{ m: 8, n: 8, k: 8 }], limits }, 'dense', 64) as MatrixTiling;
  expect([apple.strips, matrixBlockM(apple), apple.shape.m]).toEqual([2, 128, 8]);
  // Scores of strips lie side by side and share their padding, so that two workgroups fit the 48 KiB of a multiprocessor.
  const dense = chooseMatrixTiling({ shapes: MATRIX_SHAPES, limits, sync: 'subgroup' }, 'dense', 96) as MatrixTiling;
  expect(matrixWorkgroupBytes('dense', 96, dense)).toBe(16 * (2 * (32 * 13 - 1) + 16 * 34 - 2));
});

test('a tiling that fits is chosen, or none', () => {
  const config = (M: number, N: number, K: number, resultComponentType = 'f32') => ({
    componentType: 'f16',
    resultComponentType,
    M,
    N,
    K,
  });
  expect(shapesOf([config(16, 16, 16), config(16, 8, 16), config(16, 8, 8, 'f16')])).toEqual([
    { m: 16, n: 8, k: 16 },
    { m: 16, n: 16, k: 16 },
  ]);
  expect(shapesOf([config(8, 8, 8)])).toEqual([{ m: 8, n: 8, k: 8 }]);
  expect(shapesOf([config(32, 32, 32), config(16, 8, 16, 'f16')])).toEqual([]);
  for (const memory of [16384, 32768, 49152]) {
    const limits = { maxComputeWorkgroupStorageSize: memory, maxComputeInvocationsPerWorkgroup: 256 };
    expect(chooseMatrixTiling({ shapes: [], limits }, 'dense', 64)).toBeUndefined();
    for (const kernel of KERNELS) {
      for (const headDim of HEAD_DIMS) {
        const tiling = chooseMatrixTiling({ shapes: MATRIX_SHAPES, limits }, kernel, headDim);
        if (headDim <= 128 || memory >= 32768) expect(tiling, `${kernel} ${headDim} ${memory}`).toBeDefined();
        if (!tiling) continue;
        expect(tiling.sync).toBe('workgroup');
        expect(tilingProblem(kernel, headDim, tiling)).toBeUndefined();
        expect(matrixWorkgroupBytes(kernel, headDim, tiling)).toBeLessThanOrEqual(memory);
        expect(estimateRegisters(headDim, tiling).total).toBeLessThanOrEqual(255);
      }
    }
  }
});
