// Times every tiling of the matrix tier's attention kernels on a real device, each checked against the float64
// oracle, and prints a table and JSON: `npm run bench -- tune --json tune.json`.
//
// First every variant is checked on small inputs and timed on the first dense length; the fastest `--keep` of each
// number of rows per workgroup go on to the other workloads. `--emulate --lengths 200 --sparse 300 ...` tries the
// program itself on a device without subgroup matrices.
import { readFileSync, writeFileSync } from 'node:fs';
import { Float16Array } from '@petamoriken/float16';
import type { Command } from 'commander';
import { openNodeDevice } from '../../src/device/node.js';
import { PipelineCache, type ShaderSpec } from '../../src/device/pipelines.js';
import { BufferPool } from '../../src/device/pool.js';
import { profileDevice, workgroupsToFill } from '../../src/device/profile.js';
import { type Dispatch, Recorder } from '../../src/device/recorder.js';
import { MATRIX_FEATURE, MATRIX_SHAPES, matrixShapes, SUBGROUP_SIZE } from '../../src/device/subgroup_matrix.js';
import { attentionGrid, attentionParams, headsFirst } from '../../src/kernels/attention.js';
import { matrixAttentionShader } from '../../src/kernels/matrix_attention.js';
import {
  chooseMatrixTiling,
  estimateRegisters,
  MATRIX_TILINGS,
  type MatrixKernel,
  type MatrixTiling,
  matrixBlockM,
  matrixWorkgroupBytes,
  type TilingShape,
  tilingProblem,
} from '../../src/kernels/matrix_config.js';
import { EMULATION_BYTES, emulatedOps } from '../../src/kernels/matrix_emulation.js';
import { attentionRows, relativeError } from '../../src/reference/oracle.js';
import { encodeSteps } from '../../src/scheduler/submit.js';
import { checkMatrix, indexBindings } from '../../test/suite/matrix.js';
import { ABLATIONS, ablate, ablatedParts } from './ablate.js';
import randomSource from './random.wgsl?raw';
import { makeWorkload, type PatternSizes, SIZES, type Workload } from './workloads.js';

const { STORAGE, COPY_SRC, COPY_DST, UNIFORM, QUERY_RESOLVE, MAP_READ } = {
  STORAGE: 0x80,
  COPY_SRC: 0x04,
  COPY_DST: 0x08,
  UNIFORM: 0x40,
  QUERY_RESOLVE: 0x200,
  MAP_READ: 0x01,
};

/** One variant on one workload. */
interface Row {
  readonly workload: string;
  readonly variant: string;
  readonly tiling: MatrixTiling;
  readonly registers: number;
  readonly workgroupBytes: number;
  /** Median and least milliseconds of the timed passes; absent when the device has no timestamps. */
  readonly ms?: number;
  readonly bestMs?: number;
  readonly tflops?: number;
  readonly error?: number;
  readonly failure?: string;
}

interface Options {
  readonly headDim: string;
  readonly heads: string;
  readonly lengths: string;
  readonly sparse: string;
  readonly tilings: string;
  readonly more?: string;
  readonly toggles?: string;
  readonly syncs: string;
  readonly shapes: string;
  readonly sizes: string;
  readonly keep: string;
  readonly passes: string;
  readonly rows: string;
  readonly warmMs: string;
  readonly json?: string;
  readonly best?: string;
  readonly emulate?: boolean;
  readonly assume?: boolean;
  readonly ablate?: true | string;
  readonly kernels: string;
  readonly check: boolean;
}

const integers = (text: string): number[] =>
  text
    .split(',')
    .filter((t) => t !== '')
    .map(Number);

function label(t: MatrixTiling): string {
  const { m, n, k } = t.shape;
  return [
    `${matrixBlockM(t)}x${t.keys}`,
    `${t.subgroups}sg`,
    `s${t.scoreKeys}`,
    t.queries === 'registers' ? 'qreg' : 'qmem',
    ...(t.pairs ? [t.slices ? 'slices' : 'pairs'] : []),
    ...(t.vFirst ? ['v-first'] : []),
    t.pipelined ? `${t.staging}+pipe` : t.staging,
    ...(t.unrolled ? ['unrolled'] : []),
    `${m}x${n}x${k}`,
    t.sync,
  ].join(' ');
}

