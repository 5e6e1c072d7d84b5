import { expect, test } from 'vitest';
import { createNodeGpu, openNodeDevice } from '../../src/device/node.js';
import { openDevice } from '../../src/device/open.js';
import type { ShaderSpec } from '../../src/device/pipelines.js';
import { profileDevice } from '../../src/device/profile.js';
import { MATRIX_FEATURE, MATRIX_SHAPES } from '../../src/device/subgroup_matrix.js';
import { blockBytes, blockFits, blockProblem, blockRegisters } from '../../src/kernels/matrix_product.js';
import {
  dequantizeShader,
  gemmShader,
  gemmTiling,
  gemvShader,
  gemvTiling,
  type ModelKernels,
  productShader,
  productShaders,
} from '../../src/model/gemm.js';
import {
  chooseGemmTiling,
  FEW_ROWS_TILINGS,
  GEMM_TILINGS,
  type GemmTilingShape,
  gemmTilingFor,
  type MatrixGemmTiling,
  matrixGemmShader,
} from '../../src/model/matrix_gemm.js';
import {
  argmaxShader,
  decodeAttentionShader,
  decodeCombineShader,
  embeddingShader,
  LOG_PROBS,
  rmsNormShader,
  ropeShader,
  swigluShader,
} from '../../src/model/ops.js';
import { BLOCK_LAYOUT, type ModelConfig, type WeightType } from '../../src/model/types.js';

const TYPES = Object.keys(BLOCK_LAYOUT) as WeightType[];
const OUTPUTS = ['activation', 'f32', 'add'] as const;

async function compiles(device: GPUDevice, { label, code }: ShaderSpec): Promise<void> {
  const info = await device.createShaderModule({ label, code }).getCompilationInfo();
  expect(info.messages.map((m) => `${label}: ${m.lineNum}: ${m.message}`)).toEqual([]);
}

test('the model kernels compile without a message, on hardware and software devices, with and without subgroups', async () => {
  const device = await openNodeDevice({ backend: 'null' });
  const config = { numHeads: 8, numKvHeads: 2, headDim: 128, qkNorm: true, rope: { theta: 1e4, rotaryDim: 96 } } as ModelConfig;
  for (const tier of ['portable', 'f16'] as const) {
    for (const software of [false, true]) {
      const profile = { ...profileDevice(device, tier), software, subgroups: !software, subgroupMinSize: 32 };
      const kernels: ModelKernels = { profile, activation: tier === 'portable' ? 'f32' : 'f16' };
      for (const type of TYPES) {
        for (const [i, output] of OUTPUTS.entries()) {
          await compiles(device, gemmShader(kernels, type, output, i === 0, gemmTiling(kernels, 64)));
          await compiles(device, gemmShader(kernels, type, output, i === 1, gemmTiling(kernels, 1000)));
          await compiles(device, gemvShader(kernels, type, output, i === 2, i + 1, gemvTiling(type)));
        }
        for (const rows of [1, 4]) await compiles(device, gemvShader(kernels, type, 'swiglu', false, rows, gemvTiling(type)));
        await compiles(device, embeddingShader(type));
        await compiles(device, dequantizeShader(type));
      }
      for (const shader of [
        rmsNormShader(kernels),
        ropeShader(kernels, config),
        swigluShader(kernels),
        decodeAttentionShader(kernels, config),
        decodeCombineShader(kernels, config),
        argmaxShader(false),
        argmaxShader(true),
        LOG_PROBS,
      ]) {
        await compiles(device, shader);
      }
    }
  }
});

test('every tiling of the products on subgroup matrices compiles without a message', async () => {
  const device = await openNodeDevice({ backend: 'null', optionalFeatures: [MATRIX_FEATURE] });
  let count = 0;
  const all = [...GEMM_TILINGS, ...FEW_ROWS_TILINGS];
  for (const [i, t] of all.entries()) {
    for (const shape of MATRIX_SHAPES) {
      const tiling: MatrixGemmTiling = { ...t, shape, split: i % 2 === 1 };
      expect(blockProblem(tiling)).toBeUndefined();
      for (const [j, type] of TYPES.entries()) {
        // Every type with every tiling; results and biases in turn.
        await compiles(device, matrixGemmShader(tiling, type, OUTPUTS[(i + j) % 3] ?? 'f32', (i + j) % 2 === 0, j % 2 === 0));
        count++;
      }
    }
  }
  const [tilings, shapes] = [all.length, MATRIX_SHAPES.length];
  expect(count).toBe(tilings * shapes * TYPES.length);
});

