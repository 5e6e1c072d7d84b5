import { expect, test } from 'vitest';
import { type Part, partOf } from '../../bench/kernel_times.js';
import { openNodeDevice } from '../../src/device/node.js';
import type { ShaderSpec } from '../../src/device/pipelines.js';
import { profileDevice } from '../../src/device/profile.js';
import { MATRIX_SHAPES } from '../../src/device/subgroup_matrix.js';
import { blockSparseIndexShaders } from '../../src/index/block_sparse.js';
import { flexPrefillIndexShaders } from '../../src/index/flex_prefill.js';
import { slashTilesShader } from '../../src/index/slash_tiles.js';
import { verticalSlashIndexShaders } from '../../src/index/vertical_slash.js';
import { xAttentionIndexShaders } from '../../src/index/x_attention.js';
import { dequantizeShader, gemvShader, gemvTiling, productShader } from '../../src/model/gemm.js';
import { decodeAttentionShader, rmsNormShader, ropeShader, swigluShader } from '../../src/model/ops.js';
import type { ModelConfig } from '../../src/model/types.js';
import { attentionShaders } from '../../src/scheduler/plan.js';

test('every kernel counts to the part of a model that it belongs to', async () => {
  const device = await openNodeDevice({ backend: 'null' });
  const partsOf = (shaders: readonly ShaderSpec[]): Set<Part> => new Set(shaders.map(({ label }) => partOf(label)));
  const plain = profileDevice(device, 'f16');
  for (const profile of [plain, { ...plain, matrix: { shapes: MATRIX_SHAPES, sync: 'subgroup' as const } }]) {
    for (const storage of ['f16', 'f32'] as const) {
      for (const shadersOf of [
        verticalSlashIndexShaders,
        blockSparseIndexShaders,
        flexPrefillIndexShaders,
        xAttentionIndexShaders,
      ]) {
        expect(partsOf(shadersOf(profile, 128, storage))).toEqual(new Set(['index']));
      }
    }
    expect(partOf(slashTilesShader(32).label)).toBe('index');
    const kinds = ['dense', 'a_shape', 'block_sparse'] as const;
    expect(partsOf(attentionShaders(profile, 128, 'f16', kinds))).toEqual(new Set(['attention']));
    const gathering = attentionShaders(profile, 128, 'f16', ['vertical_slash']).filter((s) => !s.label.startsWith('slash tiles'));
    expect(partsOf(gathering)).toEqual(new Set(['attention']));
  }
  const kernels = { profile: plain, activation: 'f16' } as const;
  const config = { numHeads: 8, numKvHeads: 2, headDim: 128, rope: { theta: 1e4, rotaryDim: 128 } } as ModelConfig;
  const part = { type: 'q4_0', rows: 64, rowStart: 0 } as const;
  const product = productShader(kernels, part, { rows: 64, columns: 64, bias: false }, 'add', 100).shader;
  expect(partsOf([product, gemvShader(kernels, 'f16', 'swiglu', false, 1, gemvTiling('f16')), dequantizeShader('q8_0')])).toEqual(
    new Set(['gemm']),
  );
  expect(partsOf([decodeAttentionShader(kernels, config)])).toEqual(new Set(['attention']));
  const rest = [rmsNormShader(kernels), ropeShader(kernels, config), swigluShader(kernels)];
  expect(partsOf(rest)).toEqual(new Set(['rest']));
});
