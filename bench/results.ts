import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import type { Stage } from '../src/index.js';

/** One measured case; the columns of every published table. */
export interface BenchRow {
  /** `ours`, or a peer's name. */
  readonly impl: string;
  readonly pattern: string;
  readonly tier: string;
  readonly seqLen: number;
  readonly heads: number;
  readonly headDim: number;
  readonly dtype: string;
  /** The pattern's budgets. */
  readonly params: Readonly<Record<string, number>>;
  /** Median GPU milliseconds, index building included. */
  readonly ms: number;
  readonly stages?: Readonly<Record<Stage, number>>;
  /** Of the multiplications that the pattern needs (q k^T and p v over its kept pairs), per second, in 10^12. */
  readonly tflops: number;
  /** Kept query-key pairs over all causal ones. */
  readonly density: number;
  /** Against the float64 oracle, on sampled rows. */
  readonly relError?: number;
  readonly repetitions: number;
  /** Workspace and index bytes at their peak. */
  readonly peakBytes?: number;
}

/** A benchmark's result file. */
export interface BenchFile {
  readonly device: string;
  readonly date: string;
  readonly software: Readonly<Record<string, string>>;
  readonly rows: readonly BenchRow[];
  /** Ceilings measured in the same run. */
  readonly ceilings?: Readonly<Record<string, number>>;
}

/** Writes a file and the folders above it. */
export function write(path: string, text: string): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text);
}

/** Rows as CSV, with a header. */
export function toCsv(rows: readonly BenchRow[]): string {
  const head = [
    'impl',
    'pattern',
    'tier',
    'seqLen',
    'heads',
    'headDim',
    'dtype',
    'ms',
    'estimate',
    'topk',
    'convert',
    'kernel',
    'tflops',
    'density',
    'relError',
    'peakBytes',
  ];
  const line = (r: BenchRow): string =>
    [
      r.impl,
      r.pattern,
      r.tier,
      r.seqLen,
      r.heads,
      r.headDim,
      r.dtype,
      r.ms.toFixed(4),
      r.stages?.estimate.toFixed(4),
      r.stages?.topk.toFixed(4),
      r.stages?.convert.toFixed(4),
      r.stages?.kernel.toFixed(4),
      r.tflops.toFixed(2),
      r.density.toFixed(5),
      r.relError?.toExponential(2),
      r.peakBytes,
    ].join(',');
  return `${[head.join(','), ...rows.map(line)].join('\n')}\n`;
}

/** Rows as a Markdown table. */
export function toMarkdown(rows: readonly BenchRow[]): string {
  const head =
    '| impl | pattern | tier | N | heads | ms | estimate + top-k + convert | kernel | TFLOPS | density | error |\n| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |';
  const line = (r: BenchRow): string => {
    const index = r.stages ? r.stages.estimate + r.stages.topk + r.stages.convert : undefined;
    return `| ${r.impl} | ${r.pattern} | ${r.tier} | ${r.seqLen.toLocaleString('en')} | ${r.heads} | ${r.ms.toFixed(2)} | ${index?.toFixed(2) ?? ''} | ${r.stages?.kernel.toFixed(2) ?? ''} | ${r.tflops.toFixed(1)} | ${(100 * r.density).toFixed(2)}% | ${r.relError?.toExponential(1) ?? ''} |`;
  };
  return `${[head, ...rows.map(line)].join('\n')}\n`;
}
