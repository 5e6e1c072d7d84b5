import { openNodeDevice } from '../src/device/node.js';
import {
  type AttentionLayer,
  dilated1,
  type HeadPattern,
  profileDevice,
  RecallMeter,
  SparsePrefill,
  type SparsePrefillOptions,
  type Stage,
  strided,
  type Tier,
} from '../src/index.js';
import { type PlantKind, plantLayer } from '../src/kernels/plant.js';
import { deviceModel, deviceSlug } from './device_model.js';
import { measureLayer } from './measure.js';
import { write } from './results.js';

interface MethodOptions {
  readonly out: string;
  readonly tier: Tier | 'auto';
  readonly headDim: number;
  readonly heads: number;
  readonly lengths: readonly (readonly [seqLen: number, heads: number])[];
  readonly budgetMs: number;
}

const KINDS: readonly PlantKind[] = ['vertical_slash', 'block_sparse', 'a_shape', 'vertical_slash'];
const OWN: Readonly<Record<PlantKind, HeadPattern>> = {
  a_shape: { kind: 'a_shape', initSize: 1024, localSize: 4096 },
  vertical_slash: { kind: 'vertical_slash', verticalSize: 1000, slashSize: 6096 },
  block_sparse: { kind: 'block_sparse', topK: 100 },
};

/** Every prefill method, with the budgets of its paper. */
function methodsFor(seqLen: number, kinds: readonly PlantKind[]): Record<string, HeadPattern | HeadPattern[]> {
  return {
    dense: { kind: 'dense' },
    'MInference, a pattern per head': kinds.map((kind) => OWN[kind]),
    'A-shape 1024 + 4096': OWN.a_shape,
    'tri-shape 1024 + 4096, last 128': { kind: 'tri_shape', initSize: 1024, localSize: 4096, lastSize: 128 },
    'vertical-slash 1000 + 6096': OWN.vertical_slash,
    'block-sparse, top 100': OWN.block_sparse,
    dilated: dilated1(),
    strided: strided(seqLen, { stride: 64, localSize: 2048, initSize: 1024 }),
    'FlexPrefill, gamma 0.95': { kind: 'flex_prefill', gamma: 0.95 },
    'XAttention, stride 16, 0.9': { kind: 'x_attention', stride: 16, threshold: 0.9 },
  };
}

/** One method at one length. */
interface MethodRow {
  readonly impl: 'ours';
  readonly method: string;
  readonly tier: Tier;
  readonly seqLen: number;
  readonly heads: number;
  readonly headDim: number;
  readonly dtype: 'f16' | 'f32';
  readonly ms: number;
  readonly stages: Readonly<Record<Stage, number>>;
  /** Means over the heads. */
  readonly recall: number;
  readonly density: number;
  readonly error: number;
  readonly perHead: readonly { readonly planted: PlantKind | undefined; readonly recall: number; readonly density: number }[];
}

/**
 * Times every method on one layer whose heads have different planted structure, and measures exactly what share of the
 * dense attention each keeps. All methods see the same input in the same run.
 */
export async function runMethods(options: MethodOptions, tilings: Pick<SparsePrefillOptions, 'tilings'>): Promise<void> {
  const device = await openNodeDevice();
  const { headDim } = options;
  const prefill = new SparsePrefill(device, { tier: options.tier, dispatchMs: 2000, workspaceLimit: 2 ** 30, ...tilings });
  const profile = profileDevice(device, options.tier);
  const meter = new RecallMeter(prefill);
  const dtype = profile.tier === 'portable' ? 'f32' : 'f16';
  const rows: MethodRow[] = [];
  for (const [seqLen, heads] of options.lengths) {
    const kinds = Array.from({ length: heads }, (_, head) => KINDS[head % KINDS.length] as PlantKind);
    const shape = { numHeads: heads, numKvHeads: heads, headDim, seqLen, dtype } as const;
    const { q, k, v } = await plantLayer(device, profile, { ...shape, seed: 1, kinds });
    const o = device.createBuffer({ size: q.size, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC });
    const dense = await meter.reference({ ...shape, q, k, v });
    for (const [method, patterns] of Object.entries(methodsFor(seqLen, kinds))) {
      const layer: AttentionLayer = { ...shape, q, k, v, o, patterns };
      const { ms, stages } = await measureLayer(prefill, layer, { budgetMs: options.budgetMs, repetitions: [3, 20] });
      const quality = (await meter.measure(dense, patterns)).heads;
      const mean = (of: (head: (typeof quality)[number]) => number): number =>
        quality.reduce((sum, head) => sum + of(head) / heads, 0);
      const row: MethodRow = {
        impl: 'ours',
        method,
        tier: profile.tier,
        seqLen,
        heads,
        headDim,
        dtype,
        ms,
        stages,
        recall: mean((h) => h.recall),
        density: mean((h) => h.density),
        error: mean((h) => h.error),
        perHead: quality.map(({ recall, density }, head) => ({ planted: kinds[head], recall, density })),
      };
      rows.push(row);
      console.error(
        `${seqLen} ${method}: ${ms.toFixed(2)} ms, recall ${row.recall.toFixed(4)}, density ${row.density.toFixed(4)}`,
      );
    }
    dense.destroy();
    for (const buffer of [q, k, v, o]) buffer.destroy();
    prefill.trim();
  }
  const model = deviceModel(profile);
  const path = `${options.out}/${deviceSlug(model)}-methods`;
  const date = new Date().toISOString().slice(0, 10);
  write(
    `${path}.json`,
    `${JSON.stringify({ device: model, date, software: { node: process.version, adapter: profile.name }, rows }, null, 1)}\n`,
  );
  const table = [
    '| method | tier | N | ms | of it index | speed-up | recall | density |',
    '| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |',
    ...rows.map((r) => {
      const base = rows.find((d) => d.seqLen === r.seqLen && d.method === 'dense')?.ms ?? Number.NaN;
      const index = r.stages.estimate + r.stages.topk + r.stages.convert;
      return `| ${r.method} | ${r.tier} | ${r.seqLen.toLocaleString('en')} | ${r.ms.toFixed(2)} | ${index.toFixed(2)} | ${(base / r.ms).toFixed(1)}x | ${(100 * r.recall).toFixed(1)}% | ${(100 * r.density).toFixed(1)}% |`;
    }),
  ].join('\n');
  write(`${path}.md`, `${table}\n`);
  console.log(`${table}\n\nwrote ${path}.{json,md}`);
  prefill.destroy();
  device.destroy();
}