test('a device gets a tiling that it can run, or none', () => {
  for (const memory of [16384, 32768, 49152]) {
    for (const invocations of [128, 256, 1024]) {
      const limits = { maxComputeWorkgroupStorageSize: memory, maxComputeInvocationsPerWorkgroup: invocations };
      expect(chooseGemmTiling([], limits)).toBeUndefined();
      const tiling = chooseGemmTiling(MATRIX_SHAPES, limits);
      expect(tiling).toBeDefined();
      if (!tiling) continue;
      expect(blockFits(tiling, limits)).toBe(true);
      expect(blockBytes(tiling)).toBeLessThanOrEqual(memory);
      expect(blockRegisters(tiling)).toBeLessThanOrEqual(255);
    }
  }
  const deep: MatrixGemmTiling = { shape: { m: 16, n: 8, k: 16 }, ...(GEMM_TILINGS[0] as GemmTilingShape) };
  expect(deep.depth).toBe(64);
  expect(gemmTilingFor(deep, 4096)).toBe(deep);
  const shallow = gemmTilingFor(deep, 576 + 32);
  expect(shallow).toEqual({ ...deep, depth: 32 });
  expect(blockProblem(shallow)).toBeUndefined();
  const odd: MatrixGemmTiling = {
    shape: { m: 16, n: 8, k: 16 },
    blockM: 128,
    blockN: 128,
    subgroupM: 48,
    subgroupN: 64,
    depth: 32,
  };
  expect(blockProblem(odd)).toContain('divide');
  expect(blockProblem({ ...odd, subgroupM: 16 })).toContain('fewer than two');
  expect(blockProblem({ ...odd, subgroupM: 64, blockN: 176, subgroupN: 88 })).toContain('strips of 16');
  expect(() => matrixGemmShader(odd, 'f16', 'f32', false)).toThrow('tiling');
});

/** A profile with the limits and the multiprocessors of an H100. */
function likeH100(device: GPUDevice) {
  const plain = profileDevice(device, 'f16');
  const limits = { ...plain.limits, maxComputeWorkgroupStorageSize: 49_152, maxComputeInvocationsPerWorkgroup: 1024 };
  return { ...plain, limits, tilings: { workgroups: 264 } };
}

test('products of few rows have blocks that fit them, and shares of the columns that fill the device', async () => {
  const device = await openNodeDevice({ backend: 'null', optionalFeatures: [MATRIX_FEATURE] });
  const matrix = { shape: { m: 16, n: 16, k: 16 }, ...(GEMM_TILINGS[0] as GemmTilingShape) } as const;
  const kernels = { profile: likeH100(device), activation: 'f16', matrix } as const;
  const chosen = (k: ModelKernels, rows: number, [n, columns] = [4096, 4096]): string => {
    const { shader, workgroups, shares } = productShader(
      k,
      { type: 'f16', rows: n, rowStart: 0 },
      { rows: n, columns, bias: false },
      'activation',
      rows,
    );
    expect(shares !== undefined).toBe((workgroups[2] ?? 1) > 1);
    return `${/[0-9]+x[0-9]+/.exec(shader.label)?.[0]} ${workgroups.join(' ')}${shares ? ` ${shares.columns}` : ''}`;
  };
  expect(chosen(kernels, 5)).toBe('32x128 1 32 8 512');
  expect(chosen(kernels, 32, [28_672, 4096])).toBe('32x128 1 224 1');
  expect(chosen(kernels, 33)).toBe('64x64 1 64 4 1024');
  // A multiprocessor has room for one of these.
  expect(chosen(kernels, 65)).toBe('128x128 1 32 4 1024');
  expect(chosen(kernels, 200)).toBe('128x128 2 32 2 2048');
  expect(chosen(kernels, 160)).toBe('192x160 1 26 5 832');
  expect(chosen(kernels, 480)).toBe('128x128 4 32 1');
  expect(chosen(kernels, 513)).toBe('192x128 3 32 1');
  // No share has fewer than 256 columns.
  expect(chosen(kernels, 20, [576, 576])).toBe('32x128 1 5 2 320');
  const { matrix: _, ...others } = kernels;
  expect(chosen(others, 20)).toBe('32x64 1 64 8 512');
  expect(chosen(others, 64)).toBe('64x64 1 64 8 512');
  expect(chosen(others, 300)).toBe('128x64 3 64 2 2048');
});

