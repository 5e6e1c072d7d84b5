import gemmBindings from '../../shaders/model/gemm_bindings.wgsl?raw';
import { lazyShader, type ShaderSpec } from '../device/pipelines.js';
import { type MatrixShape, SUBGROUP_SIZE } from '../device/subgroup_matrix.js';
import { invalidArgument } from '../errors.js';
import { type MatrixOps, nativeOps, plus, times, wgsl } from '../kernels/matrix_ops.js';
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
 * 32-bit registers per invocation that a tiling keeps live: accumulators, the A operands of a step and one W operand,
 * the fetched words, and some 24 for addresses. An estimate: compilers add their own.
 */
export function gemmRegisters(t: MatrixGemmTiling): number {
  const accumulators = (t.subgroupM * t.subgroupN) / SUBGROUP_SIZE;
  const operands = ((t.subgroupM + t.shape.n) * t.shape.k) / 2 / SUBGROUP_SIZE;
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
 * by 414 TFLOPS, 128 x 128 by 347. Rows of 64 columns are whole cache lines and are stored without bank conflicts; rows of 32
 * are not.
 *
 * | block | subgroup | subgroups | registers | KiB at a depth of 32, 64 |
 * | --- | --- | --- | --- | --- |
 * | 192 x 128 | 48 x 64 | 8 | 160 | 25, 45 |
 * | 128 x 128 | 64 x 64 | 4 | 206 | 20, 36 |
 * | 128 x 256 | 64 x 64 | 8 | 196 | 30, 54: too much for 48 |
 */
export const GEMM_TILINGS: readonly GemmTilingShape[] = [
  tiling([192, 128], [48, 64], 64),
  tiling([128, 192], [64, 48], 64),
  tiling([192, 128], [96, 32], 64),
  tiling([128, 256], [64, 64], 32),
  tiling([256, 128], [64, 64], 32),
  tiling([128, 128], [64, 32], 64),
  tiling([128, 128], [32, 64], 64),
  tiling([128, 128], [64, 64], 32),
  tiling([128, 128], [64, 32], 32),
  // For devices with 16 KiB of workgroup memory.
  tiling([64, 64], [32, 32], 32),
];

/** The first of {@link GEMM_TILINGS} that a device can run, if any. */
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
 * in workgroup memory; the words of the next step are on their way while this one's are multiplied. At the end the sums
 * pass through the same memory, 16 rows at a time, since elements of a matrix cannot be reached.
 *
 * Rows past the end repeat the last one; their results are not stored. n, and the columns and stride of C, must be
 * multiples of 4, k one of `depth`; A is f16. Bindings: 0 params (GemmParams), 1 weights, 2 A, 3 bias, 4 C.
 * Workgroups: (m / blockM, n / blockN), rounded up: those that share W run together.
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

  /** Calls `visit` for each 16-byte word of A and W that an invocation stages. */
  const eachWord = (visit: (name: string, line: string, group: string, of: 'a' | 'w') => string): string =>
    lines(
      (['a', 'w'] as const).flatMap((of) => {
        const words = (of === 'a' ? t.blockM : t.blockN) * d8;
        return range(Math.ceil(words / threads)).map((i) => {
          const word = i > 0 ? `(thread + ${i * threads}u)` : 'thread';
          const body = visit(`${of}_next_${i}`, `(${word} / DEPTH8)`, `(${word} % DEPTH8)`, of);
          return (i + 1) * threads > words ? `if (${word} < ${words}u) {\n${body}\n}` : body;
        });
      }),
    );
  const declare = range(Math.ceil((t.blockM * d8) / threads))
    .map((i) => `var a_next_${i} = vec4<u32>();`)
    .concat(range(Math.ceil((t.blockN * d8) / threads)).map((i) => `var w_next_${i} = vec4<u32>();`));
  const fetch = (k0: string): string =>
    eachWord((name, line, group, of) =>
      of === 'a'
        ? `${name} = a[(params.a_base + min(row0 + ${line}, params.m - 1u) * params.a_stride) / 2u + ${k0} / 8u + ${group}];`
        : `${name} = weight_word(min(column0 + ${line}, params.n - 1u), ${k0} / 8u + ${group});`,
    );
  const stage = eachWord(
    (name, line, group, of) => `tile[(${of === 'w' ? 'BLOCK_M + ' : ''}${line}) * STRIDE + ${group}] = ${name};`,
  );
  const sums = rowMatrices.map((i) => ops.declare(`c_${i}`, 'Result', columnMatrices));
  const multiply = ops.each('step', t.depth / k, (step) =>
    lines(
      rowMatrices.map(
        (i) =>
          `let left_${i} = ${ops.load('Left', 'tile', `(subgroup_row + ${i * m}u) * STRIDE + ${wgsl(times(step, k / 8))}`, 'STRIDE', 'row_major')};`,
      ),
      ops.each('j', columnMatrices, (j) =>
        lines(
          `let right = ${ops.load('Right', 'tile', `(BLOCK_M + subgroup_column + ${wgsl(times(j, n))}) * STRIDE + ${wgsl(times(step, k / 8))}`, 'STRIDE', 'col_major')};`,
          rowMatrices.map((i) => ops.set(`c_${i}`, j, ops.multiplyAdd(`left_${i}`, 'right', ops.get(`c_${i}`, j)))),
        ),
      ),
    ),
  );
  const loop = lines(
    fetch('0u'),
    'for (var k0 = 0u; k0 < params.k; k0 += DEPTH) {',
    'workgroupBarrier();',
    stage,
    'workgroupBarrier();',
    // Compilers would move loads to where their words are used, past any barrier. A branch around them and nothing else
    // keeps them where they are, a step ahead.
    `if (k0 + DEPTH < params.k) {\n${fetch('(k0 + DEPTH)')}\n}`,
    multiply,
    '}',
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
    `let row0 = workgroup.x * BLOCK_M;
let column0 = workgroup.y * BLOCK_N;
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
