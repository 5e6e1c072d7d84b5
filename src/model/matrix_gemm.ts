import gemmBindings from '../../shaders/model/gemm_bindings.wgsl?raw';
import { lazyShader, type ShaderSpec } from '../device/pipelines.js';
import { type MatrixShape, SUBGROUP_SIZE } from '../device/subgroup_matrix.js';
import { invalidArgument } from '../errors.js';
import { entryPoint, type MatrixOps, nativeOps } from '../kernels/matrix_ops.js';
import {
  type BlockLimits,
  blockFits,
  blockName,
  blockProblem,
  chooseBlock,
  type ProductBlock,
  ProductWriter,
  type WordLoader,
} from '../kernels/matrix_product.js';
import { text } from '../kernels/matrix_tiles.js';
import { prelude } from '../kernels/shader_text.js';
import { outputLibrary, weightLibrary } from './shader_parts.js';
import type { WeightType } from './types.js';

/** What becomes of a product: stored as an activation or as f32, or added to the f32 residual stream. */
export type ProductOutput = 'activation' | 'f32' | 'add';

/** Of a product on subgroup matrices: also `swiglu`, the activation silu(A Wg^T) * (A Wu^T) of the rows of gate and of up in W. */
export type MatrixProductOutput = ProductOutput | 'swiglu';

/** How a matrix-tier product is tiled; see {@link matrixGemmShader}. */
export interface MatrixGemmTiling extends ProductBlock {
  /**
   * Rows of A that workgroups which run at a time share, about: with as many rows of W, a square of all of them, so that few bytes of
   * either come from memory. Default: 2304, right for 132 multiprocessors.
   */
  readonly groupRows?: number;
  /** Whether workgroups along z take shares of the columns of A and W; results are then f32 sums, see shaders/model/gemm_combine.wgsl. */
  readonly split?: boolean;
}

/** A tiling apart from the matrix shape, which the device decides. */
export type GemmTilingShape = Omit<MatrixGemmTiling, 'shape' | 'split'>;

const tiling = (
  [blockM, blockN]: readonly [number, number],
  [subgroupM, subgroupN]: readonly [number, number],
  depth: 32 | 64,
): GemmTilingShape => ({ blockM, blockN, subgroupM, subgroupN, depth });

/**
 * The tilings to measure, the fastest on an H100 first (bench/NOTES.md). A multiprocessor of an H100 reads 128 bytes of
 * workgroup memory a clock, about 24 of second-level cache, and multiplies at most 2760 FLOPs. A subgroup's tile of M x N
 * reads 2 (M + N) bytes for 2 M N FLOPs of each column of k, and so does a workgroup's from the cache: 192 x 160 is bounded
 * by 470 TFLOPS, 192 x 128 by 414, 128 x 128 by 347. Rows of 64 columns are whole cache lines; rows of 32 are not.
 *
 * | block | subgroup | subgroups | registers | KiB at a depth of 32, 64 |
 * | --- | --- | --- | --- | --- |
 * | 192 x 160 | 48 x 80 | 8 | 240 | 23, 45 |
 * | 160 x 192 | 80 x 48 | 8 | 232 | 23, 45 |
 * | 192 x 128 | 48 x 64 | 8 | 204 | 21, 41 |
 * | 128 x 192 | 64 x 48 | 8 | 200 | 21, 41 |
 * | 256 x 128 | 64 x 64 | 8 | 224 | 25, 49: too much for 48 |
 * | 128 x 128 | 64 x 32 | 8 | 152 | 17, 33 |
 */
export const GEMM_TILINGS: readonly GemmTilingShape[] = [
  tiling([192, 160], [48, 80], 64),
  tiling([160, 192], [80, 48], 64),
  tiling([192, 128], [48, 64], 64),
  tiling([128, 192], [64, 48], 64),
  tiling([256, 128], [64, 64], 32),
  tiling([128, 128], [64, 32], 64),
  tiling([128, 128], [64, 64], 32),
  tiling([128, 128], [64, 32], 32),
  // For devices with 16 KiB of workgroup memory.
  tiling([64, 64], [32, 32], 32),
];

/**
 * Tilings for products of few rows, the smallest blocks first. Of the first two several fit a multiprocessor of an H100, since weights
 * from memory are what such products wait for.
 */
export const FEW_ROWS_TILINGS: readonly GemmTilingShape[] = [
  tiling([32, 128], [32, 32], 64),
  tiling([64, 64], [32, 32], 64),
  tiling([128, 128], [64, 32], 64),
];

/** Most rows for which blocks for few are looked at; of more, {@link blockCost} decides. */
const MANY_ROWS = 512;

/** Whether {@link fewRowsTiling} has no say. */
export function hasManyRows(rows: number): boolean {
  return rows > MANY_ROWS;
}

/** The tiling for so many rows: the smallest block that holds them; else `many`, or the largest one for few where that is full better. */
export function fewRowsTiling(many: MatrixGemmTiling, limits: BlockLimits, rows: number): MatrixGemmTiling {
  const few = FEW_ROWS_TILINGS.map((t) => ({ ...t, shape: many.shape })).filter((t) => blockFits(t, limits));
  const padded = (t: MatrixGemmTiling): number => Math.ceil(rows / t.blockM) * t.blockM;
  const largest = few.at(-1) ?? many;
  return few.find((t) => rows <= t.blockM) ?? (padded(largest) < padded(many) ? largest : many);
}