test('products of many rows have the blocks that fill the last workgroups best', async () => {
  const device = await openNodeDevice({ backend: 'null', optionalFeatures: [MATRIX_FEATURE] });
  const profile = likeH100(device);
  const chosen = (rows: number, n: number, columns: number, matrix = GEMM_TILINGS[0] as GemmTilingShape): string => {
    const kernels = { profile, activation: 'f16', matrix: { shape: { m: 16, n: 8, k: 16 }, ...matrix } } as const;
    const part = { type: 'f16', rows: n, rowStart: 0 } as const;
    const { shader } = productShader(kernels, part, { rows: n, columns, bias: false }, 'activation', rows);
    return `${/[0-9]+x[0-9]+/.exec(shader.label)?.[0]}`;
  };
  // 156 blocks of 192 x 160 are two rounds of 132 workgroups, and 256 of 128 x 128 are two as well.
  expect(chosen(1024, 4096, 4096)).toBe('128x128');
  // 288 of 192 x 128 would be three, 256 of 128 x 192 are two.
  expect(chosen(1024, 6144, 4096)).toBe('128x192');
  // 286 are three rounds, 352 of 192 x 128 too.
  expect(chosen(2048, 4096, 4096)).toBe('192x128');
  expect(chosen(2048, 6144, 4096)).toBe('192x128');
  expect(chosen(4096, 28_672, 4096)).toBe('192x160');
  expect(chosen(8192, 960, 576)).toBe('192x160');
  expect(chosen(8192, 576, 576)).toBe('192x128');
  expect(chosen(32_768, 4096, 4096)).toBe('192x160');
  // A tiling that was asked for is taken, also one that looks like the preferred one.
  expect(
    chosen(
      2048,
      4096,
      4096,
      GEMM_TILINGS.find((t) => t.blockM === 192 && t.blockN === 128),
    ),
  ).toBe('192x128');
  expect(chosen(2048, 4096, 4096, { ...(GEMM_TILINGS[0] as GemmTilingShape), depth: 32 })).toBe('192x160');
});

test('what is prepared for one prompt serves those of other lengths, and slabs of weights', async () => {
  const device = await openNodeDevice({ backend: 'null', optionalFeatures: [MATRIX_FEATURE] });
  const profile = likeH100(device);
  const tiling: MatrixGemmTiling = { shape: { m: 16, n: 16, k: 16 }, ...(GEMM_TILINGS[0] as GemmTilingShape) };
  const kernels: ModelKernels = { profile, activation: 'f16', matrix: tiling, dequantizeFrom: 256 };
  const buffer = device.createBuffer({ size: 16, usage: 0x80 });
  let products = 0;
  for (const [output, type, n, columns, slabs] of [
    ['activation', 'f16', 6144, 4096, []],
    ['add', 'q4_k', 4096, 14_336, [2304, 1792]],
    ['swiglu', 'q4_k', 28_672, 4096, [16_128, 12_544]],
  ] as const) {
    const matrix = { rows: n, columns, parts: [{ type, buffer, rows: n, rowStart: 0 }] };
    for (const prepared of [2048, 8192]) {
      const labels = new Set(productShaders(kernels, matrix, output, prepared).map(({ label }) => label));
      const shape = { rows: n, columns, bias: false };
      for (const rows of [n, ...slabs]) {
        for (let m = 513; m <= 8192; m += 61) {
          const { shader, shares } = productShader(kernels, { type: 'f16', rows, rowStart: 0 }, shape, output, m);
          if (shares) continue; // fewer blocks than half of the device: left to when they are needed
          expect(labels, `${output} ${rows} x ${columns}, ${m} rows`).toContain(shader.label);
          products++;
        }
      }
    }
  }
  expect(products).toBeGreaterThan(1000);
  buffer.destroy();
});

test('products repeat their last rows on a device without checks of loads', async () => {
  const label = (device: GPUDevice): string => {
    const profile = profileDevice(device);
    const tiling: MatrixGemmTiling = { shape: { m: 16, n: 16, k: 16 }, ...(GEMM_TILINGS[0] as GemmTilingShape) };
    const kernels = { profile, activation: 'f16', matrix: tiling } as const;
    const part = { type: 'f16', rows: 64, rowStart: 0 } as const;
    return productShader(kernels, part, { rows: 64, columns: 64, bias: false }, 'activation', 100).shader.label;
  };
  const unchecked = { backend: 'null', toggles: ['disable_robustness'] };
  expect(label(await openNodeDevice(unchecked))).toContain('clamped');
  expect(label(await openDevice({ gpu: createNodeGpu(unchecked) }))).toContain('clamped');
  expect(label(await openNodeDevice({ backend: 'null' }))).not.toContain('clamped');
});
