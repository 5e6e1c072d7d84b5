import type { TopLevelSpec } from 'vega-lite';
import { PARTS, type Part } from './kernel_times.js';
import { renderSvg } from './plot.js';
import type { BenchFile, BenchRow } from './results.js';

/** One prompt of a whole model; those of its fields that attention rows have too mean the same. */
export interface ModelRow extends Pick<BenchRow, 'impl' | 'pattern' | 'tier' | 'seqLen' | 'heads' | 'headDim' | 'params'> {
  /** Type of the weights. */
  readonly dtype: string;
  /** Layers that ran, and layers of the model. */
  readonly layers: number;
  readonly ofLayers: number;
  /** Tokens that ran through the layers at a time; peers tell none. */
  readonly chunk?: number;
  /** Median GPU milliseconds of all kernels of the layers that ran; peers tell none. */
  readonly ms?: number;
  readonly parts?: Readonly<Record<Part, number>>;
  /** Median GPU milliseconds between the first kernel and the last one in which none ran, with timestamps around each. */
  readonly idleMs?: number;
  /** What waited most of that, by kernel; `submission` for what begins a command buffer. */
  readonly gaps?: Readonly<Record<string, number>>;
  /** Median milliseconds from the tokens to the logits on the CPU, of the layers that ran. */
  readonly wallMs: number;
  readonly repetitions: number;
  /** The kernel that most of the products' time went to, its 10^12 operations per second, and their share of the ceiling. */
  readonly gemmKernel?: string;
  readonly gemmTflops?: number;
  /** Of the ceiling of subgroup matrices where the device has them, else of f32 multiply-adds. */
  readonly gemmShare?: number;
  /** Of the multiplications that the kept query-key pairs need. */
  readonly attentionTflops?: number;
  /** Kept query-key pairs over all causal ones. */
  readonly density?: number;
  /** Milliseconds of a token after the prompt. */
  readonly decodeMs?: number;
  /** The greedy choice after the prompt. */
  readonly nextToken?: number;
}

/** A result file of `bench model`. */
export interface ModelFile extends BenchFile<ModelRow> {
  /** A shape's name, or a file's. */
  readonly model: string;
  /** The pattern file of the pattern `mix`. */
  readonly config?: string;
  /** Whether the weights are made up: random, with diagonals near the main one. */
  readonly synthetic: boolean;
}

/** Wall milliseconds of the whole model: measured, or what it would be if all layers took as long as those that ran. */
export function wholeMs({ wallMs, layers, ofLayers }: ModelRow): number {
  return (wallMs * ofLayers) / layers;
}

const implOf = (row: ModelRow): string => `${row.impl}, ${row.tier}`;
const count = (value: number): string => Math.round(value).toLocaleString('en');
const maybe = (value: number | undefined, text: (value: number) => string): string => (value === undefined ? '' : text(value));
const length = (tokens: number): string => {
  if (tokens >= 2 ** 20) return `${tokens / 2 ** 20}M`;
  return tokens >= 1024 ? `${tokens / 1024}K` : `${tokens}`;
};

/** Rows as a Markdown table. */
export function toMarkdown(rows: readonly ModelRow[]): string {
  const columns = [
    'impl',
    'pattern',
    'N',
    'chunk',
    'layers',
    'GPU ms',
    ...PARTS,
    'GEMM TFLOPS',
    'of ceiling',
    'attention TFLOPS',
    'density',
    'wall s',
    'whole model s',
    'tokens/s',
    'against dense',
  ];
  const line = (r: ModelRow): string => {
    const dense = rows.find((d) => d.impl === r.impl && d.tier === r.tier && d.seqLen === r.seqLen && d.pattern === 'dense');
    const whole = wholeMs(r) / 1000;
    return [
      implOf(r),
      r.pattern,
      count(r.seqLen),
      maybe(r.chunk, count),
      r.layers === r.ofLayers ? `${r.layers}` : `${r.layers} of ${r.ofLayers}`,
      maybe(r.ms, (ms) => ms.toFixed(1)),
      ...PARTS.map((part) => maybe(r.parts?.[part], (ms) => ms.toFixed(1))),
      maybe(r.gemmTflops, (x) => x.toPrecision(3)),
      maybe(r.gemmShare, (x) => `${(100 * x).toFixed(1)}%`),
      maybe(r.attentionTflops, (x) => x.toPrecision(3)),
      maybe(r.density, (x) => `${(100 * x).toFixed(2)}%`),
      (r.wallMs / 1000).toFixed(3),
      `${r.layers === r.ofLayers ? '' : '≈ '}${whole.toFixed(3)}`,
      count(r.seqLen / whole),
      dense && dense !== r ? `${(wholeMs(dense) / wholeMs(r)).toFixed(2)}x` : '',
    ].join(' | ');
  };
  const head = `| ${columns.join(' | ')} |\n| --- | --- |${' ---: |'.repeat(columns.length - 2)}`;
  return `${[head, ...rows.map((r) => `| ${line(r)} |`)].join('\n')}\n`;
}