/** Blocks for many rows, from whose sizes {@link blockCost} tells which one wastes least of the last workgroups. */
const BLOCKS: readonly GemmTilingShape[] = [
  tiling([192, 160], [48, 80], 64),
  tiling([192, 128], [48, 64], 64),
  tiling([128, 192], [64, 48], 64),
  tiling([128, 128], [64, 32], 64),
];

/** The tilings that may take the place of the one that {@link chooseGemmTiling} prefers, itself first; of any other one only itself. */
export function blocksForManyRows(many: MatrixGemmTiling): readonly MatrixGemmTiling[] {
  const preferred = Object.entries(BLOCKS[0] as GemmTilingShape);
  const isPreferred = preferred.every(([name, value]) => many[name as keyof GemmTilingShape] === value);
  return isPreferred ? BLOCKS.map((t) => ({ ...many, ...t })) : [many];
}

/** What a row of A or of W costs that is staged, and what is done before and behind the steps, in multiply-adds of a block (H100). */
const [STAGED_ROW, ENDS] = [110, 2.35e7];

/** The time that a workgroup takes for so many columns, in a unit of its own: fits what `bench gemm` measured (bench/NOTES.md). */
export function blockCost({ blockM, blockN }: GemmTilingShape, columns: number): number {
  return columns * (blockM * blockN + STAGED_ROW * (blockM + blockN)) + ENDS;
}

/** What summing the results of shares costs beside the products, in that unit: a dispatch. */
export const SHARES_COST = ENDS;

/** The first of {@link GEMM_TILINGS} that a device can run, if any. */
export function chooseGemmTiling(shapes: readonly MatrixShape[], limits: BlockLimits): MatrixGemmTiling | undefined {
  return chooseBlock(GEMM_TILINGS, shapes, limits);
}

/** The tiling for matrices of so many columns, a multiple of 32: its depth must divide them. */
export function gemmTilingFor(t: MatrixGemmTiling, columns: number): MatrixGemmTiling {
  return columns % t.depth === 0 ? t : { ...t, depth: 32 };
}

/** A tiling in a few words, for labels and tables. */
export function gemmTilingName(t: MatrixGemmTiling): string {
  return `${blockName(t)}${t.split ? ' split' : ''}`;
}

/**
 * C[m, n] (+)= A[m, k] W[n, k]^T + bias[n] on subgroup matrices: f16 operands, f32 sums, W dequantised while it is staged; or
 * C[m, n / 2] = silu(A Wg^T) * (A Wu^T), without biases: four rows of gate stand beside the four of up there, so that both sums of an
 * element meet where results leave the matrices.
 *
 * {@link ProductWriter} says how.
 *
 * Rows past the end are whatever lies there, or zeros where no buffer is; their results are not stored. So WGSL's checks of loads save
 * a minimum a word; without them (`checked` false) rows past the end repeat the last one. n, and the columns and stride of C, must be
 * multiples of 4, k one of `depth`; A is f16. Bindings: 0 params (GemmParams), 1 weights, 2 A, 3 bias, 4 C.
 * Workgroups: (m / blockM, n / blockN), rounded up; with `split` also k / k_share.
 *
 * @throws {@link MinferenceError} `invalid-argument` for an impossible tiling.
 */
export function matrixGemmShader(
  t: MatrixGemmTiling,
  type: WeightType,
  output: MatrixProductOutput,
  bias: boolean,
  checked = true,
  ops: MatrixOps = nativeOps(t.shape, 'workgroup'),
): ShaderSpec {
  const problem = blockProblem(t);
  if (problem) throw invalidArgument('tiling', t, `a possible tiling: ${problem}`);
  const writer = new ProductWriter(t, ops);
  const head = prelude({
    f16: true,
    constants: { ...writer.constants(), GROUP: Math.ceil((t.groupRows ?? 2304) / t.blockM) },
  });
  const enables = head.slice(0, head.indexOf('const '));
  const spec: Omit<ShaderSpec, 'code'> = {
    label: `gemm matrix ${type} ${output} ${gemmTilingName(t)} ${ops.name}${bias ? ' bias' : ''}${checked ? '' : ' clamped'}`,
    bindings: ['uniform', 'read', 'read', 'read', 'write', ...ops.bindings],
  };
  return lazyShader(spec, () => {
    const stored = storedOutput(t, output);
    const main = mainFunction(writer, t, output, bias && !t.split, ops, checked);
    return [
      enables + ops.directives,
      head.slice(enables.length),
      gemmBindings,
      weightLibrary(type),
      type === 'f16' ? WORD_OF_HALVES : WORD_OF_EIGHT,
      outputLibrary(stored === 'activation' || stored === 'swiglu' ? 'f16' : 'f32'),
      output === 'swiglu' ? INTERLEAVED : '',
      `@group(0) @binding(2) var<storage, read> a: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> c: array<vec4<Output>>;
${writer.workgroupMemory()}`,
      ops.declarations(),
      main,
    ].join('\n');
  });
}

