import { expect, test } from 'vitest';
import { openNodeDevice } from '../../src/device/node.js';
import { profileDevice } from '../../src/device/profile.js';
import { MATRIX_SHAPES } from '../../src/device/subgroup_matrix.js';
import { verticalSlashIndexShaders } from '../../src/index/vertical_slash.js';
import { xAttentionIndexShaders } from '../../src/index/x_attention.js';
import { HEAD_DIMS } from '../../src/kernels/attention.js';

test('index estimators on subgroup matrices compile without a message', async () => {
  const device = await openNodeDevice({ backend: 'null' });
  let count = 0;
  for (const shape of MATRIX_SHAPES) {
    const limits = { ...device.limits, maxComputeWorkgroupStorageSize: 49152 } as GPUSupportedLimits;
    const profile = { ...profileDevice(device, 'f16'), limits, matrix: { shapes: [shape], sync: 'workgroup' as const } };
    for (const headDim of HEAD_DIMS) {
      const specs = [
        ...verticalSlashIndexShaders(profile, headDim, 'f16'),
        ...xAttentionIndexShaders(profile, headDim, 'f16'),
      ].filter((s) => s.code.includes('subgroup_matrix'));
      expect(specs.length).toBeGreaterThan(2);
      for (const { label, code } of specs) {
        const module = device.createShaderModule({ label, code });
        const info = await module.getCompilationInfo();
        expect(info.messages.map((m) => `${label}: ${m.lineNum}: ${m.message}`)).toEqual([]);
        // Matrices need whole subgroups along x.
        expect(code).toContain('@workgroup_size(THREADS)');
        count++;
      }
    }
  }
  expect(count).toBeGreaterThan(80);
});
