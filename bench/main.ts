import { readFileSync } from 'node:fs';
import { Command, InvalidArgumentError } from 'commander';
import { openNodeDevice } from '../src/device/node.js';
import { pollGently } from '../src/device/poll.js';
import {
  availableTiers,
  type HeadPattern,
  profileDevice,
  SparsePrefill,
  type SparsePrefillOptions,
  TIERS,
  type Tier,
  type TilingOverrides,
} from '../src/index.js';
import { measureCeilings } from './ceilings.js';
import { addDecodeCommand } from './decode.js';
import { deviceModel, deviceSlug } from './device_model.js';
import { addGemmCommand } from './gemm.js';
import { runMethods } from './methods.js';
import { addModelCommand } from './model.js';
import type { ModelFile } from './model_report.js';
import { type BenchCase, measureOurs } from './ours.js';
import { givenIndex, PEERS, type Peer, runPeer, takes } from './peers.js';
import { writeModelReport, writeReport } from './report.js';
import { type BenchFile, merge, readEarlier, toMarkdown, write } from './results.js';
import { addSplitsCommand } from './splits.js';
import { runTilings } from './tilings.js';
import { addTuneCommand } from './tune/matrix_tune.js';

const PATTERNS = {
  dense: { kind: 'dense' },
  a_shape: { kind: 'a_shape', initSize: 1024, localSize: 4096 },
  vertical_slash: { kind: 'vertical_slash', verticalSize: 1000, slashSize: 6096 },
  block_sparse: { kind: 'block_sparse', topK: 100 },
  tri_shape: { kind: 'tri_shape', initSize: 1024, localSize: 4096, lastSize: 128 },
  x_attention: { kind: 'x_attention', stride: 16, threshold: 0.9 },
  flex_prefill: { kind: 'flex_prefill', gamma: 0.9, tau: 0.1, minBudget: 1024 },
} as const satisfies Record<string, HeadPattern>;
type PatternName = keyof typeof PATTERNS | 'static_vertical_slash';
type Part = 'ours' | Peer;

const PATTERN_NAMES = [...(Object.keys(PATTERNS) as PatternName[]), 'static_vertical_slash'] as const;
const PARTS: readonly Part[] = ['ours', ...PEERS];

interface Options {
  readonly out: string;
  readonly merge: boolean;
  readonly parts: readonly Part[];
  readonly tier: readonly (Tier | 'auto' | 'all')[];
  readonly patterns: readonly PatternName[];
  readonly lengths: readonly (readonly [seqLen: number, heads: number])[];
  readonly headDim: number;
  readonly maxDense: number;
  readonly budgetMs: number;
  readonly dispatchMs: number;
  readonly checkRows: number;
  readonly scale: number;
  readonly peers: string;
  readonly peersFrom: number;
  readonly partSeconds: number;
  readonly tilings?: string;
  readonly toggles?: string;
}

/** Parses a comma-separated list of names. */
const listOf =
  <T extends string>(allowed: readonly T[]) =>
  (text: string): T[] =>
    text.split(',').map((name) => {
      const known = allowed.find((a) => a === name.trim());
      if (known === undefined) throw new InvalidArgumentError(`${name} is not one of ${allowed.join(', ')}.`);
      return known;
    });

/** Parses lengths such as `4096,1048576x2`: a length, and how many heads if not 8. */
function lengthsOf(text: string): [number, number][] {
  return text.split(',').map((entry) => {
    const [seqLen = Number.NaN, heads = 8] = entry.split('x').map(Number);
    if (!(seqLen >= 1 && heads >= 1)) throw new InvalidArgumentError(`${entry} is not a length, or a length x heads.`);
    return [seqLen, heads];
  });
}

/** Tilings of the matrix tier from a file that `bench/tune` wrote. */
export function tilingsOf({ tilings }: { readonly tilings?: string }): Pick<SparsePrefillOptions, 'tilings'> {
  return tilings ? { tilings: { matrix: JSON.parse(readFileSync(tilings, 'utf8')) as TilingOverrides['matrix'] & object } } : {};
}

