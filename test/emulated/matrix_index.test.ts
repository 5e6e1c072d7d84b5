import type { ShaderSpec } from '../../src/device/pipelines.js';
import { type DispatchOptions, Recorder } from '../../src/device/recorder.js';
import { MATRIX_FEATURE, MATRIX_SHAPES, type MatrixShape, matrixShapes } from '../../src/device/subgroup_matrix.js';
import { antidiagonalBlock, antidiagonalProductsShader } from '../../src/index/antidiagonal_products.js';
import { BLOCK_SCORE_TILE, recordBlockSparseIndex, SPLIT_PRODUCTS } from '../../src/index/block_sparse.js';
import type { IndexLayer } from '../../src/index/layer.js';
import { type MatrixTileSize, type ScoreTile, scoreTile } from '../../src/index/score_tile.js';
import { ESTIMATE_TILE, recordVerticalSlashScores } from '../../src/index/vertical_slash.js';
import { ANTIDIAGONAL_TILE, recordXAttentionIndex, X_ATTENTION_STRIDES } from '../../src/index/x_attention.js';
import { EMULATION_BYTES, emulatedOps } from '../../src/kernels/matrix_emulation.js';
import { blockSubgroups, type ProductBlock } from '../../src/kernels/matrix_product.js';
import { xAttentionProblem } from '../../src/reference/methods.js';
import {
  type AttentionInput,
  type AttentionShape,
  forceVerticalSlash,
  kvHeadOf,
  queryOffsetOf,
  scaleOf,
  verticalSlashScores,
} from '../../src/reference/oracle.js';
import { randomLayer } from '../../src/reference/random.js';
import { readIndices } from '../../src/scheduler/inspect.js';
import { assert, randomOf, type SuiteCase, type SuiteContext } from '../suite/context.js';
import { checkBlockIndex } from '../suite/index_builders.js';
import { gpuOf, type Layout, makeTensor, PLAIN, readBuffer, roundInput, submit } from '../suite/tensors.js';
import { runSuite } from '../suites/run_suite.js';

/** A score tile on matrices of this shape, and its emulation. */
interface Tile {
  readonly native: ScoreTile;
  readonly emulated: ScoreTile;
  readonly shape: MatrixShape;
  /** Of XAttention's products, where the device has one. */
  readonly block: ProductBlock | undefined;
}

/** Workspace full of 0xff bytes: NaN as f32, far out of range as an index. On a device without matrices, emulates them. */
class TestRecorder extends Recorder {
  readonly #tile: Tile;
  readonly #headDim: number;

  constructor(device: GPUDevice, tile: Tile, headDim: number) {
    super(device, gpuOf(device).pool, gpuOf(device).pipelines);
    this.#tile = tile;
    this.#headDim = headDim;
  }

  override workspace(label: string, size: number): GPUBuffer {
    const buffer = super.workspace(label, size);
    this.device.queue.writeBuffer(buffer, 0, new Uint8Array(buffer.size).fill(0xff));
    return buffer;
  }

  override dispatch(options: DispatchOptions): void {
    if (!options.shader.code.includes('subgroup_matrix') || this.device.features.has(MATRIX_FEATURE)) {
      super.dispatch(options);
      return;
    }
    const [x, y = 1, z = 1] = options.workgroups;
    const product = /products .*S=(\d+)/.exec(options.shader.label);
    if (product) this.products++;
    const { block } = this.#tile;
    const threads = product && block ? blockSubgroups(block) * 32 : 2 * this.#tile.native.rows;
    const shader = product ? this.#emulateProduct(Number(product[1])) : this.#emulate(options.shader);
    const bank = super.workspace('emulated matrices', x * y * z * threads * EMULATION_BYTES);
    super.dispatch({ ...options, shader, bindings: [...options.bindings, bank] });
    this.release(bank);
  }

  /** Products of XAttention's estimate that were recorded. */
  products = 0;