/** A result file as Markdown: what ran, the table, and what is absent. */
export function report(file: ModelFile): string {
  const list = (of: Readonly<Record<string, string | number>>): string =>
    Object.entries(of)
      .map(([name, value]) => `${name} ${typeof value === 'number' ? value.toPrecision(4) : value}`)
      .join(', ');
  const rows = [...file.rows].sort((a, b) => a.seqLen - b.seqLen);
  const kernels = [...new Set(rows.flatMap((r) => r.gemmKernel ?? []))];
  // That all choose the same token says that they computed the same.
  const lengths = [...new Set(rows.map((r) => r.seqLen))];
  const choices = lengths.flatMap((tokens) => {
    const chosen = rows.filter((r) => r.seqLen === tokens && r.nextToken !== undefined);
    const each = chosen.map((r) =>
      [`${r.nextToken} (${r.impl} ${r.pattern}`, ...(list(r.params) ? [list(r.params)] : [])].join(', '),
    );
    return each.length > 0 ? [`Next token after ${count(tokens)}: ${each.join('), ')}).`] : [];
  });
  const decoded = lengths.flatMap((tokens) => {
    const each = rows.filter((r) => r.seqLen === tokens && r.decodeMs !== undefined);
    const list = each.map((r) => `${r.decodeMs?.toFixed(2)} ms (${implOf(r)}, ${r.pattern} prompt)`).join(', ');
    return list ? [`A token after ${count(tokens)}, greedily: ${list}.`] : [];
  });
  const notes = [
    `Prefill of whole prompts, ${file.rows.find((r) => r.impl === 'ours')?.dtype ?? ''} weights${file.synthetic ? ' (random, with biases of q and k that give every head diagonals near the main one)' : ''}. A chunk is what runs through the layers at a time.`,
    'Medians: GPU time from timestamps around every kernel, in milliseconds; wall time from tokens to logits, without timestamps where there was time for runs of their own.',
    ...(file.config ? [`mix: the patterns of ${file.config}, head by head.`] : []),
    ...(rows.some((r) => r.layers < r.ofLayers)
      ? [
          'Where fewer layers ran than the model has, for memory or for time, they are spread over the model, and the whole model is their time scaled up (≈).',
        ]
      : []),
    `Ceiling of the products: ${file.ceilings['matrix'] ? 'subgroup matrices' : 'f32 multiply-adds'}.${sustained(rows, file.ceilings)}`,
    ...choices,
    ...decoded,
    ...(file.note ? [file.note] : []),
    ...(kernels.length > 0 ? [`Kernels of the products: ${kernels.join('; ')}.`] : []),
  ];
  return `# ${file.model}, ${file.device}, ${file.date}

Software: ${list(file.software)}.
Ceilings (TFLOPS; copy in GB/s): ${list(file.ceilings)}.

${notes.join('\n')}

${toMarkdown(rows)}${file.absent.map((a) => `\nAbsent: ${a.impl}, ${a.reason}\n`).join('')}`;
}

/** What the products reach of the rate that the device's power allows for longer than a burst, where that was measured. */
function sustained(rows: readonly ModelRow[], { matrixSustained }: ModelFile['ceilings']): string {
  const rates = rows.flatMap((r) => (r.impl === 'ours' ? (r.gemmTflops ?? []) : []));
  if (matrixSustained === undefined || rates.length === 0) return '';
  const [least, most] = [Math.min(...rates), Math.max(...rates)].map((x) => ((100 * x) / matrixSustained).toFixed(1));
  return ` Of what it sustains, ${matrixSustained.toPrecision(4)} TFLOPS after a second and a half, they reach ${least} to ${most}%.`;
}