/** The cases that the options ask for. */
function casesOf({ patterns, lengths, headDim, maxDense }: Options): BenchCase[] {
  return lengths.flatMap(([seqLen, heads]) =>
    patterns
      .filter((name) => name !== 'dense' || seqLen <= maxDense)
      .map((name): BenchCase => {
        const pattern: HeadPattern = name === 'static_vertical_slash' ? givenIndex(seqLen) : PATTERNS[name];
        return { pattern, seqLen, heads, headDim };
      }),
  );
}

/** Measures our kernels in each tier. A case that fails is listed as absent. */
async function runOurs(device: GPUDevice, options: Options, add: (part: Partial<BenchFile>) => Promise<void>): Promise<void> {
  await add({ ceilings: { ...(await measureCeilings(device, options.scale)) } });
  const asked = options.tier.flatMap((t) => (t === 'all' ? availableTiers(device) : [t]));
  const measure = { budgetMs: options.budgetMs, repetitions: [3, 20] } as const;
  for (const tier of asked) {
    const profile = profileDevice(device, tier);
    const prefill = new SparsePrefill(device, {
      tier,
      dispatchMs: options.dispatchMs,
      workspaceLimit: 2 ** 30,
      ...tilingsOf(options),
    });
    for (const benchCase of casesOf(options)) {
      try {
        await add({ rows: [await measureOurs(prefill, profile, benchCase, measure, options.checkRows)] });
      } catch (error) {
        const { pattern, seqLen } = benchCase;
        await add({ absent: [{ impl: 'ours', reason: `${profile.tier} ${pattern.kind} at ${seqLen}: ${String(error)}` }] });
      }
    }
    prefill.destroy();
  }
}

/** Measures the parts that the options ask for, and writes JSON, CSV, Markdown and SVG after each result. */
async function run(suite: string, options: Options): Promise<void> {
  const toggles = options.toggles?.split(',') ?? [];
  const device = await openNodeDevice({ toggles });
  const profile = profileDevice(device);
  const model = deviceModel(profile);
  const date = new Date().toISOString().slice(0, 10);
  const path = `${options.out}/${[deviceSlug(model), suite, ...toggles.map((t) => t.replaceAll('_', '-'))].join('-')}`;
  const earlier = options.merge ? readEarlier(`${path}.json`, model, date) : undefined;
  const software = {
    ...{ node: process.version, adapter: profile.name, 'minference-webgpu': '0.1.0' },
    ...(options.toggles ? { toggles: options.toggles } : {}),
  };
  let fresh: BenchFile = { device: model, date, software, ceilings: {}, rows: [], absent: [] };
  const add = async ({ rows = [], absent = [], ...part }: Partial<BenchFile>): Promise<void> => {
    fresh = {
      ...fresh,
      software: { ...fresh.software, ...part.software },
      ceilings: { ...fresh.ceilings, ...part.ceilings },
      rows: [...fresh.rows, ...rows],
      absent: [...fresh.absent, ...absent],
    };
    for (const row of rows) console.error(toMarkdown([row], fresh.ceilings).trimEnd().split('\n').at(-1));
    for (const { impl, reason } of absent) console.error(`absent: ${impl}, ${reason}`);
    write(`${path}.json`, `${JSON.stringify(merge(earlier, fresh), null, 1)}\n`);
  };

  console.error(model);
  if (options.parts.includes('ours')) await runOurs(device, options, add);
  device.destroy();
  for (const peer of PEERS.filter((p) => options.parts.includes(p))) {
    const cases = casesOf(options).filter((c) => c.seqLen >= options.peersFrom && takes(peer, c));
    await add(await runPeer(peer, cases, { ...options, folder: options.peers, seconds: options.partSeconds }));
  }

  console.log(await writeReport(path, merge(earlier, fresh)));
}

