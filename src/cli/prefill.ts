import { InvalidArgumentError, Option } from 'commander';
import { STAGES } from '../device/recorder.js';
import { HEAD_DIMS } from '../kernels/attention.js';
import type { PlantKind } from '../kernels/plant.js';
import { BYTES, concatenated } from '../kernels/tensor.js';
import { reuseIndices } from '../patterns/static.js';
import { relativeError } from '../reference/oracle.js';
import { SparsePrefill } from '../scheduler/prefill.js';
import type { AttentionLayer, HeadPattern, HeadReport, RunReport, StageTimes } from '../scheduler/types.js';
import type { CliContext, CommandResult, RegisterCommand } from './app.js';
import { addDeviceOptions, type DeviceOptions, integer, positiveNumber, withDevice } from './device.js';
import { formatBytes, formatCount, formatError, formatMs, formatPercent, formatTable, shorten } from './format.js';
import { type CliInput, type InputOptions, openInput } from './input.js';
import {
  addPatternOptions,
  headPatterns,
  PATTERN_SYNTAX,
  type PatternOptions,
  patternText,
  readPatternConfig,
} from './patterns.js';
import { readRows, rowSample } from './readback.js';

interface PrefillCommandOptions extends DeviceOptions, InputOptions, PatternOptions {
  readonly staticIndex?: true;
  readonly runs?: number;
  readonly dispatchMs?: number;
}

const MAX_LENGTH = 2 ** 26;
/** Lengths of a generated input unless given: what takes seconds. */
const GENERATED_LENGTH = { software: 2048, hardware: 32_768 };
/** Timed repetitions unless given. */
const RUNS = { software: 1, hardware: 5 };
/** GPUs raise their clocks only under load: time spent on untimed repetitions first. */
const WARM_UP_MS = 500;
const MAX_WARM_UPS = 10;

const EXAMPLES = `
${PATTERN_SYNTAX}

Input: the sample that ships with the package (9 heads, 4096 tokens), a file with
--qkv, or, with --heads, --head-dim or a longer --seq-len, one that is generated
on the GPU with planted columns, diagonals and blocks.

As in MInference: --budget-ratio is its minference_ratio, --starting-layer its
starting_layer, --vs-only its vs_only, --static-index its static_pattern.

Examples:
  minference prefill
  minference prefill --pattern flex_prefill:0.9,0.1,128
  minference prefill --pattern a_shape:64,512 --tier portable
  minference prefill --seq-len 131072 --heads 8 --head-dim 128
  minference prefill --qkv layer12.safetensors --config pattern.json --layer 12`;

/** Adds `minference prefill`: one layer, dense and sparse, timed and compared. */
export const registerPrefill: RegisterCommand = (program, action) => {
  const command = program.command('prefill').description('run one attention layer dense and sparse; compare time and output');
  addDeviceOptions(
    addPatternOptions(command)
      .option('--static-index', 'estimate columns and diagonals once; time the layer with that index')
      .addOption(new Option('--seq-len <n>', 'tokens: cuts the file, or sizes generated input').argParser(integer(1, MAX_LENGTH)))
      .addOption(new Option('--heads <n>', 'query heads of generated input').argParser(integer(1, 4096)))
      .addOption(new Option('--kv-heads <n>', 'key/value heads of generated input').argParser(integer(1, 4096)))
      .addOption(new Option('--head-dim <n>', `head size of generated input (${HEAD_DIMS.join(', ')})`).argParser(headDim))
      .option('--qkv <file>', 'safetensors with q, k, v: [heads, tokens, head size]')
      .addOption(new Option('--dtype <type>', 'element type on the GPU').choices(['f16', 'f32']))
      .addOption(new Option('--seed <n>', 'of generated input').argParser(integer(0, 2 ** 32 - 1)).default(1))
      .addOption(new Option('--runs <n>', 'timed repetitions; medians are shown').argParser(integer(1, 1000)))
      .addOption(new Option('--dispatch-ms <ms>', 'aimed-at longest GPU time of one dispatch').argParser(positiveNumber)),
  )
    .addHelpText('after', EXAMPLES)
    .action(action<PrefillCommandOptions>(run));
};

