import mergeSoftmax from '../../shaders/index/merge_softmax.wgsl?raw';
import type { ShaderSpec } from '../device/pipelines.js';
import type { Recorder } from '../device/recorder.js';
import { divCeil } from './layer.js';

/** Rows whose statistics lie together. */
export const STATISTICS_ROWS = 64;
/** Parts whose statistics one workgroup merges. */
export const FAN_IN = 128;
/** Bytes of (m, l) of the rows that lie together. */
export const STATISTICS_BYTES = STATISTICS_ROWS * 8;

/** The shader of {@link recordSoftmaxMerge}. */
export const softmaxMergeShader: ShaderSpec = {
  label: 'estimate: merge',
  code: mergeSoftmax,
  bindings: ['uniform', 'read', 'write'],
};

/**
 * Records the merging of softmax statistics `[lists, parts, 64]` (m, l) into one for each row, `[lists, 64]`, in workspace that the
 * caller releases. `statistics` stays as it is.
 */
export function recordSoftmaxMerge(rec: Recorder, statistics: GPUBuffer, lists: number, parts: number): GPUBuffer {
  let from = statistics;
  let left = parts;
  do {
    const groups = divCeil(left, FAN_IN);
    const merged = rec.workspace('estimate: merged softmax', lists * groups * STATISTICS_BYTES);
    rec.dispatch({
      stage: 'estimate',
      shader: softmaxMergeShader,
      bindings: [rec.constant([left, groups]), from, merged],
      workgroups: [groups, lists],
    });
    if (from !== statistics) rec.release(from);
    from = merged;
    left = groups;
  } while (left > 1);
  return from;
}
