import { expect, test } from 'vitest';
import { ABLATIONS, PRODUCT_ABLATIONS } from '../../bench/tune/ablate.js';
import { openNodeDevice } from '../../src/device/node.js';
import type { ShaderSpec } from '../../src/device/pipelines.js';
import { MATRIX_FEATURE, MATRIX_SHAPES } from '../../src/device/subgroup_matrix.js';
import { matrixAttentionShader } from '../../src/kernels/matrix_attention.js';
import { chooseMatrixTiling, MATRIX_TILINGS } from '../../src/kernels/matrix_config.js';
import { GEMM_TILINGS, matrixGemmShader } from '../../src/model/matrix_gemm.js';

const LIMITS = { maxComputeWorkgroupStorageSize: 49152, maxComputeInvocationsPerWorkgroup: 1024 };

/** How many of some kernels each part is taken away from; all must still compile. */
async function count(
  ablations: Readonly<Record<string, (code: string) => string>>,
  kernels: readonly ShaderSpec[],
): Promise<Record<string, number>> {
  const device = await openNodeDevice({ backend: 'null', optionalFeatures: [MATRIX_FEATURE] });
  const changed: Record<string, number> = {};
  for (const [name, change] of Object.entries(ablations)) {
    changed[name] = 0;
    for (const { label, code } of kernels) {
      const edited = change(code);
      if (edited === code) continue;
      changed[name] += 1;
      const info = await device.createShaderModule({ label, code: edited }).getCompilationInfo();
      expect(info.messages.map((m) => `${label}, ${name}: ${m.lineNum}: ${m.message}`)).toEqual([]);
    }
  }
  return changed;
}

test('every part that can be left out of attention is in a kernel, which compiles without it', async () => {
  const device = { shapes: MATRIX_SHAPES, limits: LIMITS, sync: 'subgroup' } as const;
  // Heads of 128 in pairs, of 64 in strips.
  const kernels = (['dense', 'a_shape', 'vertical_slash', 'block_sparse'] as const).flatMap((kernel) =>
    [64, 128].map((headDim) => {
      const tiling = chooseMatrixTiling(device, kernel, headDim);
      if (!tiling) throw new Error(`there is no tiling for ${kernel}`);
      return matrixAttentionShader(kernel, headDim, 'f16-wide', tiling);
    }),
  );
  const slices = MATRIX_TILINGS.filter((t) => t.slices).map((t) =>
    matrixAttentionShader('block_sparse', 128, 'f16-wide', { ...t, shape: { m: 16, n: 8, k: 16 }, sync: 'subgroup' }),
  );
  const { all, ...parts } = await count(ABLATIONS, [...kernels, ...slices]);
  expect(all).toBe(0);
  for (const [name, changed] of Object.entries(parts)) expect(changed, name).toBeGreaterThan(0);
  // Scores that pass through slices of K are found, too.
  for (const name of ['no score store', 'no score read', 'no P store', 'one P load', 'near blocks']) {
    for (const { code } of slices) expect(ABLATIONS[name]?.(code), name).not.toBe(code);
  }
});

test('every part that can be left out of products is in all of their kernels, which compile without it', async () => {
  const shape = { m: 16, n: 8, k: 16 } as const;
  const kernels = GEMM_TILINGS.map((t) => matrixGemmShader({ ...t, shape }, 'f16', 'activation', false));
  const { all, ...parts } = await count(PRODUCT_ABLATIONS, kernels);
  expect(all).toBe(0);
  for (const [name, changed] of Object.entries(parts)) expect(changed, name).toBe(kernels.length);
});