function headDim(text: string): number {
  if (!HEAD_DIMS.some((size) => String(size) === text)) throw new InvalidArgumentError(`Allowed: ${HEAD_DIMS.join(', ')}.`);
  return Number(text);
}

async function run(context: CliContext, options: PrefillCommandOptions): Promise<CommandResult> {
  const configured = await readPatternConfig(options);
  return withDevice(context, options, async (device) => {
    const prefill = new SparsePrefill(device, {
      tier: options.tier,
      ...(options.dispatchMs === undefined ? {} : { dispatchMs: options.dispatchMs }),
    });
    const kind = prefill.profile.software ? 'software' : 'hardware';
    const input = await openInput(options, configured?.length, GENERATED_LENGTH[kind]);
    try {
      const patterns = headPatterns(options, configured, input, defaultPattern(input));
      const runs = options.runs ?? RUNS[kind];
      return await compare(context, prefill, input, patterns, runs, options.staticIndex === true);
    } finally {
      await input.close();
      prefill.destroy();
    }
  });
}

/**
 * Budgets for inputs that nobody gave any for: generated input gets those that its planted structure has, others a share of their
 * length (on the sample, a third of the pairs at an error of 0.03), at most MInference's usual ones.
 */
function defaultPattern({ source, seqLen }: CliInput): HeadPattern {
  const share = Math.min(1, seqLen / 131_072);
  if (source === 'generated') {
    return { kind: 'vertical_slash', verticalSize: Math.round(30 + 970 * share), slashSize: Math.round(100 + 5996 * share) };
  }
  return {
    kind: 'vertical_slash',
    verticalSize: Math.min(1000, Math.round(seqLen / 8)),
    slashSize: Math.min(6096, Math.max(128, Math.round((3 * seqLen) / 64))),
  };
}

interface Measured {
  readonly ms: number;
  readonly stages?: StageTimes;
  readonly report: RunReport;
  readonly heads: readonly HeadReport[];
  readonly output: readonly Float32Array[];
}

async function compare(
  context: CliContext,
  prefill: SparsePrefill,
  input: CliInput,
  patterns: readonly HeadPattern[],
  runs: number,
  staticIndex: boolean,
): Promise<CommandResult> {
  const { device, profile } = prefill;
  const { numHeads, numKvHeads, headDim, seqLen, dtype } = input;
  const kinds = patterns.map(plantKind);
  const { q, k, v } = await input.load(device, profile, kinds);
  const o = device.createBuffer({ label: 'o', size: numHeads * seqLen * headDim * BYTES[dtype], usage: 0x80 | 0x04 | 0x08 }); // STORAGE | COPY_SRC | COPY_DST
  const tensorBytes = [q, k, v, o].reduce((sum, b) => sum + b.size, 0);
  const layer = (p: readonly HeadPattern[]): AttentionLayer => ({
    q,
    k,
    v,
    o,
    numHeads,
    numKvHeads,
    headDim,
    seqLen,
    dtype,
    patterns: p,
  });
  try {
    context.signal.throwIfAborted();
    await prefill.prepare({
      headDim,
      dtype,
      kinds: [
        ...new Set<HeadPattern['kind']>([
          'dense',
          ...(staticIndex ? ['static_vertical_slash' as const] : []),
          ...patterns.map((p) => p.kind),
        ]),
      ],
    });
    const rows = rowSample(input);
    const read = (): Promise<Float32Array[]> => readRows(device, o, input, rows);
    const dense = await measure(context, prefill, 'dense ', layer(patterns.map(() => ({ kind: 'dense' }))), runs, read);
    const once = staticIndex ? await prefill.run(layer(patterns), { signal: context.signal, inspect: true }) : undefined;
    device.queue.submit([clearing(device, o)]);
    const sparse = await measure(context, prefill, 'sparse', layer(once ? reuseIndices(once.heads) : patterns), runs, read);
    return report({ prefill, input, patterns, dense, sparse, tensorBytes, rows: rows.count, runs, staticIndex });
  } finally {
    for (const buffer of [q, k, v, o]) buffer.destroy();
  }
}

