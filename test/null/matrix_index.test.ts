import { expect, test } from 'vitest';
import { openNodeDevice } from '../../src/device/node.js';
import { profileDevice } from '../../src/device/profile.js';
import { MATRIX_SHAPES } from '../../src/device/subgroup_matrix.js';
import { antidiagonalBlock, antidiagonalProductsShader } from '../../src/index/antidiagonal_products.js';
import { blockSparseIndexShaders } from '../../src/index/block_sparse.js';
import { verticalSlashIndexShaders } from '../../src/index/vertical_slash.js';
import { xAttentionIndexShaders } from '../../src/index/x_attention.js';
import { HEAD_DIMS } from '../../src/kernels/attention.js';
import type { ProductBlock } from '../../src/kernels/matrix_product.js';

/** Bytes that a shader's arrays of f32 and vectors of four take in workgroup memory; NaN when it has others. */
function workgroupBytes(code: string): number {
  const constants = new Map([...code.matchAll(/^const (\w+): u32 = (\d+)u;/gm)].map(([, name = '', n]) => [name, Number(n)]));
  constants.set('ROWS4', (constants.get('TILE_ROWS') ?? Number.NaN) / 4);
  let bytes = 0;
  for (const [, what = ''] of code.matchAll(/^var<workgroup> \w+: (.*);/gm)) {
    const [, type, length = ''] = what.match(/^array<(f32|vec4<\w+>), (\w+)>$/) ?? [];
    bytes += (type === 'f32' ? 4 : 16) * (constants.get(length) ?? Number(length || Number.NaN));
  }
  return bytes;
}

test('index estimators on subgroup matrices compile without a message', async () => {
  const device = await openNodeDevice({ backend: 'null' });
  let count = 0;
  for (const memory of [49152, 32768]) {
    for (const shape of MATRIX_SHAPES) {
      const limits = { maxComputeInvocationsPerWorkgroup: 256, maxComputeWorkgroupStorageSize: memory } as GPUSupportedLimits;
      const profile = { ...profileDevice(device, 'f16'), limits, matrix: { shapes: [shape], sync: 'workgroup' as const } };
      for (const headDim of HEAD_DIMS) {
        const specs = [
          ...verticalSlashIndexShaders(profile, headDim, 'f16'),
          ...xAttentionIndexShaders(profile, headDim, 'f16'),
          ...blockSparseIndexShaders(profile, headDim, 'f16'),
        ].filter((s) => s.code.includes('subgroup_matrix'));
        // The first pass of vertical-slash, two forms of XAttention's for each stride, block scores.
        expect(specs.length).toBe(6);
        for (const { label, code } of specs) {
          const module = device.createShaderModule({ label, code });
          const info = await module.getCompilationInfo();
          expect(info.messages.map((m) => `${label}: ${m.lineNum}: ${m.message}`)).toEqual([]);
          // Matrices need whole subgroups along x.
          expect(code).toContain('@workgroup_size(THREADS)');
          expect(workgroupBytes(code)).toBeGreaterThan(16384);
          expect(workgroupBytes(code)).toBeLessThanOrEqual(memory);
          count++;
        }
      }
    }
  }
  expect(count).toBeGreaterThan(130);
  // Where loads are not checked.
  for (const shape of MATRIX_SHAPES) {
    const limits = { maxComputeInvocationsPerWorkgroup: 256, maxComputeWorkgroupStorageSize: 49_152 } as GPUSupportedLimits;
    const block = antidiagonalBlock({ limits, matrix: { shapes: [shape], sync: 'subgroup' } }) as ProductBlock;
    expect(block.blockM).toBe(192);
    const { code } = antidiagonalProductsShader(block, 128, 16, false);
    expect(code).toContain('arrayLength');
    expect((await device.createShaderModule({ code }).getCompilationInfo()).messages).toEqual([]);
    expect(() => antidiagonalProductsShader({ ...block, blockM: 96 }, 128, 16, true)).toThrow('block');
  }
});
