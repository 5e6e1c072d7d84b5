import { Command } from 'commander';
import { openNodeDevice } from '../src/device/node.js';
import { type AttentionLayer, type HeadPattern, profileDevice, SparsePrefill, type Tier } from '../src/index.js';
import { type PlantKind, plantLayer } from '../src/kernels/plant.js';
import { measureCeilings } from './ceilings.js';
import { sampledError } from './check.js';
import { type MeasureOptions, measureLayer } from './measure.js';
import { costCurve } from './plot.js';
import { type BenchFile, type BenchRow, toCsv, toMarkdown, write } from './results.js';

const PATTERNS = {
  dense: { kind: 'dense' },
  a_shape: { kind: 'a_shape', initSize: 1024, localSize: 4096 },
  vertical_slash: { kind: 'vertical_slash', verticalSize: 1000, slashSize: 6096 },
  block_sparse: { kind: 'block_sparse', topK: 100 },
} as const satisfies Record<string, HeadPattern>;
type PatternName = keyof typeof PATTERNS;

interface Options {
  readonly out: string;
  readonly tier: Tier | 'auto';
  readonly headDim: string;
  readonly heads: string;
  readonly lengths: string;
  readonly patterns: string;
  readonly maxDense: string;
  readonly budgetMs: string;
  readonly dispatchMs: string;
  readonly checkRows: string;
  readonly scale: string;
}

const integers = (text: string): number[] => text.split(',').map((t) => Number(t.trim()));

/** Measures every pattern at every length and writes JSON, CSV, SVG and Markdown. */
async function run(suite: string, options: Options): Promise<void> {
  const device = await openNodeDevice();
  const profile = profileDevice(device, options.tier);
  const prefill = new SparsePrefill(device, {
    tier: options.tier,
    dispatchMs: Number(options.dispatchMs),
    workspaceLimit: 2 ** 30,
  });
  const headDim = Number(options.headDim);
  const heads = Number(options.heads);
  const dtype = profile.tier === 'portable' ? 'f32' : 'f16';
  const measure: MeasureOptions = { budgetMs: Number(options.budgetMs), repetitions: [3, 20] };
  const names = options.patterns.split(',') as PatternName[];
  console.error(`${profile.name}, tier ${profile.tier}`);
  const ceilings = await measureCeilings(device, Number(options.scale));
  console.error(`ceilings: ${JSON.stringify(ceilings)}`);
  const rows: BenchRow[] = [];

  for (const seqLen of integers(options.lengths)) {
    for (const name of names) {
      if (name === 'dense' && seqLen > Number(options.maxDense)) continue;
      const pattern = PATTERNS[name];
      const kind: PlantKind = name === 'dense' ? 'vertical_slash' : name;
      const planted = await plantLayer(device, profile, {
        numHeads: heads,
        numKvHeads: heads,
        headDim,
        seqLen,
        dtype,
        seed: 1,
        kinds: new Array<PlantKind>(heads).fill(kind),
      });
      const o = device.createBuffer({ size: planted.q.size, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC });
      const layer: AttentionLayer = { ...planted, o, numHeads: heads, headDim, seqLen, dtype, patterns: pattern };
      const m = await measureLayer(prefill, layer, measure);
      const report = await prefill.run(layer, { inspect: true });
      const density = report.heads?.reduce((sum, h) => sum + h.density / heads, 0) ?? 1;
      const sampled = Number(options.checkRows);
      const head = report.heads?.[0];
      const relError = sampled > 0 && head ? await sampledError(device, layer, head, sampled) : undefined;
      const pairs = (density * heads * seqLen * (seqLen + 1)) / 2;
      const { kind: _kind, ...params } = pattern;
      const row: BenchRow = {
        impl: 'ours',
        pattern: name,
        tier: profile.tier,
        seqLen,
        heads,
        headDim,
        dtype,
        params,
        ms: m.ms,
        stages: m.stages,
        tflops: (4 * headDim * pairs) / m.ms / 1e9,
        density,
        ...(relError === undefined ? {} : { relError }),
        repetitions: m.repetitions,
        peakBytes: m.plan.memory.peakBytes,
      };
      rows.push(row);
      console.error(toMarkdown([row]).trimEnd().split('\n').at(-1));
      for (const buffer of [planted.q, planted.k, planted.v, o]) buffer.destroy();
      prefill.trim();
    }
  }
  const file: BenchFile = {
    device: profile.name,
    date: new Date().toISOString().slice(0, 10),
    software: { node: process.version, 'minference-webgpu': '0.1.0' },
    ceilings: { ...ceilings },
    rows,
  };
  const slug = (/h100|h200|a100|rtx[ \w]*|llvmpipe|swiftshader/i.exec(profile.name)?.[0] ?? 'gpu')
    .toLowerCase()
    .replaceAll(' ', '-');
  const path = `${options.out}/${slug}-${suite}-${profile.tier}`;
  write(`${path}.json`, `${JSON.stringify(file, null, 1)}\n`);
  write(`${path}.csv`, toCsv(rows));
  write(`${path}.md`, toMarkdown(rows));
  write(
    `${path}.svg`,
    await costCurve(
      'Attention of one layer, prefill',
      `${profile.name}, tier ${profile.tier}, ${heads} heads of ${headDim}`,
      rows,
    ),
  );
  console.log(toMarkdown(rows));
  console.log(`wrote ${path}.{json,csv,md,svg}`);
  prefill.destroy();
  device.destroy();
}

const program = new Command('bench').description(
  'Headless benchmarks: medians of GPU timestamps, checked against the float64 oracle.',
);
const suites = [
  { name: 'kernels', about: 'every pattern at a few lengths, 8 heads', lengths: '4096,16384,32768,131072', heads: '8' },
  {
    name: 'curve',
    about: 'time against length, 4K to 1M tokens, 1 head',
    lengths: '4096,8192,16384,32768,65536,131072,262144,524288,1048576',
    heads: '1',
  },
] as const;
for (const suite of suites) {
  program
    .command(suite.name)
    .description(suite.about)
    .option('--out <folder>', 'where results go', 'bench/results')
    .option('--tier <tier>', 'portable, f16 or auto', 'auto')
    .option('--head-dim <n>', 'head size', '128')
    .option('--heads <n>', 'heads, each with its own keys', suite.heads)
    .option('--lengths <list>', 'sequence lengths', suite.lengths)
    .option('--patterns <list>', 'patterns', Object.keys(PATTERNS).join())
    .option('--max-dense <n>', 'longest dense run', '1048576')
    .option('--budget-ms <ms>', 'GPU time to spend on one measurement', '1500')
    .option('--dispatch-ms <ms>', 'aimed-at longest dispatch', '2000')
    .option('--check-rows <n>', 'rows checked against the oracle; 0: none', '8')
    .option('--scale <x>', 'size of the ceiling measurements, 1 on a GPU', '1')
    .action((options: Options) => run(suite.name, options));
}
await program.parseAsync();