/** The structure of generated input that suits a head's pattern. */
function plantKind(pattern: HeadPattern): PlantKind {
  if (pattern.kind === 'block_sparse' || pattern.kind === 'x_attention') return 'block_sparse';
  return pattern.kind === 'a_shape' || pattern.kind === 'tri_shape' ? 'a_shape' : 'vertical_slash';
}

function clearing(device: GPUDevice, buffer: GPUBuffer): GPUCommandBuffer {
  const encoder = device.createCommandEncoder();
  encoder.clearBuffer(buffer);
  return encoder.finish();
}

/** Runs a layer `runs` times after a warm-up (none on software adapters, whose speed does not change). */
async function measure(
  context: CliContext,
  prefill: SparsePrefill,
  label: string,
  layer: AttentionLayer,
  runs: number,
  read: () => Promise<Float32Array[]>,
): Promise<Measured> {
  const { signal } = context;
  const progress = context.progress(label);
  try {
    if (!prefill.profile.software) {
      const start = performance.now();
      for (let i = 0; i < MAX_WARM_UPS && performance.now() - start < WARM_UP_MS; i++) {
        await prefill.run(layer, { signal, onProgress: ({ fraction }) => progress.update(fraction, 'warm-up') });
      }
    }
    const reports: RunReport[] = [];
    const wall: number[] = [];
    for (let i = 0; i < runs; i++) {
      const start = performance.now();
      reports.push(
        await prefill.run(layer, {
          signal,
          timestamps: true,
          inspect: i + 1 === runs,
          onProgress: ({ fraction }) => progress.update((i + fraction) / runs, `run ${i + 1} of ${runs}`),
        }),
      );
      wall.push(performance.now() - start);
    }
    const report = reports[reports.length - 1] as RunReport;
    const timed = reports.flatMap((r) => (r.stages && r.gpuMs !== undefined ? [{ stages: r.stages, ms: r.gpuMs }] : []));
    const stages = Object.fromEntries(STAGES.map((stage) => [stage, median(timed.map((t) => t.stages[stage]))])) as StageTimes;
    return {
      report,
      heads: report.heads ?? [],
      output: await read(),
      ...(timed.length === runs ? { ms: median(timed.map((t) => t.ms)), stages } : { ms: median(wall) }),
    };
  } finally {
    progress.stop();
  }
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? (sorted[middle] as number) : ((sorted[middle - 1] ?? 0) + (sorted[middle] ?? 0)) / 2;
}

interface Comparison {
  readonly prefill: SparsePrefill;
  readonly input: CliInput;
  readonly patterns: readonly HeadPattern[];
  readonly dense: Measured;
  readonly sparse: Measured;
  readonly tensorBytes: number;
  /** Rows per head that were compared. */
  readonly rows: number;
  readonly runs: number;
  /** The sparse runs reused the index of one before them. */
  readonly staticIndex: boolean;
}