/** The device side of a run: tensors, pipelines, timing. */
class Tuner {
  readonly device: GPUDevice;
  /** What is taken away from some variants; see {@link ABLATIONS}. */
  readonly ablations = new Map<MatrixTiling, string>();
  readonly #pipelines: PipelineCache;
  readonly #pool: BufferPool;
  readonly #headDim: number;
  readonly #emulate: boolean;
  readonly #tensors: { readonly q: GPUBuffer; readonly k: GPUBuffer; readonly v: GPUBuffer; readonly o: GPUBuffer };
  readonly #oracle = new Map<
    string,
    { readonly expected: Float64Array; readonly rows: readonly number[]; readonly head: number }
  >();

  constructor(device: GPUDevice, headDim: number, elements: number, emulate: boolean) {
    this.device = device;
    this.#pipelines = new PipelineCache(device);
    this.#pool = new BufferPool(device);
    this.#headDim = headDim;
    this.#emulate = emulate;
    const tensor = (seed: number): GPUBuffer => {
      const buffer = device.createBuffer({ size: elements * 2, usage: STORAGE | COPY_SRC | COPY_DST });
      if (seed > 0) this.#fill(buffer, seed);
      return buffer;
    };
    this.#tensors = { q: tensor(1), k: tensor(2), v: tensor(3), o: tensor(0) };
  }