/** Rows as CSV, with a header. */
export function toCsv(rows: readonly ModelRow[]): string {
  const head = ['impl', 'pattern', 'tier', 'seqLen', 'heads', 'headDim', 'dtype', 'layers', 'ofLayers', 'chunk', 'ms', ...PARTS];
  const tail = ['gemmTflops', 'gemmShare', 'attentionTflops', 'density', 'wallMs', 'wholeMs', 'decodeMs'] as const;
  const line = (r: ModelRow): string =>
    [
      ...[r.impl, r.pattern, r.tier, r.seqLen, r.heads, r.headDim, r.dtype, r.layers, r.ofLayers, r.chunk, r.ms?.toFixed(3)],
      ...PARTS.map((part) => r.parts?.[part].toFixed(3)),
      ...tail.map((name) => (name === 'wholeMs' ? wholeMs(r) : r[name])?.toPrecision(6)),
    ].join(',');
  return `${[[...head, ...tail].join(','), ...rows.map(line)].join('\n')}\n`;
}

/** Time of a whole prompt against its length, both logarithmic; hollow where it is scaled up from fewer layers. */
export function promptCurve(file: ModelFile): Promise<string> {
  const values = file.rows.map((r) => ({
    tokens: r.seqLen,
    seconds: wholeMs(r) / 1000,
    pattern: r.pattern,
    impl: implOf(r),
    scaled: r.layers < r.ofLayers,
  }));
  const spec: TopLevelSpec = {
    $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
    title: { text: `Prefill of ${file.model}`, subtitle: file.device, anchor: 'start' },
    width: 560,
    height: 340,
    background: 'white',
    data: { values },
    layer: [
      {
        mark: 'line',
        encoding: {
          strokeDash: {
            field: 'impl',
            type: 'nominal',
            title: null,
            sort: null,
            legend: { symbolType: 'stroke', symbolSize: 400 },
          },
        },
      },
      { mark: { type: 'point', filled: true, opacity: 1, size: 35 } },
      {
        mark: { type: 'point', filled: true, opacity: 1, size: 12 },
        transform: [{ filter: 'datum.scaled' }],
        encoding: { color: { value: 'white' } },
      },
    ],
    encoding: {
      x: {
        field: 'tokens',
        type: 'quantitative',
        scale: { type: 'log', base: 2, nice: false },
        axis: {
          title: 'tokens',
          values: [...new Set(values.map((v) => v.tokens))].sort((a, b) => a - b),
          labelExpr:
            "datum.value >= 1048576 ? datum.value / 1048576 + 'M' : datum.value >= 1024 ? datum.value / 1024 + 'K' : datum.value",
        },
      },
      y: {
        field: 'seconds',
        type: 'quantitative',
        scale: { type: 'log' },
        axis: {
          title: values.some((v) => v.scaled) ? 'seconds, all layers (hollow: scaled up from fewer)' : 'seconds, all layers',
          grid: true,
        },
      },
      color: { field: 'pattern', type: 'nominal', title: null, sort: null },
    },
  };
  return renderSvg(spec);
}

/** GPU time of a token in a layer, by part: the patterns at each length. */
export function partBars(file: ModelFile): Promise<string> {
  const rows = file.rows.filter((r) => r.parts).sort((a, b) => a.seqLen - b.seqLen);
  const values = rows.flatMap((r) =>
    PARTS.map((part, order) => ({
      tokens: length(r.seqLen),
      pattern: r.pattern,
      part,
      order,
      us: ((r.parts?.[part] ?? 0) * 1000) / r.seqLen / r.layers,
    })),
  );
  const spec: TopLevelSpec = {
    $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
    title: {
      text: `Prefill of ${file.model}: where the GPU's time goes`,
      subtitle: file.device,
      anchor: 'start',
    },
    background: 'white',
    data: { values },
    columns: 1,
    facet: {
      field: 'tokens',
      type: 'nominal',
      title: null,
      sort: [...new Set(values.map((v) => v.tokens))],
      header: { labelExpr: "datum.value + ' tokens'", labelAnchor: 'start', labelFontWeight: 'bold' },
    },
    spec: {
      width: 460,
      height: { step: 18 },
      encoding: { y: { field: 'pattern', type: 'nominal', title: null, sort: null } },
      layer: [
        {
          mark: 'bar',
          encoding: {
            x: { field: 'us', type: 'quantitative', axis: { title: 'microseconds of a token in a layer' } },
            color: { field: 'part', type: 'nominal', title: null, sort: [...PARTS] },
            order: { field: 'order' },
          },
        },
        {
          mark: { type: 'text', align: 'left', dx: 4 },
          encoding: {
            x: { aggregate: 'sum', field: 'us', type: 'quantitative' },
            text: { aggregate: 'sum', field: 'us', type: 'quantitative', format: '.3~r' },
          },
        },
      ],
    },
    resolve: { scale: { x: 'independent', y: 'independent' } },
  };
  return renderSvg(spec);
}
