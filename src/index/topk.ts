import topkCount from '../../shaders/index/topk_count.wgsl?raw';
import topkHistogram from '../../shaders/index/topk_histogram.wgsl?raw';
import topkScatter from '../../shaders/index/topk_scatter.wgsl?raw';
import radix from '../../shaders/lib/index_radix.wgsl?raw';
import topkSteps from '../../shaders/lib/index_topk.wgsl?raw';
import type { ShaderSpec } from '../device/pipelines.js';
import type { Recorder } from '../device/recorder.js';
import { checkInteger } from '../errors.js';
import { divCeil } from './layer.js';

/** One list to select from. */
export interface TopKList {
  /** First element of the list in the score buffer. */
  readonly start: number;
  /** Length of the list, at least 1. */
  readonly count: number;
  /** How many to select, 1 to `count`. */
  readonly k: number;
  /** First element of the result in the output buffer. */
  readonly output: number;
}

/** What {@link recordTopK} works on. */
export interface TopKOptions {
  /** u32 keys, or the bits of non-negative f32 scores, which have the same order. */
  readonly scores: GPUBuffer;
  readonly lists: readonly TopKList[];
  /** u32 positions in the list, ascending. */
  readonly output: GPUBuffer;
}

// As in shaders/lib/index_radix.wgsl and index_topk.wgsl.
const CHUNK = 4096;
const DIGITS = 3;
const BINS = 2048;

/** The shaders of {@link recordTopK}. */
export function topKShaders(): { histogram: ShaderSpec[]; count: ShaderSpec; scatter: ShaderSpec } {
  const code = [radix, topkSteps, topkHistogram].join('\n');
  return {
    histogram: [0, 1, 2].map((digit) => ({
      label: 'top-k histogram',
      code,
      constants: { DIGIT: digit },
      bindings: ['read', 'read', 'write', 'write'],
    })),
    count: {
      label: 'top-k count',
      code: [radix, topkSteps, topkCount].join('\n'),
      bindings: ['read', 'read', 'write', 'write', 'write'],
    },
    scatter: {
      label: 'top-k scatter',
      code: [radix, topkScatter].join('\n'),
      bindings: ['read', 'read', 'read', 'read', 'write'],
    },
  };
}

/** Bytes of transient workspace that {@link recordTopK} takes for lists of at most `longest` elements. */
export function topKWorkspaceBytes(lists: number, longest: number): number {
  return lists * (DIGITS * BINS * 4 + DIGITS * 8 + divCeil(longest, CHUNK) * 8);
}

/**
 * Records the selection of the `k` largest of each list, all lists in the same dispatches: an exact radix
 * select with digits of 11, 11 and 10 bits, then an order-preserving scatter. Results are ascending
 * positions; among equal scores the lowest positions win, so the result is deterministic.
 *
 * @throws {@link MinferenceError} `invalid-argument` when a `k` is not from 1 to its list's length.
 */
export function recordTopK(rec: Recorder, options: TopKOptions): void {
  const { scores, lists, output } = options;
  if (lists.length === 0) return;
  for (const [i, list] of lists.entries()) checkInteger(`lists[${i}].k`, list.k, 1, list.count);
  const longest = lists.reduce((n, list) => Math.max(n, list.count), 0);
  const chunks = divCeil(longest, CHUNK);
  const shaders = topKShaders();
  const segments = rec.constant(lists.flatMap((l) => [l.start, l.count, l.k, l.output]));
  const histogramBytes = lists.length * DIGITS * BINS * 4;
  const histogram = rec.workspace('top-k histogram', histogramBytes);
  const found = rec.workspace('top-k digits', lists.length * DIGITS * 8);
  const counts = rec.workspace('top-k chunk counts', lists.length * chunks * 8);
  const workgroups: [number, number] = [chunks, lists.length];
  rec.clear('topk', histogram, 0, histogramBytes);
  for (const shader of shaders.histogram) {
    rec.dispatch({ stage: 'topk', shader, bindings: [segments, scores, histogram, found], workgroups });
  }
  rec.dispatch({ stage: 'topk', shader: shaders.count, bindings: [segments, scores, histogram, found, counts], workgroups });
  rec.dispatch({ stage: 'topk', shader: shaders.scatter, bindings: [segments, scores, found, counts, output], workgroups });
  rec.release(histogram, found, counts);
}
