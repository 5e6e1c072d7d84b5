import { expect, test } from 'vitest';
import { openNodeDevice } from '../../src/device/node.js';
import { availableTiers, profileDevice } from '../../src/device/profile.js';
import { blockSparseIndexShaders } from '../../src/index/block_sparse.js';
import { flexPrefillIndexShaders } from '../../src/index/flex_prefill.js';
import { verticalSlashIndexShaders } from '../../src/index/vertical_slash.js';
import { xAttentionIndexShaders } from '../../src/index/x_attention.js';
import { attentionShader, candidateTilings, HEAD_DIMS } from '../../src/kernels/attention.js';
import { storageFormat } from '../../src/kernels/shader_text.js';
import { recallShaders } from '../../src/patterns/recall.js';

test('every shader variant compiles without a message', async () => {
  const device = await openNodeDevice({ backend: 'null' });
  let count = 0;
  for (const tier of availableTiers(device)) {
    const real = profileDevice(device, tier);
    for (const memory of [16384, 32768, 49152]) {
      for (const subgroups of [false, true]) {
        const limits = {
          maxComputeWorkgroupStorageSize: memory,
          maxComputeInvocationsPerWorkgroup: 256,
        } as GPUSupportedLimits;
        const profile = { ...real, limits, subgroups, subgroupMinSize: subgroups ? 16 : 1 };
        for (const headDim of HEAD_DIMS) {
          for (const dtype of ['f16', 'f32'] as const) {
            const storage = storageFormat(profile, dtype);
            const tilings = [false, true].flatMap((software) => candidateTilings({ ...profile, software }, headDim));
            expect(tilings.length).toBeGreaterThan(1);
            const specs = [
              ...tilings.flatMap((tiling) =>
                (['dense', 'a_shape', 'vertical_slash', 'block_sparse'] as const).map((k) =>
                  attentionShader(k, headDim, storage, tiling),
                ),
              ),
              ...verticalSlashIndexShaders(profile, headDim, storage),
              ...blockSparseIndexShaders(profile, headDim, storage),
              ...flexPrefillIndexShaders(profile, headDim, storage),
              ...xAttentionIndexShaders(profile, headDim, storage),
              ...Object.values(recallShaders(profile, headDim, storage)),
            ];
            for (const { label, code } of specs) {
              const info = await device.createShaderModule({ label, code }).getCompilationInfo();
              expect(info.messages.map((m) => `${label}: ${m.message}`)).toEqual([]);
              count++;
            }
          }
        }
      }
    }
  }
  expect(count).toBeGreaterThan(500);
});