  #emulateProduct(stride: number): ShaderSpec {
    assert(this.#tile.block !== undefined, 'a block of a product');
    const spec = antidiagonalProductsShader(this.#tile.block, this.#headDim, stride, true, (shape) => emulatedOps(shape, 7));
    return { ...spec, code: spec.code.replaceAll('params.unit', 'min(tensors.k_row_stride, 1u)') };
  }

  /** The shader with its score tile in emulation. */
  #emulate(shader: ShaderSpec): ShaderSpec {
    const { native, emulated, shape } = this.#tile;
    const { builtins, prologue } = emulatedOps(shape);
    let code = shader.code;
    const edit = (from: string, to: string): void => {
      assert(code.split(from).length === 2, `${shader.label} has "${from.slice(0, 40)}" once`);
      code = code.replace(from, () => to);
    };
    edit(native.directives, 'enable f16;\n');
    edit(native.code, emulated.code.replace('@binding(8)', `@binding(${shader.bindings.length})`));
    edit('fn main(', `fn main(${builtins}, `);
    edit('local_invocation_index) thread: u32) {\n', `local_invocation_index) thread: u32) {\n${prologue}\n`);
    // Kernels of the index have no number 1 among their parameters, but a stride that is never 0.
    const stride = code.includes('k_row_stride: u32') ? 'tensors.k_row_stride' : 'params.row_stride';
    code = code.replaceAll('params.unit', `min(${stride}, 1u)`);
    return { ...shader, label: `${shader.label} emulated`, code, bindings: [...shader.bindings, 'write'] };
  }
}

/** One layer with an estimator on matrices. */
interface Setting {
  readonly shape: AttentionShape;
  readonly matrix: MatrixShape;
  readonly layout?: Layout;
  /** Bytes of workgroup memory, where fewer than the device's. */
  readonly memory?: number;
}

/** The layer as the GPU has it, and a recorder for tiles of dot products of `dot` numbers. */
function open(
  ctx: SuiteContext,
  name: string,
  { shape, matrix, layout = PLAIN, memory }: Setting,
  dot: number,
  size: MatrixTileSize,
  workspaceLimit: number,
) {
  const { device } = ctx;
  const { heads, kvHeads, queries, keys, headDim } = shape;
  const random = randomLayer(shape, randomOf(ctx, name).integer(0, 2 ** 31));
  const own = matrixShapes(device)[0];
  const {
    maxComputeWorkgroupStorageSize: room,
    maxComputeInvocationsPerWorkgroup,
    maxStorageBufferBindingSize,
    maxBufferSize,
  } = ctx.profile.limits;
  const limits = {
    ...{ maxComputeInvocationsPerWorkgroup, maxStorageBufferBindingSize, maxBufferSize },
    maxComputeWorkgroupStorageSize: Math.min(memory ?? room, room),
  } as GPUSupportedLimits;
  const profile = { ...ctx.profile, limits, matrix: { shapes: [own ?? matrix], sync: 'workgroup' as const } };
  // Sharper than chance, so that blocks differ.
  const input: AttentionInput = roundInput({ ...random, q: random.q.map((x) => 2 * x) });
  const layer: IndexLayer = {
    profile,
    storage: 'f16',
    q: makeTensor(device, { heads, rows: queries, headDim }, 'f16', layout, input.q),
    k: makeTensor(device, { heads: kvHeads, rows: keys, headDim }, 'f16', layout, input.k),
    queryOffset: queryOffsetOf(shape),
    scale: scaleOf(shape),
    workspaceLimit,
  };
  // Products need less of it than tiles of scores.
  const roomy = { ...profile, limits: ctx.profile.limits };
  const native = scoreTile(roomy, dot, 'f16', size);
  assert(native.onMatrices, `a score tile on matrices for ${dot} dimensions`);
  const emulated = scoreTile(roomy, dot, 'f16', size, emulatedOps);
  const tile = { native, emulated, shape: own ?? matrix, block: antidiagonalBlock(profile) };
  return { input, layer, rec: new TestRecorder(device, tile, headDim) };
}

/** Workgroups of one tile, and of as many as they may do. */
async function checkVerticalSlash(ctx: SuiteContext, name: string, setting: Setting): Promise<void> {
  for (const workgroups of [1000, 1]) await checkEstimate(ctx, `${name}, ${workgroups} workgroups`, setting, workgroups);
}

