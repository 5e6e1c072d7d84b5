import { readFileSync } from 'node:fs';
import { Float16Array } from '@petamoriken/float16';
import type { Command } from 'commander';
import { openNodeDevice } from '../src/device/node.js';
import { PipelineCache } from '../src/device/pipelines.js';
import { BufferPool } from '../src/device/pool.js';
import { profileDevice } from '../src/device/profile.js';
import { Recorder } from '../src/device/recorder.js';
import { matrixShapes, SUBGROUP_SIZE } from '../src/device/subgroup_matrix.js';
import { blockBytes, blockFits, blockRegisters, blockSubgroups } from '../src/kernels/matrix_product.js';
import {
  combineShader,
  GEMV_ROWS,
  type GemmTiling,
  type GemvTiling,
  gemmShader,
  gemvShader,
  gemvWorkgroups,
  type ModelKernels,
  type ProductKernel,
  plainGemmName,
  productShader,
  recordKernel,
  shareColumns,
} from '../src/model/gemm.js';
import {
  FEW_ROWS_TILINGS,
  GEMM_TILINGS,
  gemmTilingName,
  type MatrixGemmTiling,
  matrixGemmShader,
} from '../src/model/matrix_gemm.js';
import { BLOCK_LAYOUT, type WeightType } from '../src/model/types.js';
import { product } from '../src/reference/model.js';
import { relativeError } from '../src/reference/oracle.js';
import { dequantize, HALVES_AT } from '../src/reference/quant.js';
import { Random } from '../src/reference/random.js';
import { encodeSteps, StageTimer } from '../src/scheduler/submit.js';
import { measureCeilings } from './ceilings.js';
import { median } from './measure.js';
import { write } from './results.js';
import { ablate, ablatedParts, PRODUCT_ABLATIONS } from './tune/ablate.js';

/** Rows of A and of W that are random; the others repeat them, so that every result can be checked. */
const PERIOD = 64;
const USAGE = 0x80 | 0x04 | 0x08; // STORAGE | COPY_SRC | COPY_DST

/** `[n, k]` of the matrices of a layer of Llama 3.1 8B: q, k and v; o; gate and up; down. */
const LLAMA_8B = '6144x4096,4096x4096,28672x4096,4096x14336';

interface Options {
  readonly rows: string;
  readonly sizes: string;
  readonly types: string;
  readonly passes: string;
  readonly warmMs: string;
  readonly keep: string;
  readonly only: string;
  readonly gemv?: string;
  readonly ablate?: true | string;
  readonly tiled: boolean;
  readonly plain?: string;
  readonly splits: string;
  readonly matrix: boolean;
  readonly zeros: boolean;
  readonly json?: string;
}

interface Size {
  readonly m: number;
  readonly n: number;
  readonly k: number;
}

/** A kernel with its dispatch. */
interface Variant extends ProductKernel {
  readonly name: string;
  readonly tiling?: MatrixGemmTiling;
  /** Whether its results are wrong on purpose. */
  readonly ablated?: boolean;
}

/** One measured product. */
interface GemmRow extends Size {
  readonly kernel: string;
  readonly type: WeightType;
  readonly ms?: number;
  readonly bestMs?: number;
  readonly tflops?: number;
  /** Bytes of weights per second, in 10^9. */
  readonly weightGBs?: number;
  readonly error?: number;
  readonly failure?: string;
}

/** Times products on one device. */
class GemmBench {
  readonly device: GPUDevice;
  readonly kernels: ModelKernels;
  readonly #pipelines: PipelineCache;
  readonly #pool: BufferPool;
  readonly #random = new Random(1);
  readonly #zeros: boolean;

  /** @param zeros whether operands are zeros */
  constructor(device: GPUDevice, zeros: boolean) {
    this.device = device;
    this.#zeros = zeros;
    const profile = profileDevice(device);
    this.kernels = { profile, activation: profile.tier === 'portable' ? 'f32' : 'f16' };
    this.#pipelines = new PipelineCache(device);
    this.#pool = new BufferPool(device);
  }

