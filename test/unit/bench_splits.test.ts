import { expect, test } from 'vitest';
import { measureSplits } from '../../bench/splits.js';
import { openNodeDevice } from '../../src/device/node.js';
import { profileDevice } from '../../src/device/profile.js';

test('few rows are timed with whole and with split keys, each against the oracle', async () => {
  const device = await openNodeDevice();
  const profile = profileDevice(device);
  const shapes = [[5, 2048]] as const;
  const options = { headDim: 64, heads: 4, kvHeads: 2, shapes, workgroups: [1, 8], budgetMs: 1 };
  const rows = await measureSplits(device, profile, options);
  expect(rows.map((r) => [r.queries, r.keys, r.workgroups])).toEqual([
    [5, 2048, 1],
    [5, 2048, 8],
  ]);
  for (const row of rows) {
    expect(row.relError).toBeLessThan(2e-3);
    expect(row.ms).toBeGreaterThan(0);
  }
  if (device.features.has('timestamp-query')) {
    const merges = rows.map(({ kernels }) => Object.keys(kernels).some((label) => label.startsWith('merge splits')));
    expect(merges).toEqual([false, true]);
  }
  device.destroy();
});