async function checkEstimate(ctx: SuiteContext, name: string, setting: Setting, workgroups: number): Promise<void> {
  const { shape } = setting;
  // Probabilities of some tiles are kept, others are computed twice.
  const { input, layer, rec } = open(ctx, name, setting, shape.headDim, ESTIMATE_TILE, 2 ** 18);
  // Not in ascending order, so that slots and heads differ.
  const heads = Array.from({ length: shape.heads }, (_, i) => shape.heads - 1 - i);
  const scores = recordVerticalSlashScores(
    rec,
    layer,
    heads.map((head) => ({ head, kvHead: kvHeadOf(shape, head) })),
    undefined,
    workgroups,
  );
  submit(rec);
  const values = new Float32Array(await readBuffer(ctx.device, scores.buffer, heads.length * 2 * scores.stride * 4));
  for (const [slot, head] of heads.entries()) {
    const { vertical, slash } = forceVerticalSlash(verticalSlashScores(input, head));
    for (const [i, expected] of [vertical, slash].entries()) {
      expected.forEach((score: number, at: number) => {
        const actual = values[(2 * slot + i) * scores.stride + at] as number;
        // Probabilities pass from one step to the next as f16.
        const close = actual === score || Math.abs(actual - score) <= 3e-5 + 2 ** -11 * Math.abs(score);
        assert(close, `${name}: ${i === 0 ? 'column' : 'diagonal'} ${at} of head ${head} scores ${actual}, expected ${score}`);
      });
    }
  }
}

async function checkXAttention(ctx: SuiteContext, name: string, setting: Setting, stride: 8 | 16): Promise<void> {
  const { shape } = setting;
  const { queries: seqLen, keys: kvLen } = shape;
  // One tile of rows at a time.
  const { input, layer, rec } = open(ctx, name, setting, stride * shape.headDim, ANTIDIAGONAL_TILE, 2 ** 16);
  const heads = Array.from({ length: shape.heads }, (_, i) => {
    const head = shape.heads - 1 - i;
    return { head, kvHead: kvHeadOf(shape, head), stride, threshold: [0.5, 0.9][i % 2] as number };
  });
  const built = recordXAttentionIndex(rec, layer, heads);
  // Rows that do not start on 16 bytes go through tiles of scores.
  const aligned = setting.layout !== SPREAD;
  if (!ctx.device.features.has(MATRIX_FEATURE)) assert(rec.products > 0 === aligned, `${name}: ${rec.products} products`);
  submit(rec);
  const planned = heads.map(({ head, kvHead, threshold }, i) => {
    const { indexOffset: offset = 0, args = [] } = built.entries[i] ?? {};
    return {
      head,
      kvHead,
      pattern: { kind: 'x_attention' as const, stride, threshold },
      index: { buffer: built.buffer, offset, args },
    };
  });
  const indices = await readIndices(ctx.device, planned, { seqLen, kvLen, queryOffset: queryOffsetOf(shape) });
  for (const [i, { head, threshold }] of heads.entries()) {
    const index = indices[i];
    assert(index?.kind === 'block_sparse', 'a block-sparse index');
    const problem = xAttentionProblem(input, head, { stride, threshold }, index.blocks);
    assert(problem === undefined, `${name}: head ${head}: ${problem}`);
  }
}

async function checkBlockSparse(ctx: SuiteContext, name: string, setting: Setting): Promise<void> {
  const { shape } = setting;
  const { input, layer, rec } = open(ctx, name, setting, SPLIT_PRODUCTS * shape.headDim, BLOCK_SCORE_TILE, 2 ** 30);
  const heads = Array.from({ length: shape.heads }, (_, i) => {
    const head = shape.heads - 1 - i;
    return { head, kvHead: kvHeadOf(shape, head), topK: [3, 7, 40][i % 3] as number };
  });
  const built = recordBlockSparseIndex(rec, layer, heads);
  submit(rec);
  checkBlockIndex(input, shape, heads, built, new Uint32Array(await readBuffer(ctx.device, built.buffer, built.bytes)));
}

