import gemmBindings from '../../shaders/model/gemm_bindings.wgsl?raw';
import { lazyShader, type ShaderSpec } from '../device/pipelines.js';
import { type MatrixShape, SUBGROUP_SIZE } from '../device/subgroup_matrix.js';
import { invalidArgument } from '../errors.js';
import { type Index, type MatrixOps, nativeOps, plus, times, wgsl } from '../kernels/matrix_ops.js';
import { range, text } from '../kernels/matrix_tiles.js';
import { prelude } from '../kernels/shader_text.js';
import { outputLibrary, weightLibrary } from './shader_parts.js';
import type { WeightType } from './types.js';

/** What becomes of a product: stored as an activation or as f32, or added to the f32 residual stream. */
export type ProductOutput = 'activation' | 'f32' | 'add';

/** Of a product on subgroup matrices: also `swiglu`, the activation silu(A Wg^T) * (A Wu^T) of the rows of gate and of up in W. */
export type MatrixProductOutput = ProductOutput | 'swiglu';

/** How a matrix-tier product is tiled; see {@link matrixGemmShader}. */
export interface MatrixGemmTiling {
  readonly shape: MatrixShape;
  /** Rows of A and of W (columns of C) of a workgroup. */
  readonly blockM: number;
  readonly blockN: number;
  /** The part of that which a subgroup computes. */
  readonly subgroupM: number;
  readonly subgroupN: number;
  /** Columns of A and W staged at a time. */
  readonly depth: 32 | 64;
  /**
   * Rows of A that workgroups which run at a time share, about: with as many rows of W, a square of all of them, so that few bytes of
   * either come from memory. Default: 2304, right for 132 multiprocessors.
   */
  readonly groupRows?: number;
  /** Whether workgroups along z take shares of the columns of A and W; results are then f32 sums, see shaders/model/gemm_combine.wgsl. */
  readonly split?: boolean;
}

/** Subgroups of a workgroup. */
export function gemmSubgroups(t: MatrixGemmTiling): number {
  return (t.blockM / t.subgroupM) * (t.blockN / t.subgroupN);
}

/**
 * 16-byte words from one row of a staged tile to the next. Strips of 16 rows lie side by side, so that one word of padding a row puts
 * neighbouring rows into different banks, whatever the number of strips.
 */
function tileStride(t: MatrixGemmTiling, rows: number): number {
  return ((rows / 16) * t.depth) / 8 + 1;
}

/** 16-byte words of the staged tiles. */
function tileWords(t: MatrixGemmTiling): number {
  return 16 * (tileStride(t, t.blockM) + tileStride(t, t.blockN));
}

/** Bytes of workgroup memory that a tiling takes. */
export function gemmWorkgroupBytes(t: MatrixGemmTiling): number {
  return tileWords(t) * 16;
}

/** Columns of C that a subgroup passes through workgroup memory at a time: as many as fit where the tiles were. */
function sliceColumns(t: MatrixGemmTiling): number {
  let columns = t.subgroupN;
  const fits = (): boolean => gemmSubgroups(t) * 16 * (columns / 4 + 1) <= tileWords(t);
  while (columns > t.shape.n && !(t.subgroupN % columns === 0 && fits())) columns -= t.shape.n;
  return columns;
}

/**
 * 32-bit registers per invocation that a tiling keeps live: accumulators, matrices of A of two steps and of W of one, the fetched
 * words, and some 24 for addresses. An estimate: compilers add their own.
 */
export function gemmRegisters(t: MatrixGemmTiling): number {
  const accumulators = (t.subgroupM * t.subgroupN) / SUBGROUP_SIZE;
  const operands = ((2 * t.subgroupM + t.subgroupN) * t.shape.k) / 2 / SUBGROUP_SIZE;
  const fetched = ((t.blockM + t.blockN) * t.depth) / 2 / (gemmSubgroups(t) * SUBGROUP_SIZE);
  return accumulators + operands + fetched + 24;
}

