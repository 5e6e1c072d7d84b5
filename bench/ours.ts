import type { AttentionLayer, DeviceProfile, HeadPattern, SparsePrefill } from '../src/index.js';
import { type PlantKind, plantLayer } from '../src/kernels/plant.js';
import { sampledError } from './check.js';
import { kernelTimes, type MeasureOptions, measureLayer } from './measure.js';
import type { BenchRow } from './results.js';

/** One layer to measure, all heads with the same pattern. */
export interface BenchCase {
  readonly pattern: HeadPattern;
  readonly seqLen: number;
  readonly heads: number;
  readonly headDim: number;
}

/** Kept diagonals of an index's runs `lo, hi, lo, hi, ...`. */
const diagonals = (runs: ArrayLike<number>): number =>
  Array.from(runs).reduce((sum, bound, i) => sum + (i % 2 === 0 ? -bound : bound + 1), 0);

/** A pattern's budgets, for tables. */
export function paramsOf(pattern: HeadPattern): Record<string, number> {
  if (pattern.kind === 'static_vertical_slash') {
    return { verticalSize: pattern.columns.length, slashSize: diagonals(pattern.runs) };
  }
  const { kind: _kind, ...params } = pattern;
  return { ...params };
}

/** The structure of generated input in which a pattern finds what it looks for. */
function plantFor(kind: HeadPattern['kind']): PlantKind {
  if (kind === 'a_shape' || kind === 'tri_shape') return 'a_shape';
  if (kind === 'block_sparse' || kind === 'x_attention') return 'block_sparse';
  return 'vertical_slash';
}

/** Measures one case on generated input and checks sampled rows of its output (none when `checkRows` is 0). */
export async function measureOurs(
  prefill: SparsePrefill,
  profile: DeviceProfile,
  { pattern, seqLen, heads, headDim }: BenchCase,
  measure: MeasureOptions,
  checkRows: number,
): Promise<BenchRow> {
  const { device } = prefill;
  const dtype = profile.tier === 'portable' ? 'f32' : 'f16';
  const shape = { numHeads: heads, numKvHeads: heads, headDim, seqLen, dtype } as const;
  const kinds = new Array<PlantKind>(heads).fill(plantFor(pattern.kind));
  const planted = await plantLayer(device, profile, { ...shape, seed: 1, kinds });
  const o = device.createBuffer({ size: planted.q.size, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC });
  try {
    const { q, k, v } = planted;
    const layer: AttentionLayer = { ...shape, q, k, v, o, patterns: pattern };
    const { ms, stages, repetitions, plan } = await measureLayer(prefill, layer, measure);
    const kernels = device.features.has('timestamp-query') ? await kernelTimes(prefill, layer) : {};
    const report = await prefill.run(layer, { inspect: true });
    const density = report.heads?.reduce((sum, h) => sum + h.density / heads, 0) ?? 1;
    const head = report.heads?.[0];
    const relError = checkRows > 0 && head ? await sampledError(device, layer, head, checkRows) : undefined;
    return {
      impl: 'ours',
      pattern: pattern.kind,
      tier: profile.tier,
      seqLen,
      heads,
      headDim,
      dtype,
      params: paramsOf(pattern),
      ms,
      stages,
      kernels,
      tflops: (4 * headDim * density * heads * seqLen * (seqLen + 1)) / 2 / ms / 1e9,
      density,
      ...(relError === undefined ? {} : { relError }),
      repetitions,
      peakBytes: plan.memory.peakBytes,
    };
  } finally {
    for (const buffer of [planted.q, planted.k, planted.v, o]) buffer.destroy();
    prefill.trim();
  }
}
