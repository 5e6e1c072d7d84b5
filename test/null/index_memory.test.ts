import { expect, test } from 'vitest';
import { openNodeDevice } from '../../src/device/node.js';
import { PipelineCache } from '../../src/device/pipelines.js';
import { BufferPool } from '../../src/device/pool.js';
import { profileDevice } from '../../src/device/profile.js';
import { Recorder } from '../../src/device/recorder.js';
import { blockSparseWorkspaceBytes } from '../../src/index/block_sparse.js';
import type { IndexLayer } from '../../src/index/layer.js';
import { recordVerticalSlashIndex, verticalSlashWorkspaceBytes } from '../../src/index/vertical_slash.js';

const MIB = 2 ** 20;
const device = await openNodeDevice({ backend: 'null' });
const profile = profileDevice(device, 'portable');

/** One head of so many rows; its tensors, of `size` bytes, are never read. */
function layerOf(rows: number, size = 16): IndexLayer {
  const buffer = device.createBuffer({ size, usage: 0x80 });
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

test('the vertical-slash estimate computes scores once, where one head can keep all of its own', () => {
  const rows = 16_384;
  const heads = Array.from({ length: 40 }, () => ({ head: 0, kvHead: 0, verticalSize: 10, slashSize: 10 }));
  /** Tiles of 64 x 128 scores that are computed, with room for those of so many heads. */
  const computed = (headsKept: number): number => {
    const rec = new Recorder(device, new BufferPool(device), new PipelineCache(device));
    recordVerticalSlashIndex(rec, { ...layerOf(rows, rows * 256), workspaceLimit: 2 * headsKept * 4 * 64 * rows }, heads);
    const passes = rec.steps.flatMap((s) =>
      s.kind === 'dispatch' && s.label.includes('estimate: softmax') ? [s.workgroups] : [],
    );
    rec.pool.destroy();
    return passes.reduce((sum, [x, y = 1]) => sum + x * y, 0);
  };
  const once = (heads.length * rows) / 128;
  for (const headsKept of [40, 20, 16]) expect(computed(headsKept)).toBe(once);
  // Below 2048 tiles at a time work would be too short: then some scores are computed again.
  expect(computed(4)).toBeGreaterThan(once);
});