  #fill(buffer: GPUBuffer, seed: number): void {
    const module = this.device.createShaderModule({ code: randomSource });
    const pipeline = this.device.createComputePipeline({ layout: 'auto', compute: { module, constants: { SEED: seed } } });
    const group = this.device.createBindGroup({
      layout: pipeline.getBindGroupLayout(0),
      entries: [{ binding: 0, resource: { buffer } }],
    });
    const workgroups = Math.ceil(buffer.size / 4 / 256);
    const x = Math.min(workgroups, 32768);
    const encoder = this.device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, group);
    pass.dispatchWorkgroups(x, Math.ceil(workgroups / x));
    pass.end();
    this.device.queue.submit([encoder.finish()]);
  }

  #shader(kernel: MatrixKernel, t: MatrixTiling): ShaderSpec {
    const spec = matrixAttentionShader(kernel, this.#headDim, 'f16-wide', t, this.#emulate ? emulatedOps(t.shape) : undefined);
    return ablate(spec, ABLATIONS, this.ablations.get(t));
  }

  /** Compiles the pipelines of several variants at once; resolves to the failures by variant. */
  async prepare(kernel: MatrixKernel, tilings: readonly MatrixTiling[]): Promise<Map<MatrixTiling, string>> {
    const failures = new Map<MatrixTiling, string>();
    await Promise.all(
      tilings.map((t) =>
        this.#pipelines.prepare([this.#shader(kernel, t)]).catch((error: unknown) => {
          failures.set(t, String(error));
        }),
      ),
    );
    return failures;
  }

  #upload(data: Uint32Array<ArrayBuffer>, usage: number): GPUBuffer {
    const buffer = this.device.createBuffer({ size: Math.max(16, data.byteLength), usage: usage | COPY_DST });
    this.device.queue.writeBuffer(buffer, 0, data);
    return buffer;
  }

  async #read(buffer: GPUBuffer, offset: number, size: number): Promise<ArrayBuffer> {
    const staging = this.device.createBuffer({ size, usage: MAP_READ | COPY_DST });
    const encoder = this.device.createCommandEncoder();
    encoder.copyBufferToBuffer(buffer, offset, staging, 0, size);
    this.device.queue.submit([encoder.finish()]);
    await staging.mapAsync(1);
    const copy = staging.getMappedRange().slice(0);
    staging.destroy();
    return copy;
  }

  async #halves(buffer: GPUBuffer, head: number, seqLen: number): Promise<Float32Array> {
    const bytes = seqLen * this.#headDim * 2;
    return Float32Array.from(new Float16Array(await this.#read(buffer, head * bytes, bytes)));
  }

  /** Relative error of sampled rows of the last head. */
  async #error(w: Workload, samples: number): Promise<number> {
    const d = this.#headDim;
    let known = this.#oracle.get(w.name);
    if (!known) {
      const head = w.heads - 1;
      const { q, k, v } = this.#tensors;
      const [qh, kh, vh] = [
        await this.#halves(q, head, w.seqLen),
        await this.#halves(k, head, w.seqLen),
        await this.#halves(v, head, w.seqLen),
      ];
      const rows = [
        ...new Set(Array.from({ length: samples }, (_, i) => Math.round((i * (w.seqLen - 1)) / Math.max(1, samples - 1)))),
      ].map((row) => firstSeeing(w, head, row));
      const shape = { heads: 1, kvHeads: 1, queries: w.seqLen, keys: w.seqLen, headDim: d };
      const { o } = attentionRows({ ...shape, q: qh, k: kh, v: vh }, () => w.visible(head), rows);
      known = { expected: o, rows, head };
      this.#oracle.set(w.name, known);
    }
    const o = await this.#halves(this.#tensors.o, known.head, w.seqLen);
    return relativeError(
      known.rows.flatMap((row) => [...o.subarray(row * d, (row + 1) * d)]),
      known.expected,
    );
  }

  /** Runs a variant: a warm-up submission, then `passes` timed passes in one submission, then a check. */
  async measure(w: Workload, t: MatrixTiling, passes: number, samples: number, warmMs: number): Promise<Partial<Row>> {
    const { device } = this;
    const d4 = this.#headDim / 4;
    const tiles = Math.ceil(w.seqLen / matrixBlockM(t));
    const fills = workgroupsToFill({ software: false }, matrixWorkgroupBytes(w.kernel, this.#headDim, t));
    const { q, k, v, o } = this.#tensors;
    const byHeads = headsFirst(tiles * w.heads, fills, 4 * w.heads * w.seqLen * this.#headDim);
    const packed = (buffer: GPUBuffer) => ({
      range: { buffer, offset: 0, size: buffer.size },
      ...{ base: 0, headStride: w.seqLen * d4, rowStride: d4 },
    });
    const params = attentionParams({
      queries: w.seqLen,
      keys: w.seqLen,
      queryOffset: 0,
      scale: 1 / Math.sqrt(this.#headDim),
      rowTileEnd: tiles,
      headsFirst: byHeads,
      writesLse: false,
      windows: [packed(q), packed(k), packed(v), packed(o)],
      lse: { base: 0, headStride: w.seqLen },
    });
    const entries = new Uint32Array(w.entries.length * 8);
    for (const [head, entry] of w.entries.entries()) entries.set([head, head, ...entry], 8 * head);
    // Of vertical-slash, a band that has added nothing.
    const lse = new Float32Array(w.kernel === 'vertical_slash' ? w.heads * w.seqLen : 4).fill(-1e16);
    const own = [
      this.#upload(params, UNIFORM),
      this.#upload(w.index, STORAGE),
      this.#upload(new Uint32Array(lse.buffer), STORAGE),
    ] as const;
    const bank = this.#emulate
      ? [device.createBuffer({ size: tiles * w.heads * t.subgroups * SUBGROUP_SIZE * EMULATION_BYTES, usage: STORAGE })]
      : [];
    const recorder = new Recorder(device, this.#pool, this.#pipelines);
    const sizes = { rows: w.seqLen, queryOffset: 0, tile: t.keys };
    const indexed = indexBindings(recorder, w.kernel, own[1], entries, sizes);
    const bindings = [own[0], q, k, v, o, own[2], ...indexed, ...bank];
    // What lays the index out runs once, the kernel again and again.
    const before = [...recorder.steps];
    recorder.dispatch({
      stage: 'kernel',
      shader: this.#shader(w.kernel, t),
      bindings,
      workgroups: attentionGrid(tiles, w.heads, byHeads),
    });
    const kernel = recorder.steps.at(-1) as Dispatch;
    kernel.constants?.seal();
    const timed = device.features.has('timestamp-query');
    const querySet = timed ? device.createQuerySet({ type: 'timestamp', count: 2 * passes }) : undefined;
    const submit = (count: number, queries?: GPUQuerySet): void => {
      const encoder = device.createCommandEncoder();
      for (let i = 0; i < count; i++) {
        const timestampWrites = queries && {
          querySet: queries,
          beginningOfPassWriteIndex: 2 * i,
          endOfPassWriteIndex: 2 * i + 1,
        };
        const pass = encoder.beginComputePass(timestampWrites ? { timestampWrites } : {});
        pass.setPipeline(kernel.pipeline);
        pass.setBindGroup(0, kernel.bindGroup);
        pass.dispatchWorkgroups(...kernel.workgroups);
        pass.end();
      }
      device.queue.submit([encoder.finish()]);
    };
    const encoder = device.createCommandEncoder();
    encoder.clearBuffer(o);
    encodeSteps(encoder, before);
    device.queue.submit([encoder.finish()]);
    const start = performance.now();
    submit(1);
    await device.queue.onSubmittedWorkDone();
    // A GPU that was idle takes a while to reach its clock.
    submit(Math.ceil(Math.min(1000, warmMs / (performance.now() - start))));
    let times: number[] = [];
    if (querySet) {
      submit(passes, querySet);
      const resolved = device.createBuffer({ size: 16 * passes, usage: QUERY_RESOLVE | COPY_SRC });
      const resolve = device.createCommandEncoder();
      resolve.resolveQuerySet(querySet, 0, 2 * passes, resolved, 0);
      device.queue.submit([resolve.finish()]);
      const ns = new BigUint64Array(await this.#read(resolved, 0, 16 * passes));
      times = Array.from({ length: passes }, (_, i) => Number((ns[2 * i + 1] ?? 0n) - (ns[2 * i] ?? 0n)) / 1e6).sort(
        (a, b) => a - b,
      );
      resolved.destroy();
      querySet.destroy();
    }
    const error = samples > 0 ? await this.#error(w, samples) : undefined;
    recorder.releaseAll();
    for (const buffer of [...own, ...bank]) buffer.destroy();
    const [bestMs, ms] = [times[0], times[times.length >> 1]];
    const tflops = ms === undefined ? undefined : (4 * this.#headDim * w.pairs) / ms / 1e9;
    return { ...(error === undefined ? {} : { error }), ...(ms === undefined ? {} : { ms, bestMs, tflops }) };
  }
}

/** The first row from `row` on that sees a key: of vertical-slash without its band, the first rows see none. */
function firstSeeing(w: Workload, head: number, row: number): number {
  const sees = (r: number): boolean => Array.from({ length: r + 1 }, (_, key) => key).some((key) => w.visible(head)(r, key));
  let r = row;
  while (r < w.seqLen - 1 && !sees(r)) r++;
  return r;
}

function table(rows: readonly Row[]): string {
  const cells = rows.map((r) => [
    r.workload,
    r.variant,
    String(Math.round(r.registers)),
    (r.workgroupBytes / 1024).toFixed(1),
    r.ms?.toFixed(3) ?? '-',
    r.tflops?.toFixed(1) ?? '-',
    r.failure ? r.failure.slice(0, 60).replace(/\s+/g, ' ') : (r.error?.toExponential(1) ?? '-'),
  ]);
  return [
    '| workload | variant | regs (est.) | KiB | ms | TFLOPS | error |',
    '| --- | --- | --- | --- | --- | --- | --- |',
    ...cells.map((c) => `| ${c.join(' | ')} |`),
  ].join('\n');
}

async function main(options: Options): Promise<void> {
  const device = await openNodeDevice({ optionalFeatures: [MATRIX_FEATURE], toggles: options.toggles?.split(',') ?? [] });
  const profile = profileDevice(device, 'f16');
  const emulate = options.emulate === true;
  const [headDim, heads, passes, samples] = [options.headDim, options.heads, options.passes, options.rows].map(Number) as [
    number,
    number,
    number,
    number,
  ];
  const listed = emulate || options.assume ? MATRIX_SHAPES : matrixShapes(device);
  const wantedShapes = options.shapes.split(',');
  const shapes = listed.filter(({ m, n, k }) => wantedShapes.includes(`${m}x${n}x${k}`));
  if (shapes.length === 0)
    throw new Error(`${profile.name} has none of the matrix shapes ${options.shapes} (it has ${JSON.stringify(listed)})`);
  const chosen = options.tilings === '' ? MATRIX_TILINGS.map((_, i) => i) : integers(options.tilings.replace('none', ''));
  const syncs = options.syncs.split(',') as MatrixTiling['sync'][];
  const limits = device.limits;
  const variants: MatrixTiling[] = [];
  for (const i of chosen) {
    const t = MATRIX_TILINGS[i];
    if (!t) throw new Error(`there is no tiling ${i}; there are ${MATRIX_TILINGS.length}`);
    for (const shape of shapes) for (const sync of syncs) variants.push({ ...t, shape, sync });
  }
  if (options.more) {
    const more = JSON.parse(readFileSync(options.more, 'utf8')) as Partial<MatrixTiling>[];
    for (const part of more)
      for (const shape of part.shape ? [part.shape] : shapes)
        variants.push({ ...(MATRIX_TILINGS[0] as TilingShape), pairs: false, unrolled: false, shape, sync: 'subgroup', ...part });
  }
  const lengths = integers(options.lengths);
  const sparseLengths = integers(options.sparse);
  const [init, local, columns, slashes, blocks] = integers(options.sizes);
  const sizes: PatternSizes = {
    init: init ?? SIZES.init,
    local: local ?? SIZES.local,
    columns: columns ?? SIZES.columns,
    slashes: slashes ?? SIZES.slashes,
    blocks: blocks ?? SIZES.blocks,
  };
  const longest = Math.max(...lengths, ...sparseLengths);
  const tuner = new Tuner(device, headDim, heads * longest * headDim, emulate);
  if (options.ablate) {
    const parts = ablatedParts(options.ablate, ABLATIONS);
    for (const t of variants.splice(0)) {
      for (const name of parts) {
        const copy = { ...t };
        tuner.ablations.set(copy, name);
        variants.push(copy);
      }
    }
  }
  console.error(`${profile.name}: ${variants.length} variants`);
  const rows: Row[] = [];
  const save = (): void => {
    if (options.json)
      writeFileSync(options.json, JSON.stringify({ device: profile.name, headDim, heads, emulate, rows }, null, 1));
  };
  const describe = ({ name, kernel }: Workload, tiling: MatrixTiling): Omit<Row, 'failure'> => ({
    workload: name,
    variant: [label(tiling), tuner.ablations.get(tiling) ?? ''].join(' ').trim(),
    tiling,
    registers: estimateRegisters(headDim, tiling).total,
    workgroupBytes: matrixWorkgroupBytes(kernel, headDim, tiling),
  });
  const failed = new Set<MatrixTiling>();

  const runAll = async (w: Workload, candidates: readonly MatrixTiling[]): Promise<Row[]> => {
    const fitting = candidates.filter(
      (t) =>
        !failed.has(t) &&
        !tilingProblem(w.kernel, headDim, t) &&
        matrixWorkgroupBytes(w.kernel, headDim, t) <= limits.maxComputeWorkgroupStorageSize &&
        t.subgroups * SUBGROUP_SIZE <= limits.maxComputeInvocationsPerWorkgroup,
    );
    const failures = await tuner.prepare(w.kernel, fitting);
    const done: Row[] = [];
    for (const t of fitting) {
      let failure = failures.get(t);
      let result: Partial<Row> = {};
      try {
        if (!failure && options.check && (w === first || w.kernel === 'vertical_slash')) {
          const shape = { heads: 2, kvHeads: 1, queries: 300, keys: 337, headDim };
          const run = { shape, tiling: t, lse: true, boost: { key: 150, factor: 6 } };
          const band = chooseMatrixTiling({ shapes: [t.shape], limits, sync: t.sync }, 'slash_band', headDim);
          const kernel =
            w.kernel === 'vertical_slash' && band
              ? ({ kernel: 'vertical_slash', band: { diagonals: 64, tiling: band } } as const)
              : ({ kernel: 'dense' } as const);
          await checkMatrix({ device, profile, name: profile.name, seed: 1 }, 'tune', { ...run, ...kernel });
        }
        if (!failure) result = await tuner.measure(w, t, passes, samples, Number(options.warmMs));
        if (!options.ablate && result.error !== undefined && !(result.error <= 2e-3)) failure = `relative error ${result.error}`;
      } catch (error) {
        failure = String(error);
      }
      if (failure) failed.add(t);
      const row: Row = { ...describe(w, t), ...result, ...(failure ? { failure } : {}) };
      console.error(
        `${w.name}: ${row.variant}: ${failure ?? `${row.ms?.toFixed(3)} ms, ${row.tflops?.toFixed(1)} TFLOPS, error ${row.error?.toExponential(1)}`}`,
      );
      done.push(row);
      rows.push(row);
      save();
    }
    return done;
  };

  const first = makeWorkload('dense', lengths[0] ?? longest, heads, headDim, sizes);
  const ranked = (await runAll(first, variants)).filter((r) => !r.failure).sort((a, b) => (a.ms ?? 0) - (b.ms ?? 0));
  // The sparse kernels need workgroups of at most 64 rows, so the best of each size go on.
  const keep = Number(options.keep);
  const kept = [true, false].flatMap((small) =>
    ranked
      .filter((r) => matrixBlockM(r.tiling) <= 64 === small)
      .slice(0, keep)
      .map((r) => r.tiling),
  );
  for (const n of lengths.slice(1)) await runAll(makeWorkload('dense', n, heads, headDim, sizes), kept);
  for (const n of sparseLengths) {
    for (const kernel of options.kernels.split(',') as MatrixKernel[]) {
      const workload = makeWorkload(kernel, n, heads, headDim, sizes);
      if (workload.pairs > 0) await runAll(workload, kept);
    }
  }
  const order = [...new Set(rows.map((r) => r.workload))];
  const sorted = [...rows].sort(
    (a, b) => order.indexOf(a.workload) - order.indexOf(b.workload) || (a.ms ?? Infinity) - (b.ms ?? Infinity),
  );
  console.log(table(sorted));
  if (options.best) {
    const best: Partial<Record<MatrixKernel, MatrixTiling>> = {};
    for (const row of sorted) {
      const kernel = row.workload.split(' ')[0] as MatrixKernel;
      if (!row.failure && !best[kernel]) best[kernel] = row.tiling;
    }
    writeFileSync(options.best, JSON.stringify(best, null, 1));
  }
  if (failed.size > 0) console.log(`${failed.size} variants failed`);
  save();
  device.destroy();
}

/** Adds the command `tune`: times the tilings of the matrix tier's attention. */
export function addTuneCommand(program: Command): void {
  program
    .command('tune')
    .description(
      'every tiling of the matrix tier: all on the first dense length, the best ones on all patterns; each result checked',
    )
    .option('--head-dim <n>', 'head size', '128')
    .option('--heads <n>', 'query heads', '8')
    .option('--lengths <list>', 'dense lengths', '16384,32768')
    .option('--sparse <list>', 'lengths of the sparse patterns', '131072')
    .option('--kernels <list>', 'what runs at those lengths', 'a_shape,slash_band,vertical_slash,block_sparse')
    .option('--tilings <list>', 'numbers of MATRIX_TILINGS, or none; all unless given', '')
    .option(
      '--more <file>',
      'more tilings to try, a JSON list of what differs from the first one, for each matrix shape unless it names one',
    )
    .option('--toggles <list>', "more of Dawn's toggles, such as disable_robustness")
    .option('--syncs <list>', 'ways of ordering', 'subgroup,workgroup')
    .option('--shapes <list>', 'matrix shapes', '16x8x16,16x16x16')
    .option('--sizes <list>', 'init,local,columns,slashes,blocks', '')
    .option('--keep <n>', 'variants of each size that go on to the other workloads', '6')
    .option('--passes <n>', 'timed passes', '12')
    .option('--warm-ms <ms>', 'GPU time of the warm-up before each measurement', '500')
    .option('--rows <n>', 'rows to check of each output; 0: none', '6')
    .option('--json <path>', 'write results there')
    .option('--best <path>', 'write the fastest tiling of each kernel there, for `bench --tilings`')
    .option('--emulate', 'emulate matrices')
    .option(
      '--ablate [parts]',
      'time every tiling with one part of its work left out at a time: all, or those of a comma-separated list',
    )
    .option('--assume', 'trust --shapes instead of the list of the adapter')
    .option('--no-check', 'skip the checks on small inputs')
    .action(main);
}
