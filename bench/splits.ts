import { type Command, InvalidArgumentError } from 'commander';
import { openNodeDevice } from '../src/device/node.js';
import { type AttentionLayer, type DeviceProfile, profileDevice, SparsePrefill, type Tier } from '../src/index.js';
import { plantLayer } from '../src/kernels/plant.js';
import { sampledError } from './check.js';
import { deviceModel, deviceSlug } from './device_model.js';
import { kernelTimes, measureLayer } from './measure.js';
import { write } from './results.js';

interface SplitOptions {
  readonly out: string;
  readonly tier: Tier | 'auto';
  readonly headDim: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly shapes: readonly (readonly [queries: number, keys: number])[];
  readonly workgroups: readonly number[];
  readonly budgetMs: number;
}

/** Parses shapes such as `16x131072,4096`: queries x keys, or as many of both. */
function shapesOf(text: string): [number, number][] {
  return text.split(',').map((entry) => {
    const [queries = Number.NaN, keys = queries] = entry.split('x').map(Number);
    if (!(queries >= 1 && keys >= queries)) throw new InvalidArgumentError(`${entry} is not a length, or queries x keys.`);
    return [queries, keys];
  });
}

/** One measurement. */
interface SplitRow {
  readonly tier: Tier;
  readonly queries: number;
  readonly keys: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly workgroups: number;
  readonly ms: number;
  readonly range: readonly [number, number];
  readonly tflops: number;
  readonly relError: number | undefined;
  readonly kernels: Readonly<Record<string, number>>;
}

type LayerShape = Pick<SplitOptions, 'headDim' | 'heads' | 'kvHeads'>;

/** The last `queries` of `keys` positions. */
async function chunkLayer(device: GPUDevice, profile: DeviceProfile, o: LayerShape, queries: number, keys: number) {
  const { headDim, heads: numHeads, kvHeads: numKvHeads } = o;
  const dtype = profile.tier === 'portable' ? 'f32' : 'f16';
  const shape = { numHeads, numKvHeads, headDim, dtype, seed: 1, kinds: new Array<'a_shape'>(numHeads).fill('a_shape') } as const;
  const rows = await plantLayer(device, profile, { ...shape, seqLen: queries });
  const cache = await plantLayer(device, profile, { ...shape, seqLen: keys });
  for (const unused of [rows.k, rows.v, cache.q]) unused.destroy();
  const output = device.createBuffer({ size: rows.q.size, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC });
  const layer: AttentionLayer = {
    ...{ q: rows.q, k: cache.k, v: cache.v, o: output },
    ...{ numHeads, numKvHeads, headDim, dtype, seqLen: queries, kvLen: keys, queryOffset: keys - queries },
    patterns: { kind: 'dense' },
  };
  return { layer, destroy: () => [rows.q, cache.k, cache.v, output].forEach((buffer) => buffer.destroy()) };
}

/** Times dense attention of a chunk behind a cache, by how many workgroups its rows and keys are dealt out among. */
export async function measureSplits(
  device: GPUDevice,
  profile: DeviceProfile,
  options: Omit<SplitOptions, 'out' | 'tier'>,
): Promise<SplitRow[]> {
  const rows: SplitRow[] = [];
  for (const [queries, keys] of options.shapes) {
    const { layer, destroy } = await chunkLayer(device, profile, options, queries, keys);
    for (const workgroups of options.workgroups) {
      const prefill = new SparsePrefill(device, { tier: profile.tier, dispatchMs: 2000, tilings: { workgroups } });
      const { ms, range } = await measureLayer(prefill, layer, { budgetMs: options.budgetMs, repetitions: [3, 20] });
      const kernels = device.features.has('timestamp-query') ? await kernelTimes(prefill, layer) : {};
      const report = await prefill.run(layer, { inspect: true });
      const [head] = report.heads ?? [];
      const relError = head && (await sampledError(device, layer, head, 4));
      const pairs = queries * (keys - queries) + (queries * (queries + 1)) / 2;
      const tflops = (4 * options.headDim * options.heads * pairs) / ms / 1e9;
      const { tier } = profile;
      rows.push({
        tier,
        queries,
        keys,
        heads: options.heads,
        kvHeads: options.kvHeads,
        workgroups,
        ms,
        range,
        tflops,
        relError,
        kernels,
      });
      console.error(
        `${queries} x ${keys}, ${workgroups} workgroups: ${ms.toFixed(3)} ms, ${tflops.toFixed(1)} TFLOPS, error ${relError?.toExponential(1)}`,
      );
      prefill.destroy();
    }
    destroy();
  }
  return rows;
}

async function runSplits(options: SplitOptions): Promise<void> {
  const device = await openNodeDevice();
  const profile = profileDevice(device, options.tier);
  const rows = await measureSplits(device, profile, options);
  const model = deviceModel(profile);
  const path = `${options.out}/${deviceSlug(model)}-splits-${profile.tier}-d${options.headDim}-h${options.heads}.json`;
  write(path, `${JSON.stringify({ device: model, rows }, null, 1)}\n`);
  const lines = rows.map((r) => `| ${r.queries} | ${r.keys} | ${r.workgroups} | ${r.ms.toFixed(3)} | ${r.tflops.toFixed(1)} |`);
  console.log(
    `| queries | keys | workgroups | ms | TFLOPS |\n| ---: | ---: | ---: | ---: | ---: |\n${lines.join('\n')}\n\nwrote ${path}`,
  );
  device.destroy();
}

/** `bench splits`. */
export function addSplitsCommand(program: Command): void {
  const numbers = (text: string): number[] => text.split(',').map(Number);
  program
    .command('splits')
    .description('dense attention of few rows, by how many workgroups share their keys')
    .option('--out <folder>', 'where results go', 'bench/results')
    .option('--tier <tier>', 'portable, f16, matrix or auto', 'auto')
    .option('--head-dim <n>', 'head size', Number, 128)
    .option('--heads <n>', 'query heads', Number, 32)
    .option('--kv-heads <n>', 'key/value heads', Number, 8)
    .option('--shapes <list>', 'queries x keys', shapesOf, shapesOf('16x131072,256x131072,1024,2048,4096,8192'))
    .option('--workgroups <list>', 'workgroups to fill; 1: no splits', numbers, [1, 132, 264, 528])
    .option('--budget-ms <ms>', 'GPU time to spend on one measurement', Number, 200)
    .action(runSplits);
}