/** Why a tiling cannot be used, or undefined when it can. */
export function gemmTilingProblem(t: MatrixGemmTiling): string | undefined {
  const { m, n, k } = t.shape;
  if (t.blockM % t.subgroupM !== 0 || t.blockN % t.subgroupN !== 0) return 'subgroups do not divide the block';
  if (t.subgroupM % 16 !== 0 || t.subgroupM % m !== 0)
    return `${t.subgroupM} rows are not whole matrices of ${m} and strips of 16`;
  if (t.subgroupN % n !== 0 || t.subgroupN % 8 !== 0)
    return `${t.subgroupN} columns are not whole matrices of ${n} and halves of strips`;
  if (t.blockN % 16 !== 0) return `${t.blockN} columns are not whole strips of 16`;
  if (t.subgroupN < 2 * n) return `${t.subgroupN} columns are fewer than two matrices`;
  if (t.depth % k !== 0) return `a depth of ${t.depth} is not whole matrices of ${k}`;
  if (gemmSubgroups(t) * 16 * (sliceColumns(t) / 4 + 1) > tileWords(t)) return 'results do not fit where the tiles were';
  return undefined;
}

/** Whether a device can run a tiling. */
export function gemmTilingFits(
  t: MatrixGemmTiling,
  limits: Pick<GPUSupportedLimits, 'maxComputeWorkgroupStorageSize' | 'maxComputeInvocationsPerWorkgroup'>,
): boolean {
  return (
    gemmTilingProblem(t) === undefined &&
    gemmWorkgroupBytes(t) <= limits.maxComputeWorkgroupStorageSize &&
    gemmSubgroups(t) * SUBGROUP_SIZE <= limits.maxComputeInvocationsPerWorkgroup &&
    gemmRegisters(t) <= 255
  );
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
 * reads 2 (M + N) bytes for 2 M N FLOPs of each column of k, and so does a workgroup's from the cache: 160 x 192 is bounded
 * by 470 TFLOPS, 192 x 128 by 414, 128 x 128 by 347. Rows of 64 columns are whole cache lines; rows of 32 are not.
 *
 * | block | subgroup | subgroups | registers | KiB at a depth of 32, 64 |
 * | --- | --- | --- | --- | --- |
 * | 160 x 192 | 80 x 48 | 8 | 240 | 23, 45 |
 * | 192 x 176 | 48 x 88 | 8 | 248 | 24, 47 |
 * | 192 x 128 | 48 x 64 | 8 | 200 | 21, 41 |
 * | 256 x 128 | 64 x 64 | 8 | 224 | 25, 49: too much for 48 |
 * | 128 x 128 | 64 x 32 | 8 | 160 | 17, 33 |
 */
export const GEMM_TILINGS: readonly GemmTilingShape[] = [
  tiling([160, 192], [80, 48], 64),
  tiling([192, 160], [48, 80], 64),
  // For matrices of 8 columns.
  tiling([192, 176], [48, 88], 64),
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
export function fewRowsTiling(
  many: MatrixGemmTiling,
  limits: Pick<GPUSupportedLimits, 'maxComputeWorkgroupStorageSize' | 'maxComputeInvocationsPerWorkgroup'>,
  rows: number,
): MatrixGemmTiling {
  const few = FEW_ROWS_TILINGS.map((t) => ({ ...t, shape: many.shape })).filter((t) => gemmTilingFits(t, limits));
  const padded = (t: MatrixGemmTiling): number => Math.ceil(rows / t.blockM) * t.blockM;
  const largest = few.at(-1) ?? many;
  return few.find((t) => rows <= t.blockM) ?? (padded(largest) < padded(many) ? largest : many);
}

/** Blocks for many rows, from whose sizes {@link blockCost} tells which one wastes least of the last workgroups. */
const BLOCKS: readonly GemmTilingShape[] = [
  tiling([160, 192], [80, 48], 64),
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

/** The first of {@link GEMM_TILINGS} that a device can run, if any; in matrices of 16x16x16 where there are such. */
export function chooseGemmTiling(
  shapes: readonly MatrixShape[],
  limits: Pick<GPUSupportedLimits, 'maxComputeWorkgroupStorageSize' | 'maxComputeInvocationsPerWorkgroup'>,
): MatrixGemmTiling | undefined {
  const shape = shapes.find(({ n }) => n === 16) ?? shapes[0];
  return shape && GEMM_TILINGS.map((t) => ({ ...t, shape })).find((t) => gemmTilingFits(t, limits));
}

/** The tiling for matrices of so many columns, a multiple of 32: its depth must divide them. */
export function gemmTilingFor(t: MatrixGemmTiling, columns: number): MatrixGemmTiling {
  return columns % t.depth === 0 ? t : { ...t, depth: 32 };
}

/** A tiling in a few words, for labels and tables. */
export function gemmTilingName(t: MatrixGemmTiling): string {
  const { m, n, k } = t.shape;
  return `${t.blockM}x${t.blockN} sg${t.subgroupM}x${t.subgroupN} k${t.depth} ${m}x${n}x${k}${t.split ? ' split' : ''}`;
}

/**
 * C[m, n] (+)= A[m, k] W[n, k]^T + bias[n] on subgroup matrices: f16 operands, f32 sums, W dequantised while it is staged; or
 * C[m, n / 2] = silu(A Wg^T) * (A Wu^T), without biases: four rows of gate stand beside the four of up there, so that both sums of an
 * element meet where results leave the matrices.
 *
 * A workgroup computes blockM x blockN elements, each of its subgroups subgroupM x subgroupN of them, in matrices that
 * are variables of their own: arrays of matrices land in local memory. Each step of `depth` columns stages both operands
 * in workgroup memory, and the words of the next one are on their way meanwhile. A subgroup loads a matrix of W for the next step of k
 * as soon as it has multiplied with that of this step, and those of A a step ahead; the last products of a tile stand beside the
 * staging of the next one, and in front of its loads, so that one buffer does. At the end the sums pass through the same memory, 16
 * rows at a time, since elements of a matrix cannot be reached.
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
  const problem = gemmTilingProblem(t);
  if (problem) throw invalidArgument('tiling', t, `a possible tiling: ${problem}`);
  const head = prelude({
    f16: true,
    constants: {
      BLOCK_M: t.blockM,
      BLOCK_N: t.blockN,
      THREADS: gemmSubgroups(t) * SUBGROUP_SIZE,
      DEPTH: t.depth,
      DEPTH8: t.depth / 8,
      GROUP: Math.ceil((t.groupRows ?? 2304) / t.blockM),
      A_STRIDE: tileStride(t, t.blockM),
      W_STRIDE: tileStride(t, t.blockN),
      W_TILE: 16 * tileStride(t, t.blockM),
      SLICE4: sliceColumns(t) / 4,
      SLICE_STRIDE: sliceColumns(t) / 4 + 1,
    },
  });
  const enables = head.slice(0, head.indexOf('const '));
  const spec: Omit<ShaderSpec, 'code'> = {
    label: `gemm matrix ${type} ${output} ${gemmTilingName(t)} ${ops.name}${bias ? ' bias' : ''}${checked ? '' : ' clamped'}`,
    bindings: ['uniform', 'read', 'read', 'read', 'write', ...ops.bindings],
  };
  return lazyShader(spec, () => {
    const stored = storedOutput(t, output);
    const main = mainFunction(t, output, bias && !t.split, ops, checked);
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
var<workgroup> tile: array<vec4<u32>, ${tileWords(t)}>;`,
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

type Operand = 'a' | 'w';

/** What leaves the kernel: sums of a share are finished by another one, with the bias. */
function storedOutput({ split }: MatrixGemmTiling, output: MatrixProductOutput): MatrixProductOutput {
  return split ? 'f32' : output;
}

function mainFunction(t: MatrixGemmTiling, output: MatrixProductOutput, bias: boolean, ops: MatrixOps, checked: boolean): string {
  const stored = storedOutput(t, output);
  const { m, n, k } = t.shape;
  const threads = gemmSubgroups(t) * SUBGROUP_SIZE;
  const rowMatrices = range(t.subgroupM / m);
  const columnMatrices = t.subgroupN / n;
  const d8 = t.depth / 8;

  /**
   * The row of a 16-byte word of a tile. Eight neighbours store words of eight banks: those of a row of 8, or of two rows of 4 that are
   * four rows apart.
   */
  const lineOf = (word: string): string =>
    d8 === 8 ? `(${word} / 8u)` : `(${word} / 32u * 8u + ${word} / 8u % 4u + ${word} / 4u % 2u * 4u)`;
  const [line, group] = [lineOf('thread'), 'thread % DEPTH8'];
  /** Rows that all invocations together take at a time. */
  const turn = threads / d8;
  /** Statements for each 16-byte word of A and W that an invocation has room for. */
  const everyWord = (visit: (name: string, of: Operand, i: number, words: number) => string): string[] =>
    (['a', 'w'] as const).flatMap((of) => {
      const words = (of === 'a' ? t.blockM : t.blockN) * d8;
      return range(Math.ceil(words / threads)).map((i) => visit(`${of}_next_${i}`, of, i, words));
    });
  /** The same for words that it stages, `i * turn` rows below its first one, where there is such a row. */
  const eachWord = (visit: (name: string, of: Operand, i: number) => string): string[] =>
    everyWord((name, of, i, words) => {
      const body = visit(name, of, i);
      return (i + 1) * threads > words ? `if (thread + ${i * threads}u < ${words}u) {\n${body}\n}` : body;
    });
  const declare = everyWord((name) => `var ${name} = vec4<u32>();`);
  const fetch = (k0: string): string[] =>
    eachWord((name, of, i) => {
      const [start, count] = of === 'a' ? ['row0', 'params.m'] : ['column0', 'params.n'];
      const any = `${start} + ${line} + ${i * turn}u`;
      const row = checked ? any : `min(${any}, ${count} - 1u)`;
      if (of === 'a') return `${name} = a[params.a_base / 2u + (${row}) * (params.a_stride / 2u) + ${k0} / 8u + ${group}];`;
      // Blocks and turns are whole eights of rows.
      const inTurns = `interleaved(${start} + ${line}) + ${(i * turn) / 2}u`;
      const own = output !== 'swiglu' ? row : checked ? inTurns : `interleaved(${row})`;
      return `${name} = weight_word(${own}, ${k0} / 8u + ${group});`;
    });
  /** How far into a tile a row begins: a number where it is known when the text is written. */
  const rowAt = (of: Operand, row: Index): string => {
    const stride = of === 'a' ? 'A_STRIDE' : 'W_STRIDE';
    if (typeof row === 'number') return `${Math.floor(row / 16) * d8}u + ${row % 16}u * ${stride}`;
    return `${row} % 16u * ${stride} + ${row} / 16u * DEPTH8`;
  };
  const tileOf = { a: '', w: 'W_TILE + ' } as const;
  // Words that lie whole strips apart are in the same row of the strips: one address does for all.
  const places = (['a', 'w'] as const).map((of) => `let ${of}_place = ${tileOf[of]}${rowAt(of, line)} + ${group};`);
  const stage = eachWord((name, of, i) =>
    turn % 16 === 0
      ? `tile[${of}_place + ${(i * turn * d8) / 16}u] = ${name};`
      : `tile[${tileOf[of]}${rowAt(of, `(${line} + ${i * turn}u)`)} + ${group}] = ${name};`,
  );
  /** Part `i` of `count` of a list. */
  const part = (list: readonly string[], i: number, count: number): string[] =>
    list.slice(Math.floor((i * list.length) / count), Math.floor(((i + 1) * list.length) / count));
  const sums = rowMatrices.map((i) => ops.declare(`c_${i}`, 'Result', columnMatrices));
  const operands = [
    ops.declare('left_0', 'Left', t.subgroupM / m),
    ops.declare('left_1', 'Left', t.subgroupM / m),
    ops.declare('right', 'Right', columnMatrices),
  ];
  const steps = t.depth / k;
  /** Loads the matrices of A of a step into set `step % 2`. */
  const loadLeft = (step: number): string =>
    text(
      rowMatrices.map((i) => {
        const at = `subgroup_row / 16u * DEPTH8 + ${rowAt('a', i * m)}`;
        return ops.loadInto(`left_${step % 2}`, i, 'Left', 'tile', `${at} + ${(step * k) / 8}u`, 'A_STRIDE', 'row_major');
      }),
    );
  // Where a matrix of W begins. Tint must find that its end lies in the tile (bench/NOTES.md): so a row of the subgroup's columns that
  // is known, or that of a half of a strip.
  const inStrips = (row: Index): string => `subgroup_column / 16u * DEPTH8 + ${rowAt('w', row)}`;
  const inHalves = (row: Index): string => `${row} / 16u * DEPTH8 + ${row} / 8u % 2u * (8u * W_STRIDE)`;
  /** Loads the j-th matrix of W of a step. */
  const loadRight = (step: number, j: Index): string => {
    const row = times(j, n);
    const at = t.subgroupN % 16 === 0 ? inStrips(row) : inHalves(plus('subgroup_column', row));
    const offset = `W_TILE + ${at} + ${(step * k) / 8}u`;
    return ops.loadInto('right', j, 'Right', 'tile', offset, 'W_STRIDE', 'col_major');
  };
  /** Products of a step and of one column of matrices. */
  const products = (step: number, j: Index): string =>
    text(
      rowMatrices.map((i) =>
        ops.set(`c_${i}`, j, ops.multiplyAdd(ops.get(`left_${step % 2}`, i), ops.get('right', j), ops.get(`c_${i}`, j))),
      ),
    );
  /** Statements for columns of matrices from `start` on. */
  const eachColumn = (start: number, visit: (j: Index) => string): string =>
    ops.each('j', columnMatrices - start, (j) => visit(plus(start, j)));
  const last = steps - 1;
  // Columns of a tile's last products that stand beside the staging of the next one. The others stand in front of its first loads.
  const beside = columnMatrices >> 1;
  // Compilers would move loads to where their words are used, past any barrier. A branch around them and nothing else keeps them
  // where they are: early, but behind the loads of matrices, which products wait for. Tiles of two steps leave no time between the
  // first and the staging, so that each word is fetched when the one before it has been stored.
  const [begin, second, end] = t.split ? ['k_begin', '(k_begin + DEPTH)', 'k_end'] : ['0u', 'DEPTH', 'params.k'];
  const guarded = (ahead: string, words: readonly string[]): string => text(`if (${ahead} < ${end}) {`, words, '}');
  const exchanges = steps <= 2;
  const ahead = fetch('(k0 + 2u * DEPTH)');
  const exchange = (i: number): string => text(part(stage, i, beside), guarded('k0 + 2u * DEPTH', part(ahead, i, beside)));
  const loop = text(
    operands,
    t.split ? 'let k_begin = workgroup.z * params.k_share;\nlet k_end = min(k_begin + params.k_share, params.k);' : '',
    fetch(begin),
    stage,
    exchanges ? guarded(second, fetch(second)) : '',
    `for (var k0 = ${begin}; k0 < ${end}; k0 += DEPTH) {`,
    'workgroupBarrier();',
    loadLeft(0),
    ops.each('j', beside, (j) => loadRight(0, j)),
    // Products of the tile before: zeros before the first one.
    eachColumn(beside, (j) => text(products(last, j), loadRight(0, j))),
    exchanges ? '' : guarded('k0 + DEPTH', fetch('(k0 + DEPTH)')),
    range(last).map((step) =>
      text(
        loadLeft(step + 1),
        eachColumn(0, (j) => text(products(step, j), loadRight(step + 1, j))),
      ),
    ),
    'workgroupBarrier();',
    range(beside).map((j) => text(products(last, j), exchanges ? exchange(j) : part(stage, j, beside))),
    '}',
    eachColumn(beside, (j) => products(last, j)),
  );

  const slice = sliceColumns(t);
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
  const epilogue = range(t.subgroupM / 16).flatMap((strip) =>
    range(t.subgroupN / slice).map((part) =>
      text(
        'workgroupBarrier();',
        range(16 / m).map((sub) =>
          ops.each('j', slice / n, (j) =>
            ops.store(
              'tile',
              `scratch + ${sub * m}u * SLICE_STRIDE + ${wgsl(times(j, n / 4))}`,
              ops.get(`c_${strip * (16 / m) + sub}`, plus((part * slice) / n, j)),
              'SLICE_STRIDE',
            ),
          ),
        ),
        'workgroupBarrier();',
        (stored === 'swiglu' ? storeSwiglu : store)(
          `row0 + subgroup_row + ${strip * 16}u`,
          `column0 + subgroup_column + ${part * slice}u`,
        ),
      ),
    ),
  );

  return text(
    '@compute @workgroup_size(THREADS)',
    `fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32${ops.builtins ? `, ${ops.builtins}` : ''}) {`,
    ops.prologue,
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
let column0 = place / here * BLOCK_N;
let subgroup_row = (subgroup / ${t.blockN / t.subgroupN}u) * ${t.subgroupM}u;
let subgroup_column = (subgroup % ${t.blockN / t.subgroupN}u) * ${t.subgroupN}u;
let scratch = subgroup * 16u * SLICE_STRIDE;`,
    places,
    sums,
    declare,
    loop,
    epilogue,
    '}',
  );
}