function report(c: Comparison): CommandResult {
  const { dense, sparse, input } = c;
  const { profile } = c.prefill;
  const heads = c.patterns.map((pattern, head) => ({
    head,
    pattern: patternText(pattern),
    index: sparse.heads[head]?.index.kind ?? 'dense',
    density: sparse.heads[head]?.density ?? Number.NaN,
    relError: relativeError(sparse.output[head] as Float32Array, dense.output[head] as Float32Array),
  }));
  const relError = relativeError(concatenated(sparse.output), concatenated(dense.output));
  const density = heads.reduce((sum, h) => sum + h.density, 0) / heads.length;
  const workspaceBytes = Math.max(dense.report.memory.peakBytes, sparse.report.memory.peakBytes);
  const memory = { peakBytes: c.tensorBytes + workspaceBytes, tensorBytes: c.tensorBytes, workspaceBytes };
  const speedup = dense.ms / sparse.ms;
  const timing = sparse.stages && dense.stages ? 'gpu' : 'wall';
  const { source, name, numHeads, numKvHeads, headDim, seqLen, dtype } = input;
  const { indexBytes } = sparse.report;

  const facts = formatTable([
    ['device', `${shorten(profile.name, 58)}`],
    ['tier', `${profile.tier}${profile.software ? ' (software adapter: times say nothing about GPUs)' : ''}`],
    ['input', name],
    ['', `${numHeads} heads, ${numKvHeads} kv heads, ${formatCount(seqLen)} tokens, head size ${headDim}, ${dtype}`],
    ['pattern', patternSummary(c.patterns)],
    ...(c.staticIndex ? [['index', 'estimated once before the timed runs, and used again']] : []),
    [
      'timing',
      `${timing === 'gpu' ? 'GPU time' : 'wall time (the adapter has no timestamps)'}, ${c.runs === 1 ? '1 run' : `median of ${c.runs} runs`}`,
    ],
  ]);
  const stageRow = (label: string, stage: keyof StageTimes): string[] => {
    const show = (m: Measured): string => (m.stages && m.stages[stage] > 0 ? formatMs(m.stages[stage]) : '-');
    return [label, show(dense), show(sparse)];
  };
  const times = formatTable(
    [
      ['', 'dense', 'sparse'],
      ...(timing === 'gpu'
        ? [
            stageRow('estimate', 'estimate'),
            stageRow('top-k', 'topk'),
            stageRow('convert', 'convert'),
            stageRow('kernel', 'kernel'),
          ]
        : []),
      ['total', formatMs(dense.ms), formatMs(sparse.ms)],
    ],
    [1, 2],
  );
  const sampled = c.rows < seqLen ? `  (${formatCount(c.rows)} rows per head compared)` : '';
  const summary = formatTable([
    ['speed-up', `${speedup.toFixed(2)}x`],
    ['relative error', `${formatError(relError)}${sampled}`],
    ['density', formatPercent(density)],
    ['index', formatBytes(indexBytes)],
    [
      'GPU memory',
      `${formatBytes(memory.peakBytes)}  (tensors ${formatBytes(c.tensorBytes)}, workspace ${formatBytes(workspaceBytes)})`,
    ],
  ]);
  const perHead =
    heads.length <= 16
      ? formatTable(
          [
            ['head', 'pattern', 'density', 'rel. error'],
            ...heads.map((h, i) => [
              String(h.head),
              `${h.pattern}${c.patterns[i]?.kind === 'flex_prefill' ? ` -> ${h.index}` : ''}`,
              formatPercent(h.density),
              formatError(h.relError),
            ]),
          ],
          [0, 2, 3],
        )
      : `Figures of the ${heads.length} heads: --json\n`;
  return {
    text: [facts, times, summary, perHead].join('\n'),
    json: {
      device: profile.name,
      tier: profile.tier,
      input: { source, name, numHeads, numKvHeads, headDim, seqLen, dtype },
      timing,
      runs: c.runs,
      staticIndex: c.staticIndex,
      dense: { ms: dense.ms, stages: dense.stages ?? null },
      sparse: { ms: sparse.ms, stages: sparse.stages ?? null, speedup, relError, density, indexBytes, rowsCompared: c.rows },
      memory,
      heads,
    },
  };
}

function patternSummary(patterns: readonly HeadPattern[]): string {
  const counts = new Map<string, number>();
  for (const p of patterns) counts.set(patternText(p), (counts.get(patternText(p)) ?? 0) + 1);
  if (counts.size > 3) return `${counts.size} different ones for ${patterns.length} heads`;
  return [...counts].map(([text, n]) => (counts.size === 1 ? text : `${n} x ${text}`)).join(', ');
}