const WORD_OF_HALVES = `
// 8 weights as f16.
fn weight_word(row: u32, group: u32) -> vec4<u32> {
  return weights[row * (params.k / 8u) + group];
}`;

const WORD_OF_EIGHT = `
// 8 weights as f16.
fn weight_word(row: u32, group: u32) -> vec4<u32> {
  return halves_of(load_weights(row, group));
}`;

const INTERLEAVED = `
// The row of W behind row i of the workgroups: four of gate, four of up, and so on.
fn interleaved(i: u32) -> u32 {
  return i / 8u * 4u + i % 4u + i / 4u % 2u * params.up_start;
}`;

/** What leaves the kernel: sums of a share are finished by another one, with the bias. */
function storedOutput({ split }: MatrixGemmTiling, output: MatrixProductOutput): MatrixProductOutput {
  return split ? 'f32' : output;
}

function mainFunction(
  writer: ProductWriter,
  t: MatrixGemmTiling,
  output: MatrixProductOutput,
  bias: boolean,
  ops: MatrixOps,
  checked: boolean,
): string {
  const stored = storedOutput(t, output);
  const load: WordLoader = (of, { line, offset }, k0, group) => {
    const [start, count] = of === 'a' ? ['row0', 'params.m'] : ['column0', 'params.n'];
    const any = `${start} + ${line} + ${offset}u`;
    const row = checked ? any : `min(${any}, ${count} - 1u)`;
    if (of === 'a') return `a[params.a_base / 2u + (${row}) * (params.a_stride / 2u) + ${k0} / 8u + ${group}]`;
    // Blocks and turns are whole eights of rows.
    const inTurns = `interleaved(${start} + ${line}) + ${offset / 2}u`;
    const own = output !== 'swiglu' ? row : checked ? inTurns : `interleaved(${row})`;
    return `weight_word(${own}, ${k0} / 8u + ${group})`;
  };
  /** Results of 16 rows and a slice of columns to memory, from `scratch` on. */
  const store = (firstRow: string, firstColumn: string): string =>
    text(
      `for (var i = lane; i < 16u * SLICE4; i += ${SUBGROUP_SIZE}u) {
let row = ${firstRow} + i / SLICE4;
let column = ${firstColumn} + 4u * (i % SLICE4);
if (row < params.m && column < params.n) {
let at = ((${t.split ? 'workgroup.z * params.m + ' : ''}row) * params.c_stride + params.c_base + column) / 4u;
var x = bitcast<vec4<f32>>(tile[scratch + (i / SLICE4) * SLICE_STRIDE + i % SLICE4]);`,
      bias ? 'x += bias[(params.c_base + column) / 4u];' : '',
      stored === 'add' ? 'x += c[at];' : '',
      `c[at] = pack_output(x);
}
}`,
    );
  /** The same for gate and up: four of each make four activations. */
  const storeSwiglu = (firstRow: string, firstColumn: string): string =>
    `for (var i = lane; i < 8u * SLICE4; i += ${SUBGROUP_SIZE}u) {
let row = ${firstRow} + i / (SLICE4 / 2u);
let column = ${firstColumn} + 8u * (i % (SLICE4 / 2u));
if (row < params.m && column < params.n) {
let at = scratch + i / (SLICE4 / 2u) * SLICE_STRIDE + i % (SLICE4 / 2u) * 2u;
let gate = bitcast<vec4<f32>>(tile[at]);
let up = bitcast<vec4<f32>>(tile[at + 1u]);
c[(row * params.c_stride + params.c_base + column / 2u) / 4u] = pack_output(gate / (1.0 + exp(-gate)) * up);
}
}`;
  const [begin, end] = t.split ? ['k_begin', 'k_end'] : ['0u', 'params.k'];
  return text(
    entryPoint(ops),
    `// Blocks in groups of rows of about GROUP, all columns of one before the next: what runs at a time shares rows of A and of W.
let blocks_m = (params.m + BLOCK_M - 1u) / BLOCK_M;
let blocks_n = (params.n + BLOCK_N - 1u) / BLOCK_N;
let groups = (blocks_m + GROUP - 1u) / GROUP;
let group_rows = (blocks_m + groups - 1u) / groups;
let block = workgroup.y * blocks_m + workgroup.x;
let first = block / (group_rows * blocks_n) * group_rows;
let here = min(group_rows, blocks_m - first);
let place = block % (group_rows * blocks_n);
let row0 = (first + place % here) * BLOCK_M;
let column0 = place / here * BLOCK_N;`,
    writer.opening(),
    t.split ? 'let k_begin = workgroup.z * params.k_share;\nlet k_end = min(k_begin + params.k_share, params.k);' : '',
    writer.products(load, begin, end),
    writer.sums((row, column) =>
      (stored === 'swiglu' ? storeSwiglu : store)(`row0 + subgroup_row + ${row}u`, `column0 + subgroup_column + ${column}u`),
    ),
    '}',
  );
}