  /** The kernel that models use without subgroup matrices. */
  plain(type: WeightType, { m, n, k }: Size): Variant {
    const kernel = productShader(
      this.kernels,
      { type, rows: n, rowStart: 0 },
      { rows: n, columns: k, bias: false },
      'activation',
      m,
    );
    const [, , splits = 1] = kernel.workgroups;
    return { name: m <= GEMV_ROWS ? 'gemv' : splits > 1 ? `tiled, ${splits} shares` : 'tiled', ...kernel };
  }

  /** What a kernel needs to do `splits` shares of the columns. */
  #shared(splits: number, workgroups: readonly [number, number], k: number, depth: number) {
    if (splits === 1) return { workgroups };
    const columns = shareColumns(k, depth, splits);
    const combine = combineShader(this.kernels, 'activation', false);
    return { workgroups: [...workgroups, Math.ceil(k / columns)] as const, shares: { columns, combine } };
  }

  /** The kernel without subgroup matrices in a tiling. */
  tiled(tiling: GemmTiling, type: WeightType, { m, n, k }: Size, splits = 1): Variant {
    return {
      name: plainGemmName(tiling) + (splits > 1 ? `, ${splits} shares` : ''),
      shader: gemmShader(this.kernels, type, splits > 1 ? 'f32' : 'activation', false, tiling),
      ...this.#shared(splits, [Math.ceil(m / tiling.blockM), Math.ceil(n / tiling.blockN)], k, tiling.depth),
    };
  }

  /** The kernel of decoding in a tiling. */
  gemv(tiling: GemvTiling, type: WeightType, { m, n }: Size): Variant {
    return {
      name: `gemv ${tiling.rows}x${8 * tiling.groups}`,
      shader: gemvShader(this.kernels, type, 'activation', false, m, tiling),
      workgroups: gemvWorkgroups(this.kernels, n, tiling),
    };
  }

  matrix(tiling: MatrixGemmTiling, type: WeightType, { m, n, k }: Size, ablation = 'all', splits = 1): Variant {
    const ablated = ablation !== 'all';
    const own = splits > 1 ? { ...tiling, split: true } : tiling;
    return {
      name: gemmTilingName(tiling) + (ablated ? `, ${ablation}` : '') + (splits > 1 ? `, ${splits} shares` : ''),
      shader: ablate(matrixGemmShader(own, type, 'activation', false), PRODUCT_ABLATIONS, ablation),
      ablated,
      ...this.#shared(splits, [Math.ceil(m / tiling.blockM), Math.ceil(n / tiling.blockN)], k, tiling.depth),
      tiling,
    };
  }

  /** Measures variants on one size; each one's result is checked. */
  async measure(type: WeightType, size: Size, variants: readonly Variant[], passes: number, warmMs: number): Promise<GemmRow[]> {
    const { m, n, k } = size;
    const { device } = this;
    const { activation } = this.kernels;
    const element = activation === 'f16' ? 2 : 4;
    const block = BLOCK_LAYOUT[type];
    const rowBytes = (k / block.elements) * block.bytes;
    const wBytes = this.#weights(type, k);
    const values = this.#zeros ? new Float32Array(PERIOD * k) : this.#random.normals(PERIOD * k);
    const aValues = activation === 'f16' ? new Float16Array(values) : values;
    const buffer = (bytes: number): GPUBuffer => device.createBuffer({ size: Math.ceil(bytes / 16) * 16, usage: USAGE });
    const w = buffer(n * rowBytes + 16);
    const a = buffer(m * k * element);
    const c = buffer(m * n * element);
    this.#fill(w, wBytes, n * rowBytes);
    this.#fill(a, new Uint8Array(aValues.buffer), m * k * element);
    const expected = product(Float64Array.from(aValues), dequantize(type, wBytes), PERIOD, k);
    const rows: GemmRow[] = [];
    for (const variant of variants) {
      const { name, shader, shares, ablated } = variant;
      const row = { kernel: name, type, ...size };
      try {
        await this.#pipelines.prepare([shader, ...(shares ? [shares.combine] : [])]);
        const rec = new Recorder(device, this.#pool, this.#pipelines);
        const part = { type, buffer: w, rows: n, rowStart: 0 };
        const product = { matrix: { rows: n, columns: k, parts: [part] }, a, rows: m, c, output: 'activation' } as const;
        recordKernel(rec, this.kernels, product, part, variant);
        const times = await this.#time(rec, passes, warmMs);
        const ms = median(times);
        rec.releaseAll();
        const error = await this.#error(c, size, element, expected);
        rows.push({
          ...row,
          ms,
          bestMs: Math.min(...times),
          tflops: (2 * m * n * k) / ms / 1e9,
          weightGBs: (n * rowBytes) / ms / 1e6,
          error,
          ...(error < 5e-3 || ablated ? {} : { failure: 'wrong result' }),
        });
      } catch (cause) {
        rows.push({ ...row, failure: cause instanceof Error ? cause.message : String(cause) });
      }
      console.log(line(rows.at(-1) as GemmRow));
    }
    for (const b of [w, a, c]) b.destroy();
    return rows;
  }

  /** PERIOD rows of random blocks, or of zeros. */
  #weights(type: WeightType, k: number): Uint8Array<ArrayBuffer> {
    const { elements, bytes } = BLOCK_LAYOUT[type];
    const blocks = (PERIOD * k) / elements;
    if (this.#zeros) return new Uint8Array(blocks * bytes);
    if (type === 'f32') return new Uint8Array(this.#random.normals(blocks, 0.05).buffer);
    if (type === 'f16') return new Uint8Array(new Float16Array(this.#random.normals(blocks, 0.05)).buffer);
    const out = Uint8Array.from({ length: blocks * bytes }, () => this.#random.integer(0, 255));
    const view = new DataView(out.buffer);
    // f16 scales of about 1e-3.
    const scales = HALVES_AT[type];
    for (let b = 0; b < blocks; b++)
      for (const at of scales) view.setUint16(b * bytes + at, this.#random.integer(0x1000, 0x1600), true);
    return out;
  }

  /** Repeats a pattern over a buffer. */
  #fill(buffer: GPUBuffer, pattern: Uint8Array<ArrayBuffer>, bytes: number): void {
    const { queue } = this.device;
    queue.writeBuffer(buffer, 0, pattern.subarray(0, Math.min(bytes, pattern.byteLength)));
    const source = this.device.createBuffer({ size: pattern.byteLength, usage: USAGE });
    queue.writeBuffer(source, 0, pattern);
    const encoder = this.device.createCommandEncoder();
    for (let at = pattern.byteLength; at < bytes; at += pattern.byteLength) {
      encoder.copyBufferToBuffer(source, 0, buffer, at, Math.min(pattern.byteLength, bytes - at));
    }
    queue.submit([encoder.finish()]);
  }

  /** Milliseconds of each of some passes back to back, after a warm-up. */
  async #time(rec: Recorder, passes: number, warmMs: number): Promise<number[]> {
    const { device } = this;
    const timer = new StageTimer(device);
    try {
      const submit = async (count: number): Promise<number[]> => {
        const encoder = device.createCommandEncoder();
        for (let i = 0; i < count; i++) encodeSteps(encoder, rec.steps, timer);
        device.queue.submit([encoder.finish()]);
        return (await timer.readPasses()).map((p) => p.ms);
      };
      const [first = 1] = await submit(1);
      const warm = Math.min(500, Math.ceil(warmMs / Math.max(first, 0.01)));
      if (warm > 0) await submit(warm);
      return await submit(passes);
    } finally {
      timer.destroy();
    }
  }

  /** Relative error of the first, the last and some rows between. */
  async #error(c: GPUBuffer, { m, n }: Size, element: number, expected: Float64Array): Promise<number> {
    const rows = [...new Set([0, 1, Math.floor(m / 3), Math.floor(m / 2), m - 1].filter((r) => r < m))];
    const rowBytes = n * element;
    const staging = this.device.createBuffer({ size: rows.length * rowBytes, usage: 0x01 | 0x08 }); // MAP_READ | COPY_DST
    const encoder = this.device.createCommandEncoder();
    rows.forEach((row, i) => {
      encoder.copyBufferToBuffer(c, row * rowBytes, staging, i * rowBytes, rowBytes);
    });
    this.device.queue.submit([encoder.finish()]);
    await staging.mapAsync(1);
    const bytes = staging.getMappedRange().slice(0);
    staging.destroy();
    const actual = element === 2 ? new Float16Array(bytes) : new Float32Array(bytes);
    const wanted = rows.flatMap((row) =>
      Array.from({ length: n }, (_, j) => expected[(row % PERIOD) * PERIOD + (j % PERIOD)] ?? 0),
    );
    return relativeError(actual, wanted);
  }
}

function line(r: GemmRow): string {
  const size = `${r.m} x ${r.n} x ${r.k}`.padEnd(22);
  if (r.ms === undefined) return `${size} ${r.type.padEnd(5)} ${r.kernel.padEnd(44)} failed: ${r.failure}`;
  const numbers = `${r.ms.toFixed(3).padStart(9)} ms ${r.tflops?.toFixed(1).padStart(7)} TFLOPS ${r.weightGBs?.toFixed(0).padStart(6)} GB/s`;
  return `${size} ${r.type.padEnd(5)} ${r.kernel.padEnd(44)} ${numbers}  error ${r.error?.toExponential(1)}${r.failure ? ` ${r.failure}` : ''}`;
}

function parseSizes(text: string, m: number): Size[] {
  return text.split(',').map((entry) => {
    const [n = 0, k = 0] = entry.split('x').map(Number);
    return { m, n, k };
  });
}

/** Tilings of the kernel of decoding from rows and columns of a thread. */
function parseGemvTilings(text: string): GemvTiling[] {
  return text.split(',').map((entry) => {
    const [rows = 0, columns = 0] = entry.split('x').map(Number);
    return { rows, groups: columns / 8 };
  });
}

async function run(options: Options): Promise<void> {
  const device = await openNodeDevice();
  const bench = new GemmBench(device, options.zeros);
  const { profile } = bench.kernels;
  const [passes, warmMs, keep] = [Number(options.passes), Number(options.warmMs), Number(options.keep)];
  const types = options.types.split(',') as WeightType[];
  const shapes = matrixShapes(device);
  const tilings = (options.matrix ? shapes : [])
    .flatMap((shape) => [...GEMM_TILINGS, ...FEW_ROWS_TILINGS].map((t): MatrixGemmTiling => ({ ...t, shape })))
    .filter((t) => blockFits(t, profile.limits) && options.only.split(',').some((part) => gemmTilingName(t).includes(part)));
  console.log(`${profile.name}: ${tilings.length} tilings on subgroup matrices of ${shapes.length} shapes`);
  for (const t of tilings) {
    console.log(
      `  ${gemmTilingName(t)}: ${blockSubgroups(t) * SUBGROUP_SIZE} invocations, about ${Math.round(blockRegisters(t))} registers, ${blockBytes(t)} bytes`,
    );
  }
  const splits = options.splits.split(',').map(Number);
  const plain = options.plain ? (JSON.parse(readFileSync(options.plain, 'utf8')) as GemmTiling[]) : [];
  const parts = options.ablate ? ablatedParts(options.ablate, PRODUCT_ABLATIONS) : [];
  const all: GemmRow[] = [];
  for (const m of options.rows.split(',').map(Number)) {
    const sizes = parseSizes(options.sizes, m);
    const first = sizes[0] as Size;
    let best = m > GEMV_ROWS ? tilings : [];
    if (options.ablate) {
      const variants = best.flatMap((t) => parts.map((part) => bench.matrix(t, types[0] ?? 'f16', first, part)));
      all.push(...(await bench.measure(types[0] ?? 'f16', first, variants, passes, warmMs)));
      continue;
    }
    if (best.length > keep) {
      const rows = await bench.measure(
        types[0] ?? 'f16',
        first,
        best.map((t) => bench.matrix(t, types[0] ?? 'f16', first)),
        passes,
        warmMs,
      );
      all.push(...rows);
      const ms = (t: MatrixGemmTiling): number => {
        const row = rows.find((r) => r.kernel === gemmTilingName(t));
        return row?.failure ? Number.POSITIVE_INFINITY : (row?.ms ?? Number.POSITIVE_INFINITY);
      };
      best = [...best].sort((a, b) => ms(a) - ms(b)).slice(0, keep);
    }
    for (const type of types) {
      for (const size of sizes) {
        const variants = best.flatMap((t) => splits.map((n) => bench.matrix(t, type, size, 'all', n)));
        if (m <= GEMV_ROWS && options.gemv)
          variants.push(...parseGemvTilings(options.gemv).map((t) => bench.gemv(t, type, size)));
        variants.push(...plain.flatMap((t) => splits.map((n) => bench.tiled(t, type, size, n))));
        if (options.tiled || variants.length === 0) variants.push(bench.plain(type, size));
        all.push(...(await bench.measure(type, size, variants, passes, warmMs)));
      }
    }
  }
  // Last, since it warms the device up.
  const ceilings = await measureCeilings(device, profile.software ? 1e-3 : 1, !profile.software);
  console.log(`ceilings, TFLOPS: ${JSON.stringify(ceilings)}`);
  if (options.json) {
    write(
      options.json,
      `${JSON.stringify({ device: profile.name, tier: profile.tier, zeros: options.zeros, ceilings, rows: all }, null, 1)}\n`,
    );
  }
}

/** Adds the command `gemm`: times the matrix products of models. */
export function addGemmCommand(program: Command): void {
  program
    .command('gemm')
    .description('matrix products of a model: every tiling on the first size, the best ones on all; each result checked')
    .option('--rows <list>', 'rows of A; up to 4 measure the kernel of decoding', '2048,1')
    .option('--sizes <list>', 'rows and columns of W', LLAMA_8B)
    .option('--types <list>', `types of W: ${Object.keys(BLOCK_LAYOUT).join()}`, 'f16,q8_0,q4_k')
    .option('--keep <n>', 'tilings that go on to all sizes and types', '4')
    .option('--only <list>', 'tilings whose name contains one of these', '')
    .option(
      '--gemv <list>',
      'instead of what models use, tilings of the kernel of decoding: rows and columns of a thread, as 2x32,4x64',
    )
    .option(
      '--ablate [parts]',
      'instead: the first type and size, with one part of the work left out at a time: all, or those of a comma-separated list',
    )
    .option('--passes <n>', 'timed passes, the median counts', '20')
    .option('--warm-ms <ms>', 'GPU time before each measurement', '300')
    .option('--no-tiled', 'leave out the kernel without subgroup matrices')
    .option('--no-matrix', 'leave out the kernels on subgroup matrices')
    .option('--plain <file>', 'JSON list of tilings of the kernel without them')
    .option('--splits <list>', 'shares of the columns that workgroups take', '1')
    .option('--zeros', 'operands of zeros, which draw less power: what a kernel could do at a higher clock', false)
    .option('--json <file>', 'writes all measurements')
    .action(run);
}
