import type { AttentionLayer, PlanReport, Stage } from '../src/index.js';
import { type SparsePrefill, STAGES, StageTimer } from '../src/index.js';
import { KernelWatch } from './kernel_times.js';

/** Median GPU times of one layer. */
export interface Measurement {
  /** Milliseconds of all stages. */
  readonly ms: number;
  readonly stages: Readonly<Record<Stage, number>>;
  /** Times measured; the median is reported. */
  readonly repetitions: number;
  /** Fastest and slowest repetition, in milliseconds. */
  readonly range: readonly [number, number];
  readonly plan: PlanReport;
}

/** How long and how often to measure. */
export interface MeasureOptions {
  /** GPU time to spend on one measurement, in milliseconds. */
  readonly budgetMs: number;
  /** Repetitions at least and at most. */
  readonly repetitions: readonly [number, number];
  /** GPU time of the warm-up: a GPU that was idle takes a while to reach its clock. Default 300; 0 on software adapters. */
  readonly warmMs?: number;
}

export const SERVER: MeasureOptions = { budgetMs: 1500, repetitions: [3, 20] };

/** The middle value. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1
    ? (sorted[middle] ?? Number.NaN)
    : ((sorted[middle - 1] ?? Number.NaN) + (sorted[middle] ?? Number.NaN)) / 2;
}

/**
 * Records the layer several times back to back into one submission, after a warm-up, and reports medians of GPU
 * timestamps.
 */
export async function measureLayer(
  prefill: SparsePrefill,
  layer: AttentionLayer,
  options: MeasureOptions = SERVER,
): Promise<Measurement> {
  const { device } = prefill;
  const timer = new StageTimer(device);
  const pass = async (repetitions: number): Promise<{ plan: PlanReport; times: Record<Stage, number>[] }> => {
    const encoder = device.createCommandEncoder();
    let plan: PlanReport | undefined;
    for (let i = 0; i < repetitions; i++) plan = prefill.record(encoder, layer, timer);
    device.queue.submit([encoder.finish()]);
    const passes = await timer.readPasses();
    const perRepetition = passes.length / repetitions;
    const times = Array.from({ length: repetitions }, (_, i) => {
      const sum: Record<Stage, number> = { estimate: 0, topk: 0, convert: 0, kernel: 0 };
      for (const { stage, ms } of passes.slice(i * perRepetition, (i + 1) * perRepetition)) sum[stage] += ms;
      return sum;
    });
    return { plan: plan as PlanReport, times };
  };
  const total = (t: Record<Stage, number>): number => STAGES.reduce((sum, stage) => sum + t[stage], 0);
  try {
    const first = await pass(1);
    const guess = Math.max(total(first.times[0] as Record<Stage, number>), 1e-3);
    const [least, most] = options.repetitions;
    const repetitions = Math.min(most, Math.max(least, Math.round(options.budgetMs / guess)));
    const warmMs = options.warmMs ?? (prefill.profile.software ? 0 : 300);
    for (let i = 0; i < Math.min(1000, Math.floor(warmMs / guess)); i++) submitOnce(prefill, layer);
    const { plan, times } = await pass(repetitions);
    const totals = times.map(total);
    return {
      ms: median(totals),
      stages: Object.fromEntries(STAGES.map((stage) => [stage, median(times.map((t) => t[stage]))])) as Record<Stage, number>,
      repetitions,
      range: [Math.min(...totals), Math.max(...totals)],
      plan,
    };
  } finally {
    timer.destroy();
  }
}

/** Means over a few passes of every kernel's time, by its label. The device needs `timestamp-query`. */
export async function kernelTimes(
  prefill: SparsePrefill,
  layer: AttentionLayer,
  passes = 3,
): Promise<Readonly<Record<string, number>>> {
  const watch = new KernelWatch(prefill.device);
  for (let i = 0; i < passes; i++) submitOnce(prefill, layer);
  const { kernels } = await watch.stop();
  return Object.fromEntries([...kernels].map(([label, ms]) => [label, ms / passes]));
}

function submitOnce(prefill: SparsePrefill, layer: AttentionLayer): void {
  const encoder = prefill.device.createCommandEncoder();
  prefill.record(encoder, layer);
  prefill.device.queue.submit([encoder.finish()]);
}
