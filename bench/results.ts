import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import type { Stage } from '../src/index.js';

/** One measured case; the columns of every published table. */
export interface BenchRow {
  /** `ours`, or a peer's name. */
  readonly impl: string;
  readonly pattern: string;
  /** Ours: the kernels' tier. Peers: the interface that they use, `cuda` or `webgpu`. */
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
  /** Milliseconds by the label of the kernel, each in a pass of its own, which takes a little longer than `ms`. */
  readonly kernels?: Readonly<Record<string, number>>;
  /** Of the multiplications that the pattern needs (q k^T and p v over its kept pairs), per second, in 10^12. */
  readonly tflops: number;
  /** Kept query-key pairs over all causal ones. */
  readonly density: number;
  /** Against float64 attention over the same keys, on sampled rows. */
  readonly relError?: number;
  readonly repetitions: number;
  /** Workspace and index bytes at their peak. */
  readonly peakBytes?: number;
}

/** Something that was asked for and not measured. */
export interface Absence {
  readonly impl: string;
  /** Why; a case of ours begins with its name, as in "f16 dense at 4096: ..." or, of models, "dense at 4096: ...". */
  readonly reason: string;
}

/** A benchmark's result file. */
export interface BenchFile<Row = BenchRow> {
  /** The GPU's model. */
  readonly device: string;
  readonly date: string;
  readonly software: Readonly<Record<string, string>>;
  /** Measured in the same run. TFLOPS, and GB/s where the name says so. */
  readonly ceilings: Readonly<Record<string, number>>;
  readonly rows: readonly Row[];
  readonly absent: readonly Absence[];
  /** What a reader should know, such as rows of another run. */
  readonly note?: string;
}

/** Reads the file of an earlier run on the same device and the same day; undefined when there is none. */
export function readEarlier<Row = BenchRow>(path: string, device: string, date: string): BenchFile<Row> | undefined {
  if (!existsSync(path)) return undefined;
  const file = JSON.parse(readFileSync(path, 'utf8')) as BenchFile<Row>;
  return file.device === device && file.date === date ? file : undefined;
}

/** What tells one row from another. */
type RowKey = Pick<BenchRow, 'impl' | 'pattern' | 'tier' | 'seqLen' | 'heads' | 'headDim' | 'dtype'>;

/** Whether rows, or later absences, say anew what an absence is about: a case of ours, or an implementation. */
function isOutdated({ impl, reason }: Absence, { rows, absent }: BenchFile<RowKey>): boolean {
  if (impl !== 'ours') return [...rows, ...absent].some((r) => r.impl === impl);
  const cases = rows.flatMap((r) => [`${r.tier} ${r.pattern} at ${r.seqLen}`, `${r.pattern} at ${r.seqLen}`]);
  return [...cases, ...absent.map((a) => a.reason.split(':')[0])].some((name) => reason.split(':')[0] === name);
}

/** What `fresh` measured, and of `earlier` what it did not measure again. */
export function merge<Row extends RowKey>(earlier: BenchFile<Row> | undefined, fresh: BenchFile<Row>): BenchFile<Row> {
  if (!earlier) return fresh;
  const key = (r: Row): string => [r.impl, r.pattern, r.tier, r.seqLen, r.heads, r.headDim, r.dtype].join();
  const measured = new Set(fresh.rows.map(key));
  return {
    ...(earlier.note ? { note: earlier.note } : {}),
    ...fresh,
    software: { ...earlier.software, ...fresh.software },
    ceilings: { ...earlier.ceilings, ...fresh.ceilings },
    rows: [...earlier.rows.filter((r) => !measured.has(key(r))), ...fresh.rows],
    absent: [...earlier.absent.filter((a) => !isOutdated(a, fresh)), ...fresh.absent],
  };
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

/** The ceiling of a row's arithmetic: all tiers but `matrix` multiply with f32 FMAs, CUDA peers with tensor cores. */
function ceilingOf(row: BenchRow, ceilings: BenchFile['ceilings']): number | undefined {
  const names: Readonly<Record<string, string>> = { portable: 'fmaF32', f16: 'fmaF32', matrix: 'matrix', cuda: 'matmulF16' };
  return ceilings[names[row.tier] ?? ''];
}

/** Rows as a Markdown table; the roofline is the share of the ceiling that the row's tier has. */
export function toMarkdown(rows: readonly BenchRow[], ceilings: BenchFile['ceilings']): string {
  const head =
    '| impl | pattern | tier | N | heads | ms | estimate + top-k + convert | kernel | TFLOPS | roofline | density | error |\n| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |';
  const line = (r: BenchRow): string => {
    const index = r.stages ? r.stages.estimate + r.stages.topk + r.stages.convert : undefined;
    const ceiling = ceilingOf(r, ceilings);
    const cells = [
      r.impl,
      r.pattern,
      r.tier,
      r.seqLen.toLocaleString('en'),
      r.heads,
      r.ms.toFixed(2),
      index?.toFixed(2) ?? '',
      r.stages?.kernel.toFixed(2) ?? '',
      r.tflops.toFixed(1),
      ceiling ? `${((100 * r.tflops) / ceiling).toFixed(1)}%` : '',
      `${(100 * r.density).toFixed(2)}%`,
      r.relError?.toExponential(1) ?? '',
    ];
    return `| ${cells.join(' | ')} |`;
  };
  return `${[head, ...rows.map(line)].join('\n')}\n`;
}

/** A result file as Markdown: the device, its ceilings, the table, and what is absent. */
export function report(file: BenchFile): string {
  const list = (of: Readonly<Record<string, string | number>>): string =>
    Object.entries(of)
      .map(([name, value]) => `${name} ${typeof value === 'number' ? value.toFixed(1) : value}`)
      .join(', ');
  const order = [...file.rows].sort((a, b) => a.pattern.localeCompare(b.pattern) || a.seqLen - b.seqLen);
  return `# ${file.device}, ${file.date}

Software: ${list(file.software)}.
Ceilings (TFLOPS; copy in GB/s): ${list(file.ceilings)}.
${file.note ? `\n${file.note}\n` : ''}
${toMarkdown(order, file.ceilings)}${file.absent.map((a) => `\nAbsent: ${a.impl}, ${a.reason}\n`).join('')}`;
}
