import gemmBindings from '../../shaders/model/gemm_bindings.wgsl?raw';
import { lazyShader, type ShaderSpec } from '../device/pipelines.js';
import { type MatrixShape, SUBGROUP_SIZE } from '../device/subgroup_matrix.js';
import { invalidArgument } from '../errors.js';
import { type Index, type MatrixOps, nativeOps, plus, times, wgsl } from '../kernels/matrix_ops.js';
import { prelude } from '../kernels/shader_text.js';
import { outputLibrary, weightLibrary } from './shader_parts.js';
import type { WeightType } from './types.js';

/** What becomes of a product: stored as an activation or as f32, or added to the f32 residual stream. */
export type ProductOutput = 'activation' | 'f32' | 'add';

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
}

/** Subgroups of a workgroup. */
export function gemmSubgroups(t: MatrixGemmTiling): number {
  return (t.blockM / t.subgroupM) * (t.blockN / t.subgroupN);
}

/** 16-byte words of a staged row: padded, so that neighbouring rows fall into different banks. */
function rowWords(t: MatrixGemmTiling): number {
  return t.depth / 8 + 1;
}

/** 16-byte words of the staged tiles. */
function tileWords(t: MatrixGemmTiling): number {
  return (t.blockM + t.blockN) * rowWords(t);
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
 * 32-bit registers per invocation that a tiling keeps live: accumulators, the operands of two steps, the fetched words, and some 24
 * for addresses. An estimate: compilers add their own.
 */
export function gemmRegisters(t: MatrixGemmTiling): number {
  const accumulators = (t.subgroupM * t.subgroupN) / SUBGROUP_SIZE;
  const operands = ((t.subgroupM + t.subgroupN) * t.shape.k) / SUBGROUP_SIZE;
  const fetched = ((t.blockM + t.blockN) * t.depth) / 2 / (gemmSubgroups(t) * SUBGROUP_SIZE);
  return accumulators + operands + fetched + 24;
}

/** Why a tiling cannot be used, or undefined when it can. */
export function gemmTilingProblem(t: MatrixGemmTiling): string | undefined {
  const { m, n, k } = t.shape;
  if (t.blockM % t.subgroupM !== 0 || t.blockN % t.subgroupN !== 0) return 'subgroups do not divide the block';
  if (t.subgroupM % 16 !== 0 || t.subgroupM % m !== 0)
    return `${t.subgroupM} rows are not whole matrices of ${m} and strips of 16`;
  if (t.subgroupN % n !== 0 || t.subgroupN % 4 !== 0) return `${t.subgroupN} columns are not whole matrices of ${n}`;
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
export type GemmTilingShape = Omit<MatrixGemmTiling, 'shape'>;

const tiling = (
  [blockM, blockN]: readonly [number, number],
  [subgroupM, subgroupN]: readonly [number, number],
  depth: 32 | 64,
): GemmTilingShape => ({ blockM, blockN, subgroupM, subgroupN, depth });

/**
 * The tilings to measure, the fastest on an H100 first (bench/NOTES.md). A multiprocessor of an H100 reads 128 bytes of
 * workgroup memory a clock, about 24 of second-level cache, and multiplies at most 2760 FLOPs. A subgroup's tile of M x N
 * reads 2 (M + N) bytes for 2 M N FLOPs of each column of k, and so does a workgroup's from the cache: 192 x 128 is bounded
 * by 414 TFLOPS, 128 x 128 by 347. Rows of 64 columns are whole cache lines; rows of 32 are not.
 *
 * | block | subgroup | subgroups | registers | KiB at a depth of 32, 64 |
 * | --- | --- | --- | --- | --- |
 * | 192 x 128 | 48 x 64 | 8 | 216 | 25, 45 |
 * | 256 x 128 | 64 x 64 | 8 | 240 | 30, 54: too much for 48 |
 * | 128 x 128 | 64 x 32 | 8 | 168 | 20, 36 |
 */
export const GEMM_TILINGS: readonly GemmTilingShape[] = [
  tiling([192, 128], [48, 64], 64),
  tiling([192, 128], [96, 32], 64),
  tiling([128, 192], [64, 48], 64),
  tiling([256, 128], [64, 64], 32),
  tiling([128, 128], [64, 32], 64),
  tiling([128, 128], [64, 64], 32),
  tiling([128, 128], [64, 32], 32),
  // For devices with 16 KiB of workgroup memory.
  tiling([64, 64], [32, 32], 32),
];

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
  return `${t.blockM}x${t.blockN} sg${t.subgroupM}x${t.subgroupN} k${t.depth} ${m}x${n}x${k}`;
}

const range = (count: number): number[] => Array.from({ length: count }, (_, i) => i);
const lines = (...parts: readonly (string | readonly string[])[]): string =>
  parts
    .flat()
    .filter((part) => part !== '')
    .join('\n');

/**
 * C[m, n] (+)= A[m, k] W[n, k]^T + bias[n] on subgroup matrices: f16 operands, f32 sums, W dequantised while it is staged.
 *
 * A workgroup computes blockM x blockN elements, each of its subgroups subgroupM x subgroupN of them, in matrices that
 * are variables of their own: arrays of matrices land in local memory. Each step of `depth` columns stages both operands
 * in workgroup memory, and the words of the next one are on their way meanwhile. A subgroup keeps the operands of two steps of k in
 * registers: it multiplies one while it loads the other, and the last ones of a tile while the next one is staged, so that one buffer
 * does. At the end the sums pass through the same memory, 16 rows at a time, since elements of a matrix cannot be reached.
 *
 * Rows past the end repeat the last one; their results are not stored. n, and the columns and stride of C, must be
 * multiples of 4, k one of `depth`; A is f16. Bindings: 0 params (GemmParams), 1 weights, 2 A, 3 bias, 4 C.
 * Workgroups: (m / blockM, n / blockN), rounded up.
 *
 * @throws {@link MinferenceError} `invalid-argument` for an impossible tiling.
 */
export function matrixGemmShader(
  t: MatrixGemmTiling,
  type: WeightType,
  output: ProductOutput,
  bias: boolean,
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
      STRIDE: rowWords(t),
      SLICE4: sliceColumns(t) / 4,
      SLICE_STRIDE: sliceColumns(t) / 4 + 1,
    },
  });
  const enables = head.slice(0, head.indexOf('const '));
  const spec: Omit<ShaderSpec, 'code'> = {
    label: `gemm matrix ${type} ${output} ${gemmTilingName(t)} ${ops.name}${bias ? ' bias' : ''}`,
    bindings: ['uniform', 'read', 'read', 'read', 'write', ...ops.bindings],
  };
  return lazyShader(spec, () => {
    const main = mainFunction(t, output, bias, ops);
    return [
      enables + ops.directives,
      head.slice(enables.length),
      gemmBindings,
      weightLibrary(type),
      type === 'f16' ? WORD_OF_HALVES : WORD_OF_EIGHT,
      outputLibrary(output === 'activation' ? 'f16' : 'f32'),
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
  let w = load_weights(row, group);
  return vec4<u32>(pack2x16float(w.lo.xy), pack2x16float(w.lo.zw), pack2x16float(w.hi.xy), pack2x16float(w.hi.zw));
}`;

function mainFunction(t: MatrixGemmTiling, output: ProductOutput, bias: boolean, ops: MatrixOps): string {
  const { m, n, k } = t.shape;
  const threads = gemmSubgroups(t) * SUBGROUP_SIZE;
  const rowMatrices = range(t.subgroupM / m);
  const columnMatrices = t.subgroupN / n;
  const d8 = t.depth / 8;

  /** `visit` for each 16-byte word of A and W that an invocation stages. */
  const eachWord = (visit: (name: string, line: string, group: string, of: 'a' | 'w') => string): string[] =>
    (['a', 'w'] as const).flatMap((of) => {
      const words = (of === 'a' ? t.blockM : t.blockN) * d8;
      return range(Math.ceil(words / threads)).map((i) => {
        const word = i > 0 ? `(thread + ${i * threads}u)` : 'thread';
        // Eight neighbours store words of eight banks: those of a row of 8, or of two rows of 4 that are four rows apart.
        const line = d8 === 8 ? `(${word} / 8u)` : `(${word} / 32u * 8u + ${word} / 8u % 4u + ${word} / 4u % 2u * 4u)`;
        const body = visit(`${of}_next_${i}`, line, `(${word} % DEPTH8)`, of);
        return (i + 1) * threads > words ? `if (${word} < ${words}u) {\n${body}\n}` : body;
      });
    });
  const declare = range(Math.ceil((t.blockM * d8) / threads))
    .map((i) => `var a_next_${i} = vec4<u32>();`)
    .concat(range(Math.ceil((t.blockN * d8) / threads)).map((i) => `var w_next_${i} = vec4<u32>();`));
  const fetch = (k0: string): string[] =>
    eachWord((name, line, group, of) =>
      of === 'a'
        ? `${name} = a[(params.a_base + min(row0 + ${line}, params.m - 1u) * params.a_stride) / 2u + ${k0} / 8u + ${group}];`
        : `${name} = weight_word(min(column0 + ${line}, params.n - 1u), ${k0} / 8u + ${group});`,
    );
  const stage = eachWord(
    (name, line, group, of) => `tile[(${of === 'w' ? 'BLOCK_M + ' : ''}${line}) * STRIDE + ${group}] = ${name};`,
  );
  /** Part `i` of `count` of a list. */
  const part = (list: readonly string[], i: number, count: number): string[] =>
    list.slice(Math.floor((i * list.length) / count), Math.floor(((i + 1) * list.length) / count));
  const sums = rowMatrices.map((i) => ops.declare(`c_${i}`, 'Result', columnMatrices));
  const steps = t.depth / k;
  /** Operands of a step into set `step % 2`. */
  const loadStep = (step: number): string => {
    const operand = (list: string, index: Index, type: 'Left' | 'Right', row: string): string =>
      ops.loadInto(
        `${list}_${step % 2}`,
        index,
        type,
        'tile',
        `(${row}) * STRIDE + ${(step * k) / 8}u`,
        'STRIDE',
        type === 'Left' ? 'row_major' : 'col_major',
      );
    return lines(
      rowMatrices.map((i) => operand('left', i, 'Left', `subgroup_row + ${i * m}u`)),
      ops.each('j', columnMatrices, (j) => operand('right', j, 'Right', `BLOCK_M + subgroup_column + ${wgsl(times(j, n))}`)),
    );
  };
  /** Products of a set and of one column. */
  const products = (set: number, j: Index): string[] =>
    rowMatrices.map((i) =>
      ops.set(`c_${i}`, j, ops.multiplyAdd(ops.get(`left_${set}`, i), ops.get(`right_${set}`, j), ops.get(`c_${i}`, j))),
    );
  /** Columns of products of the last but one step of a tile that stand in front of the barrier before the staging: warps wait less. */
  const ahead = columnMatrices >> 1;
  /** Products of a set and of columns from `start` to `end`, other statements between, so that stores do not queue up in front. */
  const multiplyColumns = (set: number, start: number, end: number, others: readonly string[] = []): string =>
    lines(range(end - start).map((column) => lines(products(set, start + column), part(others, column, end - start))));
  /** Products of a set, all columns. */
  const multiply = (set: number): string => ops.each('j', columnMatrices, (j) => lines(products(set, j)));
  // Compilers would move loads to where their words are used, past any barrier. A branch around them and nothing else keeps them
  // where they are: early, but behind the loads of matrices, which products wait for. Tiles of two steps leave no time between the
  // first and the staging, so that each word is fetched when the one before it has been stored.
  const guarded = (ahead: string, words: readonly string[]): string => lines(`if (${ahead} < params.k) {`, words, '}');
  const exchanges = steps <= 2;
  const exchange = (columns: number): string[] => {
    const words = fetch('(k0 + 2u * DEPTH)');
    return range(columns).map((i) => lines(part(stage, i, columns), guarded('k0 + 2u * DEPTH', part(words, i, columns))));
  };
  const loop = lines(
    [0, 1].flatMap((set) => [
      ops.declare(`left_${set}`, 'Left', t.subgroupM / m),
      ops.declare(`right_${set}`, 'Right', columnMatrices),
    ]),
    fetch('0u'),
    stage,
    exchanges ? guarded('DEPTH', fetch('DEPTH')) : '',
    'for (var k0 = 0u; k0 < params.k; k0 += DEPTH) {',
    'workgroupBarrier();',
    range(steps - 1).map((step) =>
      lines(
        loadStep(step),
        // At first those of the last step of the tile before (zeros before the first tile).
        multiply((step + 1) % 2),
        step === 0 && !exchanges ? guarded('k0 + DEPTH', fetch('(k0 + DEPTH)')) : '',
      ),
    ),
    loadStep(steps - 1),
    multiplyColumns(steps % 2, 0, ahead),
    'workgroupBarrier();',
    multiplyColumns(steps % 2, ahead, columnMatrices, exchanges ? exchange(columnMatrices - ahead) : stage),
    '}',
    multiply((steps + 1) % 2),
  );

  const slice = sliceColumns(t);
  const epilogue = range(t.subgroupM / 16).flatMap((strip) =>
    range(t.subgroupN / slice).map((part) =>
      lines(
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
        `for (var i = lane; i < 16u * SLICE4; i += ${SUBGROUP_SIZE}u) {
let row = row0 + subgroup_row + ${strip * 16}u + i / SLICE4;
let column = column0 + subgroup_column + ${part * slice}u + 4u * (i % SLICE4);
if (row < params.m && column < params.n) {
let at = (row * params.c_stride + params.c_base + column) / 4u;
var x = bitcast<vec4<f32>>(tile[scratch + (i / SLICE4) * SLICE_STRIDE + i % SLICE4]);`,
        bias ? 'x += bias[(params.c_base + column) / 4u];' : '',
        output === 'add' ? 'x += c[at];' : '',
        `c[at] = pack_output(x);
}
}`,
      ),
    ),
  );

  return lines(
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
    sums,
    declare,
    loop,
    epilogue,
    '}',
  );
}
