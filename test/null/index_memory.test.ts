import { expect, test } from 'vitest';
import { openNodeDevice } from '../../src/device/node.js';
import { profileDevice } from '../../src/device/profile.js';
import { blockSparseWorkspaceBytes } from '../../src/index/block_sparse.js';
import type { IndexLayer } from '../../src/index/layer.js';
import { verticalSlashWorkspaceBytes } from '../../src/index/vertical_slash.js';

const MIB = 2 ** 20;
const device = await openNodeDevice({ backend: 'null' });
const profile = profileDevice(device, 'portable');

/** One head of so many rows; its tensors are never read. */
function layerOf(rows: number): IndexLayer {
  const buffer = device.createBuffer({ size: 16, usage: 0x80 });
  const tensor = {
    buffer,
    dtype: 'f16' as const,
    heads: 1,
    rows,
    headDim: 128,
    offset: 0,
    headStride: rows * 128,
    rowStride: 128,
  };
  return { profile, storage: 'f16', q: tensor, k: tensor, queryOffset: 0, scale: 1, workspaceLimit: 512 * MIB };
}

test('the vertical-slash index depends on its budgets, not on the length', () => {
  const heads = [{ head: 0, kvHead: 0, verticalSize: 1000, slashSize: 6096 }];
  // One list for a head: header, columns, and runs of three words.
  const most = 4 * (4 + 1000 + 3 * 6096);
  for (const rows of [131_072, 1_048_576]) {
    const { index, transient } = verticalSlashWorkspaceBytes(layerOf(rows), heads);
    expect(index).toBeLessThanOrEqual(most);
    // The scores of 64 rows, and lists of a number per key; never more than the limit.
    expect(transient).toBeLessThan(4 * 64 * rows + 64 * rows + 2 * MIB);
    expect(transient).toBeLessThan(512 * MIB);
  }
  expect(verticalSlashWorkspaceBytes(layerOf(2 * 1_048_576), heads).index).toBe(
    verticalSlashWorkspaceBytes(layerOf(1_048_576), heads).index,
  );
});

test('the block-sparse index is one word for each block of 64 by 64 that is kept', () => {
  for (const rows of [131_072, 1_048_576]) {
    const { index, transient } = blockSparseWorkspaceBytes(layerOf(rows), [{ head: 0, kvHead: 0, topK: 100 }]);
    expect(index).toBe((rows / 64) * 100 * 4);
    expect(transient).toBeLessThan(512 * MIB);
  }
});