/** Rows that start on 16 bytes, and others. */
const ALIGNED: Layout = { order: 'nhd', offset: 24, padding: 8 };
const SPREAD: Layout = { order: 'nhd', offset: 12, padding: 4 };
const [N8, N16, SMALL] = MATRIX_SHAPES as [MatrixShape, MatrixShape, MatrixShape];

const cases: SuiteCase[] = [];

function add(name: string, run: (ctx: SuiteContext, name: string) => Promise<void>): void {
  cases.push({ name, needs: 'f16', run: (ctx) => run(ctx, name) });
}

/** The estimate of a pattern in several settings. */
function addEach(pattern: string, settings: readonly Setting[], check: typeof checkVerticalSlash): void {
  for (const setting of settings) {
    const { m, n, k } = setting.matrix;
    const { queries, keys, headDim } = setting.shape;
    add(`${pattern} estimate on matrices of ${m}x${n}x${k}: ${queries} rows, ${keys} keys, head size ${headDim}`, (ctx, name) =>
      check(ctx, name, setting),
    );
  }
}

/** Lengths that are multiples of nothing, below one tile and above; a chunk of a longer sequence; a head too large to keep its rows. */
const VERTICAL_SLASH: readonly Setting[] = [
  { matrix: N16, shape: { heads: 2, kvHeads: 1, queries: 1, keys: 1, headDim: 96 } },
  { matrix: N16, shape: { heads: 3, kvHeads: 1, queries: 301, keys: 301, headDim: 96 } },
  { matrix: SMALL, shape: { heads: 2, kvHeads: 2, queries: 61, keys: 203, headDim: 80, queryOffset: 139 }, layout: SPREAD },
  { matrix: N8, shape: { heads: 2, kvHeads: 1, queries: 100, keys: 1221, headDim: 128, queryOffset: 1121 } },
  { matrix: N16, shape: { heads: 1, kvHeads: 1, queries: 64, keys: 515, headDim: 256, queryOffset: 451 } },
];

addEach('vertical-slash', VERTICAL_SLASH, checkVerticalSlash);

/** Less than a group, several tiles of keys with some that no row sees, a chunk of a longer sequence. */
const X_ATTENTION: readonly AttentionShape[] = [
  { heads: 2, kvHeads: 1, queries: 5, keys: 5, headDim: 32 },
  { heads: 2, kvHeads: 1, queries: 1203, keys: 1203, headDim: 32 },
  { heads: 3, kvHeads: 3, queries: 171, keys: 700, headDim: 32, queryOffset: 333 },
];

for (const [i, stride] of X_ATTENTION_STRIDES.entries()) {
  const matrix = i === 0 ? N16 : N8;
  add(`XAttention estimate on matrices of ${matrix.m}x${matrix.n}x${matrix.k}, stride ${stride}`, async (ctx, name) => {
    for (const shape of X_ATTENTION) {
      const chunk = shape.queryOffset !== undefined;
      const layout = chunk ? ALIGNED : PLAIN;
      await checkXAttention(ctx, `${name} ${shape.queries}`, { matrix, shape, layout }, stride);
      if (chunk) await checkXAttention(ctx, `${name} ${shape.queries} spread`, { matrix, shape, layout: SPREAD }, stride);
      // In the smallest blocks.
      else await checkXAttention(ctx, `${name} ${shape.queries} small`, { matrix, shape, memory: 24_576 }, stride);
    }
  });
}

/** One block, more row blocks than a tile of 64, more key blocks than one of 128, a chunk of a longer sequence. */
const BLOCK_SPARSE: readonly Setting[] = [
  { matrix: N16, shape: { heads: 2, kvHeads: 1, queries: 50, keys: 50, headDim: 64 } },
  { matrix: N8, shape: { heads: 2, kvHeads: 1, queries: 4200, keys: 4200, headDim: 32 } },
  { matrix: SMALL, shape: { heads: 3, kvHeads: 3, queries: 300, keys: 8700, headDim: 80, queryOffset: 8320 }, layout: SPREAD },
];

addEach('block-sparse', BLOCK_SPARSE, checkBlockSparse);

await runSuite(cases);
