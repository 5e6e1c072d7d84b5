import { expect, test } from 'vitest';
import { openNodeDevice } from '../../src/device/node.js';
import { availableTiers, profileDevice } from '../../src/device/profile.js';
import { HEAD_DIMS } from '../../src/kernels/attention.js';
import { plantLayer } from '../../src/kernels/plant.js';

test('the shaders that plant structure compile and run for every tier, head size and type', async () => {
  const device = await openNodeDevice({ backend: 'null' });
  const errors: string[] = [];
  device.addEventListener('uncapturederror', (event) => errors.push((event as GPUUncapturedErrorEvent).error.message));
  let layers = 0;
  for (const tier of availableTiers(device)) {
    const profile = profileDevice(device, tier);
    for (const headDim of HEAD_DIMS) {
      for (const dtype of ['f32', 'f16'] as const) {
        const kinds = ['vertical_slash', 'a_shape', 'block_sparse', 'vertical_slash'] as const;
        const shape = { numHeads: 4, numKvHeads: 2, headDim, seqLen: 333, dtype, seed: 1, kinds };
        const { q, k, v } = await plantLayer(device, profile, shape);
        const bytes = dtype === 'f16' ? 2 : 4;
        expect([q, k, v].map((b) => b.size)).toEqual([4, 2, 2].map((heads) => heads * 333 * headDim * bytes));
        for (const buffer of [q, k, v]) buffer.destroy();
        layers++;
      }
    }
  }
  expect(errors).toEqual([]);
  expect(layers).toBeGreaterThanOrEqual(24);
});
