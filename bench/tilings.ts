import { readFileSync } from 'node:fs';
import { openNodeDevice } from '../src/device/node.js';
import { profileDevice, SparsePrefill, type Tier } from '../src/index.js';
import { type AttentionTiling, candidateTilings, tilingName, workgroupBytes } from '../src/kernels/attention.js';
import { deviceModel, deviceSlug } from './device_model.js';
import { measureOurs } from './ours.js';
import { write } from './results.js';

interface TilingOptions {
  readonly out: string;
  readonly tier: Tier;
  readonly headDim: number;
  readonly seqLen: number;
  readonly heads: number;
  readonly budgetMs: number;
  readonly more?: string;
}

/** Times dense attention with every tiling of a plain tier that fits, each checked against the oracle, fastest first. */
export async function runTilings(options: TilingOptions): Promise<void> {
  const device = await openNodeDevice();
  const { tier, headDim, seqLen, heads, budgetMs } = options;
  const profile = profileDevice(device, tier);
  const rows = [];
  const candidates = candidateTilings(profile, headDim);
  const more = options.more ? (JSON.parse(readFileSync(options.more, 'utf8')) as Partial<AttentionTiling>[]) : undefined;
  const tilings = more ? more.map((part) => ({ ...(candidates[0] as AttentionTiling), ...part })) : candidates;
  for (const tiling of tilings) {
    const prefill = new SparsePrefill(device, { tier, dispatchMs: 2000, tilings: { plain: tiling } });
    const benchCase = { pattern: { kind: 'dense' }, seqLen, heads, headDim } as const;
    const row = await measureOurs(prefill, profile, benchCase, { budgetMs, repetitions: [3, 20] }, 8);
    rows.push({ ...row, tiling, name: tilingName(tiling), workgroupBytes: workgroupBytes(headDim, tiling) });
    console.error(
      `${tilingName(tiling)}: ${row.ms.toFixed(2)} ms, ${row.tflops.toFixed(1)} TFLOPS, error ${row.relError?.toExponential(1)}`,
    );
    prefill.destroy();
  }
  rows.sort((a, b) => a.ms - b.ms);
  const model = deviceModel(profile);
  const path = `${options.out}/${deviceSlug(model)}-tilings-${tier}-d${headDim}.json`;
  write(path, `${JSON.stringify({ device: model, rows }, null, 1)}\n`);
  const lines = rows.map(
    (r) => `| ${r.name} | ${(r.workgroupBytes / 1024).toFixed(1)} | ${r.ms.toFixed(2)} | ${r.tflops.toFixed(1)} |`,
  );
  console.log(`| tiling | KiB | ms | TFLOPS |\n| --- | ---: | ---: | ---: |\n${lines.join('\n')}\n\nwrote ${path}`);
  device.destroy();
}
