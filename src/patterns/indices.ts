import { PipelineCache } from '../device/pipelines.js';
import { BufferPool } from '../device/pool.js';
import { Recorder } from '../device/recorder.js';
import { readIndices } from '../scheduler/inspect.js';
import { planIndices } from '../scheduler/plan.js';
import type { SparsePrefill } from '../scheduler/prefill.js';
import { accepted, encodeSteps } from '../scheduler/submit.js';
import type { HeadIndex, HeadPattern } from '../scheduler/types.js';
import type { ResolvedLayer } from '../scheduler/validate.js';

const WORKSPACE_LIMIT = 512 * 2 ** 20;

/** Compiled index shaders per device. */
const pipelinesOf = new WeakMap<GPUDevice, PipelineCache>();

/** Builds the indices of a layer's heads and reads them back, without computing any attention. */
export async function buildIndices(
  prefill: SparsePrefill,
  layer: ResolvedLayer,
  patterns: readonly HeadPattern[],
): Promise<HeadIndex[]> {
  const { device, profile } = prefill;
  const pipelines = pipelinesOf.get(device) ?? new PipelineCache(device);
  pipelinesOf.set(device, pipelines);
  const pool = new BufferPool(device);
  const rec = new Recorder(device, pool, pipelines);
  try {
    const heads = await accepted(device, () => {
      const planned = planIndices(
        rec,
        { ...layer, patterns },
        { profile, workspaceLimit: WORKSPACE_LIMIT, dispatchFlops: Number.POSITIVE_INFINITY },
      );
      const encoder = device.createCommandEncoder();
      encodeSteps(encoder, rec.steps);
      device.queue.submit([encoder.finish()]);
      return planned;
    });
    return await readIndices(device, heads, layer);
  } finally {
    rec.releaseAll();
    pool.destroy();
  }
}