const program = new Command('bench').description(
  'Headless benchmarks: medians of GPU timestamps, checked against the float64 oracle.',
);
const SUITES = [
  {
    name: 'suite',
    about: 'every tier and the peers of scripts/fetch_peers.sh, 4K to 1M tokens, 8 heads (2 at 1M)',
    lengths: '4096,16384,32768,131072,1048576x2',
    patterns: PATTERN_NAMES,
    tier: 'all',
    parts: PARTS,
    maxDense: 131_072,
  },
  {
    name: 'kernels',
    about: 'every pattern at a few lengths, 8 heads',
    lengths: '4096,16384,32768,131072',
    patterns: PATTERN_NAMES.slice(0, -1),
    tier: 'auto',
    parts: ['ours'],
    maxDense: 131_072,
  },
  {
    name: 'curve',
    about: 'time against length, 4K to 1M tokens, 1 head',
    lengths: '4096x1,8192x1,16384x1,32768x1,65536x1,131072x1,262144x1,524288x1,1048576x1',
    patterns: PATTERN_NAMES.slice(0, -1),
    tier: 'auto',
    parts: ['ours'],
    maxDense: 1_048_576,
  },
] as const;
for (const suite of SUITES) {
  const tiers = ['auto', 'all', ...TIERS] as const;
  program
    .command(suite.name)
    .description(suite.about)
    .option('--out <folder>', 'where results go', 'bench/results')
    .option('--merge', 'keep what this does not measure again of a file of today', false)
    .option('--parts <list>', PARTS.join(), listOf(PARTS), [...suite.parts])
    .option('--tier <list>', tiers.join(), listOf(tiers), [suite.tier])
    .option('--patterns <list>', 'patterns', listOf(PATTERN_NAMES), [...suite.patterns])
    .option('--lengths <list>', 'sequence lengths, each with xHEADS if not 8', lengthsOf, lengthsOf(suite.lengths))
    .option('--head-dim <n>', 'head size', Number, 128)
    .option('--max-dense <n>', 'longest dense run', Number, suite.maxDense)
    .option('--budget-ms <ms>', 'GPU time to spend on one measurement', Number, 600)
    .option('--dispatch-ms <ms>', 'aimed-at longest dispatch', Number, 2000)
    .option('--check-rows <n>', 'rows checked against the oracle; 0: none', Number, 8)
    .option('--scale <x>', 'size of the ceiling measurements, 1 on a GPU', Number, 1)
    .option('--tilings <file>', 'tilings of the matrix tier that `tune --best` wrote')
    .option('--toggles <list>', "more of Dawn's toggles, such as disable_robustness, also in the name of the results")
    .option('--peers <folder>', "the peers' files", '.gpu/peers')
    .option('--peers-from <n>', 'shortest length for peers', Number, 16_384)
    .option('--part-seconds <s>', 'seconds after which a peer begins no new case', Number, 300)
    .action((options: Options) => run(suite.name, options));
}
program
  .command('report')
  .description('tables and plots of a result file of the suites above or of `model`, anew')
  .argument('<file>', 'JSON')
  .action(async (path: string) => {
    const name = path.replace(/\.json$/, '');
    const file = JSON.parse(readFileSync(path, 'utf8')) as BenchFile | ModelFile;
    console.log(await ('model' in file ? writeModelReport(name, file) : writeReport(name, file)));
  });
program
  .command('methods')
  .description('time, recall and density of every prefill method on one layer of planted heads')
  .option('--out <folder>', 'where results go', 'bench/results')
  .option('--tier <tier>', 'portable, f16, matrix or auto', 'auto')
  .option('--head-dim <n>', 'head size', Number, 128)
  .option('--lengths <list>', 'sequence lengths, each with xHEADS if not 8', lengthsOf, lengthsOf('32768,131072'))
  .option('--budget-ms <ms>', 'GPU time to spend on one measurement', Number, 300)
  .option('--tilings <file>', 'tilings of the matrix tier that `tune --best` wrote')
  .action((options) => runMethods(options, tilingsOf(options)));
program
  .command('tilings')
  .description('dense attention with every tiling of the portable or f16 tier')
  .option('--out <folder>', 'where results go', 'bench/results')
  .option('--tier <tier>', 'portable or f16', 'f16')
  .option('--head-dim <n>', 'head size', Number, 128)
  .option('--seq-len <n>', 'length', Number, 16_384)
  .option('--heads <n>', 'heads', Number, 8)
  .option('--budget-ms <ms>', 'GPU time to spend on one measurement', Number, 300)
  .option('--more <file>', 'a JSON list of tilings to time instead; what is left out is as in the best one')
  .action(runTilings);
addTuneCommand(program);
addGemmCommand(program);
addModelCommand(program, tilingsOf);
addDecodeCommand(program);
addSplitsCommand(program);
pollGently();
await program.parseAsync();
