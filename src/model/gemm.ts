import stagePatch from '../../shaders/lib/stage_patch.wgsl?raw';
import dequantize from '../../shaders/model/dequantize.wgsl?raw';
import gemm from '../../shaders/model/gemm.wgsl?raw';
import gemmBindings from '../../shaders/model/gemm_bindings.wgsl?raw';
import gemmCombine from '../../shaders/model/gemm_combine.wgsl?raw';
import gemv from '../../shaders/model/gemv.wgsl?raw';
import laneSumsSubgroup from '../../shaders/model/lane_sums_subgroup.wgsl?raw';
import laneSumsWorkgroup from '../../shaders/model/lane_sums_workgroup.wgsl?raw';
import { lazyShader, type ShaderSpec } from '../device/pipelines.js';
import { type DeviceProfile, workgroupsToFill } from '../device/profile.js';
import type { Bindable, Recorder } from '../device/recorder.js';
import { invalidArgument } from '../errors.js';
import { f32Bits } from '../index/layer.js';
import { blockBytes } from '../kernels/matrix_product.js';
import { prelude, withUnit } from '../kernels/shader_text.js';
import type { DType } from '../kernels/tensor.js';
import {
  blockCost,
  blocksForManyRows,
  fewRowsTiling,
  gemmTilingFor,
  hasManyRows,
  type MatrixGemmTiling,
  type MatrixProductOutput,
  matrixGemmShader,
  type ProductOutput,
  SHARES_COST,
} from './matrix_gemm.js';
import { activationLibrary, outputLibrary, runLibrary, weightLibrary } from './shader_parts.js';
import type { WeightType } from './types.js';

/** How the model's kernels compute on a device. */
export interface ModelKernels {
  readonly profile: DeviceProfile;
  /** Storage of activations and of the cache: f16 in the f16 tier, f32 in the portable one. Sums are always f32. */
  readonly activation: DType;
  /** Tiling of the products on subgroup matrices; undefined: they are not used. */
  readonly matrix?: MatrixGemmTiling | undefined;
  /** Products of so many rows and more turn weights into f16 first, once, instead of in every workgroup. Default: none do. */
  readonly dequantizeFrom?: number;
  /**
   * Whether the compiler takes bits for f16, which the matrix-vector kernel then does. Default: where it has subgroups, since wgpu's
   * does neither.
   */
  readonly f16Bits?: boolean;
}

/** Rows of a weight matrix, in a buffer of their own. */
export interface WeightPart {
  readonly type: WeightType;
  readonly buffer: GPUBuffer;
  readonly rows: number;
  /** The matrix' row that is row 0 here. */
  readonly rowStart: number;
}

/** A weight matrix `[rows, columns]`: the file's bytes, cut by rows where types change or a buffer would be too large. */
export interface Matrix {
  readonly rows: number;
  readonly columns: number;
  readonly parts: readonly WeightPart[];
  /** `[rows]` f32 */
  readonly bias?: GPUBuffer;
}

/** An RMS norm of the f32 residual stream. */
export interface Norm {
  /** `[columns]` f32 */
  readonly weight: GPUBuffer;
  readonly eps: number;
}

/** One product for {@link recordProduct}. */
export interface Product {
  readonly matrix: Matrix;
  /** `[., matrix.columns]` activations; with `norm` the f32 residual stream. */
  readonly a: GPUBuffer;
  /** The norm between the residual stream and the activations, where {@link fusesNorm}. */
  readonly norm?: Norm | undefined;
  /** First row of `a`. Default 0. */
  readonly firstRow?: number;
  readonly rows: number;
  /** `[rows, matrix.rows]` */
  readonly c: Bindable;
  readonly output: ProductOutput;
}

/** Most rows that the matrix-vector kernel does. */
export const GEMV_ROWS = 4;

/** Widest residual stream that products norm themselves: all threads read all of it, in f32, and its weights. */
const NORM_COLUMNS = 2048;

/** Whether a product of so many rows and columns norms the residual stream itself. */
export function fusesNorm(rows: number, columns: number): boolean {
  return rows <= GEMV_ROWS && columns <= NORM_COLUMNS;
}

/**
 * Rows from which products on subgroup matrices gain when weights become f16 first ({@link ModelKernels.dequantizeFrom}): 8 bits and
 * less cost an H100 a third of its rate in the kernel, and writing them out what 300 rows take (bench/NOTES.md).
 */
export const DEQUANTIZE_ROWS = 512;

/** Most bytes of weights that become f16 at a time. */
const DEQUANTIZED_BYTES = 2 ** 27;

/** Columns of weights come in groups of this many. */
export const COLUMN_MULTIPLE = 32;

/** Threads that share a row's columns in the matrix-vector kernel, and such teams of a workgroup. */
const GEMV = { LANES: 32, TEAMS: 4 } as const;

/** How the matrix-vector kernel is tiled, see shaders/model/gemv.wgsl. */
export interface GemvTiling {
  /** Groups of 8 columns that a thread takes at a time. */
  readonly groups: number;
  /** Rows of the weights that a thread sums at a time; even. */
  readonly rows: number;
}

/**
 * {@link GemvTiling.groups}, of columns that are a multiple of {@link COLUMN_MULTIPLE}, or of a block of 256. Those of 4 bits are
 * what shaders/model/runs_*.wgsl load.
 */
const GEMV_GROUPS: Readonly<Record<WeightType, 2 | 4>> = {
  f32: 2,
  f16: 2,
  q8_0: 2,
  q4_0: 4,
  q4_1: 4,
  q5_0: 2,
  q5_1: 2,
  q2_k: 2,
  q3_k: 2,
  q4_k: 4,
  q5_k: 2,
  q6_k: 2,
};

/** The tiling for a type of weights. More rows a thread leave too few workgroups for an H100 where a matrix has 4,096. */
export function gemvTiling(type: WeightType): GemvTiling {
  return { groups: GEMV_GROUPS[type], rows: 2 };
}

/** Type of a product's result in memory. */
export function outputType(kernels: ModelKernels, output: MatrixProductOutput): DType {
  return output === 'activation' || output === 'swiglu' ? kernels.activation : 'f32';
}

/** How the kernel for many rows is tiled, see shaders/model/gemm.wgsl. */
export interface GemmTiling {
  readonly blockM: 32 | 64 | 128;
  readonly blockN: 32 | 64 | 128;
  readonly threadsX: 8 | 16;
  readonly threadsY: 8 | 16;
  /** Rows that neighbouring threads alternate between. */
  readonly laneRows: 1 | 2;
  /** Columns of A and W staged at a time. */
  readonly depth: 8 | 16 | 32;
  /** Literal bounds for the inner loops, so that compilers unroll them; software adapters compile that for long. */
  readonly unroll: boolean;
}

/** A short name of a tiling, which says all of it. */
export function plainGemmName(t: GemmTiling): string {
  const threads = `${t.threadsX}x${t.threadsY}${t.laneRows === 2 ? ' pairs' : ''}`;
  return `${t.blockM}x${t.blockN} t${threads} k${t.depth}${t.unroll ? ' unrolled' : ''}`;
}

const GPU_GEMM = { blockN: 64, laneRows: 2, depth: 16, unroll: true } as const;
const SOFTWARE_GEMM = { blockN: 32, threadsX: 8, threadsY: 8, laneRows: 1, depth: 16, unroll: false } as const;

/**
 * Tilings of the kernel for more than {@link GEMV_ROWS} rows, by the rows of a block: 16 to 64 sums a thread on GPUs, fewer on software
 * devices, which take long to compile many.
 */
const PLAIN_GEMM_TILINGS: Readonly<Record<'gpu' | 'software', readonly [GemmTiling, ...GemmTiling[]]>> = {
  gpu: [
    { ...GPU_GEMM, blockM: 32, threadsX: 16, threadsY: 8 },
    { ...GPU_GEMM, blockM: 64, threadsX: 16, threadsY: 8 },
    { ...GPU_GEMM, blockM: 128, threadsX: 8, threadsY: 16 },
  ],
  software: [
    { ...SOFTWARE_GEMM, blockM: 32 },
    { ...SOFTWARE_GEMM, blockM: 64 },
  ],
};

/** The tiling for a number of rows: the smallest block that holds them, or the largest. */
export function gemmTiling({ profile }: ModelKernels, rows: number): GemmTiling {
  const tilings = PLAIN_GEMM_TILINGS[profile.software ? 'software' : 'gpu'];
  return tilings.find(({ blockM }) => rows <= blockM) ?? tilings.at(-1) ?? tilings[0];
}

/** The kernel for many rows. */
export function gemmShader(
  kernels: ModelKernels,
  type: WeightType,
  output: ProductOutput,
  bias: boolean,
  tiling: GemmTiling,
): ShaderSpec {
  const { activation } = kernels;
  const t = tiling;
  const out = outputType(kernels, output);
  const constants = {
    BLOCK_M: t.blockM,
    BLOCK_N: t.blockN,
    TX: t.threadsX,
    TY: t.threadsY,
    LANE_ROWS: t.laneRows,
    DEPTH: t.depth,
    ADD: output === 'add' ? 1 : 0,
    HAS_BIAS: bias ? 1 : 0,
  };
  return lazyShader(
    {
      label: `gemm ${type} ${activation} ${output} ${plainGemmName(t)}${bias ? ' bias' : ''}`,
      bindings: ['uniform', 'read', 'read', 'read', 'write'],
    },
    () =>
      [
        prelude({ f16: activation === 'f16', aliases: { Activation: activation }, constants }),
        gemmBindings,
        weightLibrary(type),
        outputLibrary(out),
        stagePatch,
        withUnit(gemm, t.unroll ? undefined : 'params.unit'),
      ].join('\n'),
  );
}

/** The kernel for up to {@link GEMV_ROWS} rows. */
export function gemvShader(
  kernels: ModelKernels,
  type: WeightType,
  output: MatrixProductOutput,
  bias: boolean,
  rows: number,
  tiling: GemvTiling,
  norm = false,
): ShaderSpec {
  const { activation, profile } = kernels;
  const subgroups = profile.tier !== 'portable' && profile.subgroups && profile.subgroupMinSize >= GEMV.LANES;
  const f16Bits = activation === 'f16' && (kernels.f16Bits ?? subgroups);
  /** Of what is multiplied: activations, or the residual stream. */
  const given = norm ? 'f32' : activation;
  const constants = {
    ...GEMV,
    M: rows,
    ROWS_W: tiling.rows,
    GROUPS: tiling.groups,
    ADD: output === 'add' ? 1 : 0,
    HAS_BIAS: bias ? 1 : 0,
    SWIGLU: output === 'swiglu' ? 1 : 0,
    NORM: norm ? 1 : 0,
  };
  return lazyShader(
    {
      label: `gemv ${type} ${activation} ${output} m=${rows} ${tiling.rows}x${8 * tiling.groups}${bias ? ' bias' : ''}${norm ? ' norm' : ''}${f16Bits ? ' bits' : ''}${subgroups ? ' sg' : ''}`,
      bindings: ['uniform', 'read', 'read', 'read', 'write', 'read'],
    },
    () =>
      [
        prelude({ f16: activation === 'f16', subgroups, aliases: { Activation: given }, constants }),
        gemmBindings,
        weightLibrary(type, f16Bits),
        activationLibrary(given, f16Bits),
        runLibrary(type),
        outputLibrary(outputType(kernels, output)),
        gemv,
        subgroups ? laneSumsSubgroup : laneSumsWorkgroup,
      ].join('\n'),
  );
}

/** A grid of so many workgroups and a few more, however many a dimension may have. */
function grid({ profile }: ModelKernels, workgroups: number): readonly [number, number] {
  const x = Math.min(workgroups, profile.limits.maxComputeWorkgroupsPerDimension);
  return [x, Math.ceil(workgroups / x)];
}

/** Workgroups of {@link gemvShader} for so many rows of weights. */
export function gemvWorkgroups(kernels: ModelKernels, weightRows: number, tiling: GemvTiling): readonly [number, number] {
  return grid(kernels, Math.ceil(weightRows / (GEMV.TEAMS * tiling.rows)));
}

/** What {@link productShader} needs to know of a matrix. */
function shapeOf({ rows, columns, bias }: Matrix): { readonly rows: number; readonly columns: number; readonly bias: boolean } {
  return { rows, columns, bias: bias !== undefined };
}

/** A kernel of a product, with its dispatch. */
export interface ProductKernel {
  readonly shader: ShaderSpec;
  readonly workgroups: readonly [x: number, y: number, z?: number];
  /** Where workgroups along z take shares of the columns of both factors: columns of a share, and the kernel that sums their results. */
  readonly shares?: { readonly columns: number; readonly combine: ShaderSpec };
}

/** Least columns of a share: fewer take no longer than what a workgroup does before and behind them. */
const SHARE_COLUMNS = 256;
/** Most bytes of the sums of all shares. */
const SHARES_BYTES = 2 ** 25;

/** Columns of each of about so many shares of k columns, in whole steps of `depth`. */
export function shareColumns(k: number, depth: number, shares: number): number {
  return Math.ceil(k / depth / shares) * depth;
}

/** `[m, k]` times `[n, k]`, transposed. */
interface ProductSize {
  readonly m: number;
  readonly n: number;
  readonly k: number;
}

/** The dispatch of a tiling: workgroups along z take shares of the columns where the others would not fill the device. */
function blocksOf(
  { profile }: ModelKernels,
  t: MatrixGemmTiling | GemmTiling,
  { m, n, k }: ProductSize,
): { readonly workgroups: readonly [x: number, y: number, z: number]; readonly share: number } {
  const [x, y] = [Math.ceil(m / t.blockM), Math.ceil(n / t.blockN)];
  // Small workgroups of f32 arithmetic share a multiprocessor with many others.
  const wanted = 'threadsX' in t ? 2 * workgroupsToFill(profile) : workgroupsToFill(profile, blockBytes(t));
  const splits = Math.floor(Math.min(wanted / (x * y), k / SHARE_COLUMNS, SHARES_BYTES / (4 * m * n)));
  const share = splits < 2 ? k : shareColumns(k, t.depth, splits);
  return { workgroups: [x, y, Math.ceil(k / share)], share };
}

/** Sums the results of shares, see shaders/model/gemm_combine.wgsl. */
export function combineShader(kernels: ModelKernels, output: MatrixProductOutput, bias: boolean): ShaderSpec {
  const out = outputType(kernels, output);
  const constants = { ADD: output === 'add' ? 1 : 0, HAS_BIAS: bias ? 1 : 0, SWIGLU: output === 'swiglu' ? 1 : 0 };
  return lazyShader(
    { label: `gemm combine ${out} ${output}${bias ? ' bias' : ''}`, bindings: ['uniform', 'read', 'read', 'write'] },
    () => [prelude({ f16: out === 'f16', constants }), outputLibrary(out), gemmCombine].join('\n'),
  );
}

/**
 * The kernel for a part of a matrix, and its workgroups.
 *
 * @throws {@link MinferenceError} `invalid-argument` for `swiglu` where not {@link fusesSwiglu}, and a norm where not {@link fusesNorm}
 */
export function productShader(
  kernels: ModelKernels,
  part: Pick<WeightPart, 'type' | 'rows' | 'rowStart'>,
  matrix: { readonly rows: number; readonly columns: number; readonly bias: boolean },
  output: MatrixProductOutput,
  rows: number,
  norm = false,
): ProductKernel {
  const { type } = part;
  if (rows <= GEMV_ROWS) {
    const tiling = gemvTiling(type);
    const shader = gemvShader(kernels, type, output, matrix.bias, rows, tiling, norm);
    return { shader, workgroups: gemvWorkgroups(kernels, part.rows, tiling) };
  }
  if (norm) throw invalidArgument('rows', rows, `at most ${GEMV_ROWS}, with a norm`);
  const { columns, bias } = matrix;
  const size = { m: rows, n: part.rows, k: columns };
  const tiling = (isAligned(part, matrix.rows) ? matrixTilingFor(kernels, size) : undefined) ?? gemmTiling(kernels, rows);
  const { workgroups, share } = blocksOf(kernels, tiling, size);
  const split = share < columns;
  const kernel = (shader: ShaderSpec): ProductKernel =>
    split
      ? { shader, workgroups, shares: { columns: share, combine: combineShader(kernels, output, bias) } }
      : { shader, workgroups };
  if ('shape' in tiling) return kernel(matrixGemmShader({ ...tiling, split }, type, output, bias, kernels.profile.checked));
  if (output === 'swiglu') throw invalidArgument('rows', rows, 'as many as SwiGLU is done for in a product');
  return kernel(gemmShader(kernels, type, split ? 'f32' : output, bias && !split, tiling));
}

/** Whether kernels on subgroup matrices can write the columns of a part of the weights. */
function isAligned(part: Pick<WeightPart, 'rows' | 'rowStart'>, matrixRows: number): boolean {
  return part.rows % 4 === 0 && part.rowStart % 4 === 0 && matrixRows % 4 === 0;
}

/**
 * The tiling of a product on subgroup matrices, of m rows with n rows of k columns; none where other kernels do it. Dispatches end with
 * their last workgroup: of many rows the block counts that makes most of all the rounds that the device takes for them.
 */
function matrixTilingFor(kernels: ModelKernels, size: ProductSize): MatrixGemmTiling | undefined {
  const { matrix, activation, profile } = kernels;
  const { m, k } = size;
  if (!matrix || activation !== 'f16' || m <= GEMV_ROWS) return undefined;
  if (!hasManyRows(m)) return gemmTilingFor(fewRowsTiling(matrix, profile.limits, m), k);
  const cost = (t: MatrixGemmTiling): number => {
    const { workgroups, share } = blocksOf(kernels, t, size);
    const [x, y, shares] = workgroups;
    const rounds = Math.ceil((x * y * shares) / workgroupsToFill(profile, blockBytes(t)));
    return rounds * blockCost(t, share) + (shares > 1 ? SHARES_COST : 0);
  };
  return manyRowsTilings(matrix, k).reduce((best, t) => (cost(t) < cost(best) ? t : best));
}

/** The tilings of products of many rows with matrices of so many columns. */
function manyRowsTilings(matrix: MatrixGemmTiling, columns: number): readonly MatrixGemmTiling[] {
  return blocksForManyRows(matrix).map((t) => gemmTilingFor(t, columns));
}

/** The kernels of all of {@link manyRowsTilings}, without shares, where a product has many rows and runs on subgroup matrices. */
function manyRowsShaders(
  { matrix, activation, profile }: ModelKernels,
  part: Pick<WeightPart, 'type' | 'rows' | 'rowStart'>,
  { rows: matrixRows, columns, bias }: { readonly rows: number; readonly columns: number; readonly bias: boolean },
  output: MatrixProductOutput,
  rows: number,
): readonly ShaderSpec[] {
  if (!matrix || activation !== 'f16' || !hasManyRows(rows) || !isAligned(part, matrixRows)) return [];
  return manyRowsTilings(matrix, columns).map((t) =>
    matrixGemmShader({ ...t, split: false }, part.type, output, bias, profile.checked),
  );
}

/** Words of `GemmParams`, see shaders/model/gemm_bindings.wgsl. */
export function gemmParams(
  rows: number,
  part: Pick<WeightPart, 'rows' | 'rowStart'>,
  columns: number,
  firstRow: number,
  stride: number,
  upStart = 0,
  eps = 0,
  share = columns,
): Uint32Array<ArrayBuffer> {
  const words = [rows, part.rows, columns, (firstRow * columns) / 4, columns / 4, part.rowStart, stride, 1, upStart];
  return new Uint32Array([...words, f32Bits(eps), share]);
}

/** Turns weights into f16, see shaders/model/dequantize.wgsl. */
export function dequantizeShader(type: WeightType): ShaderSpec {
  return lazyShader({ label: `gemm weights ${type} to f16`, bindings: ['uniform', 'read', 'write'] }, () =>
    [prelude({}), weightLibrary(type), dequantize].join('\n'),
  );
}

/** Whether a product of so many rows turns such weights into f16 first. */
function dequantizes({ dequantizeFrom, activation }: ModelKernels, type: WeightType, rows: number): boolean {
  return dequantizeFrom !== undefined && activation === 'f16' && type !== 'f16' && rows > GEMV_ROWS && rows >= dequantizeFrom;
}

/**
 * Every shader that {@link recordProduct} takes for a matrix and so many rows, or {@link recordSwigluProduct}. Of many rows it has those
 * for any other number of them, too, but for shares of the columns: prompts have any length, and slabs of weights any part of the rows.
 */
export function productShaders(
  kernels: ModelKernels,
  matrix: Matrix,
  output: MatrixProductOutput,
  rows: number,
  norm = false,
): ShaderSpec[] {
  const shape = shapeOf(matrix);
  return matrix.parts.flatMap((part) => {
    const first = dequantizes(kernels, part.type, rows);
    const read = first ? ({ ...part, type: 'f16' } as const) : part;
    const { shader, shares } = productShader(kernels, read, shape, output, rows, norm);
    return [
      ...(first ? [dequantizeShader(part.type)] : []),
      shader,
      ...(shares ? [shares.combine] : []),
      ...manyRowsShaders(kernels, read, shape, output, rows),
    ];
  });
}

/** Records C (+)= A W^T + bias, with a norm in front of it if there is one. */
export function recordProduct(rec: Recorder, kernels: ModelKernels, product: Product): void {
  for (const part of product.matrix.parts) {
    if (!dequantizes(kernels, part.type, product.rows)) {
      recordPart(rec, kernels, product, part);
      continue;
    }
    const { columns } = product.matrix;
    for (const { first, rows } of slabs(kernels, part.rows, columns)) {
      const buffer = rec.workspace('weights as f16', 2 * rows * columns);
      recordDequantize(rec, kernels, part, { first, rows, columns }, buffer);
      recordPart(rec, kernels, product, { type: 'f16', buffer, rows, rowStart: part.rowStart + first });
      rec.release(buffer);
    }
  }
}

/** Rows of weights whose f16 fits {@link DEQUANTIZED_BYTES} and one binding: all at once, or slabs of whole blocks. */
function slabs({ profile, matrix }: ModelKernels, rows: number, columns: number): { first: number; rows: number }[] {
  const { maxStorageBufferBindingSize, maxBufferSize } = profile.limits;
  const most = Math.floor(Math.min(DEQUANTIZED_BYTES, maxStorageBufferBindingSize, maxBufferSize) / (2 * columns));
  const block = matrix?.blockN ?? 64;
  const each = most >= rows ? rows : Math.max(block, Math.floor(most / block) * block);
  return Array.from({ length: Math.ceil(rows / each) }, (_, i) => ({ first: i * each, rows: Math.min(each, rows - i * each) }));
}

/** Records the turning of some rows of weights into f16, from row `to` of `halves` on. */
function recordDequantize(
  rec: Recorder,
  kernels: ModelKernels,
  part: WeightPart,
  { first, rows, columns }: { readonly first: number; readonly rows: number; readonly columns: number },
  halves: GPUBuffer,
  to = 0,
): void {
  rec.dispatch({
    stage: 'kernel',
    shader: dequantizeShader(part.type),
    bindings: [rec.constant([rows, columns, first, to]), part.buffer, halves],
    workgroups: grid(kernels, Math.ceil((rows * columns) / 8 / 256)),
    flops: rows * columns,
  });
}

/** A product, or gate and up of {@link recordSwigluProduct}. */
export type AnyProduct = Omit<Product, 'output'> & { readonly output: MatrixProductOutput };

/** Records the columns of C that a part of the weights gives; `upStart` as in shaders/model/gemm_bindings.wgsl. */
function recordPart(rec: Recorder, kernels: ModelKernels, product: AnyProduct, part: WeightPart, upStart = 0): void {
  const { matrix, norm, output, rows } = product;
  const kernel = productShader(kernels, part, shapeOf(matrix), output, rows, norm !== undefined);
  recordKernel(rec, kernels, product, part, kernel, upStart);
}

/** The same by a kernel that is given. */
export function recordKernel(
  rec: Recorder,
  kernels: ModelKernels,
  product: AnyProduct,
  part: WeightPart,
  { shader, workgroups, shares }: ProductKernel,
  upStart = 0,
): void {
  const { matrix, a, norm, firstRow = 0, rows, c, output } = product;
  const { columns, bias = part.buffer } = matrix;
  const [, , splits = 1] = workgroups;
  const sums = shares ? rec.workspace('sums of shares', splits * rows * part.rows * 4) : undefined;
  const params = sums
    ? gemmParams(rows, { ...part, rowStart: 0 }, columns, firstRow, part.rows, upStart, 0, shares?.columns)
    : gemmParams(rows, part, columns, firstRow, matrix.rows, upStart, norm?.eps);
  rec.dispatch({
    stage: 'kernel',
    shader,
    bindings: [
      rec.constant(params),
      part.buffer,
      a,
      bias,
      sums ?? c,
      ...(rows <= GEMV_ROWS ? [norm?.weight ?? part.buffer] : []),
    ],
    workgroups,
    flops: 2 * rows * part.rows * columns,
  });
  if (!sums || !shares) return;
  recordCombine(rec, kernels, shares.combine, { rows, part, stride: matrix.rows, splits, swiglu: output === 'swiglu' }, [
    sums,
    bias,
    c,
  ]);
  rec.release(sums);
}

/** Records the summing of shares: `[splits, rows, part.rows]` to columns of C. */
export function recordCombine(
  rec: Recorder,
  kernels: ModelKernels,
  shader: ShaderSpec,
  of: {
    readonly rows: number;
    readonly part: Pick<WeightPart, 'rows' | 'rowStart'>;
    readonly stride: number;
    readonly splits: number;
    readonly swiglu: boolean;
  },
  [sums, bias, c]: readonly [GPUBuffer, GPUBuffer, Bindable],
): void {
  const { rows, part, stride, splits, swiglu } = of;
  rec.dispatch({
    stage: 'kernel',
    shader,
    bindings: [rec.constant([rows, part.rows, splits, part.rowStart, stride]), sums, bias, c],
    workgroups: grid(kernels, Math.ceil((rows * part.rows) / (swiglu ? 2 : 1) / 256)),
    flops: splits * rows * part.rows,
  });
}

/** silu(A Wg^T) * (A Wu^T) for {@link recordSwigluProduct}. */
export interface SwigluProduct extends Pick<Product, 'a' | 'norm' | 'rows' | 'c'> {
  /** Gate, and as many rows of up below it. */
  readonly matrix: Matrix;
}

/** Rows of gate and of up that one dispatch of {@link recordSwigluProduct} does. */
interface SwigluSlab {
  readonly first: number;
  readonly rows: number;
  /** Of gate and of up. */
  readonly parts: readonly [WeightPart, WeightPart];
}

/**
 * Whether {@link recordSwigluProduct} can do a product of so many rows: few ones, or on subgroup matrices, with gate and up in one
 * buffer, or there with weights that become f16 first.
 */
export function fusesSwiglu(kernels: ModelKernels, matrix: Matrix, rows: number): boolean {
  if (matrix.bias) return false;
  if (rows <= GEMV_ROWS) return matrix.parts.length === 1;
  if (!matrixTilingFor(kernels, { m: rows, n: matrix.rows, k: matrix.columns }) || matrix.rows % 8 !== 0) return false;
  return matrix.parts.length === 1 || matrix.parts.every(({ type }) => dequantizes(kernels, type, rows));
}

/** Records C = silu(A Wg^T) * (A Wu^T), where {@link fusesSwiglu}: gate and up themselves never reach memory. */
export function recordSwigluProduct(rec: Recorder, kernels: ModelKernels, product: SwigluProduct): void {
  const { matrix, rows } = product;
  const { columns, parts } = matrix;
  const inner = matrix.rows / 2;
  /** Activations from `first` on, of `count` rows of gate and as many of up in a buffer. */
  const record = (type: WeightType, buffer: GPUBuffer, first: number, count: number): void => {
    const swiglu = { ...product, matrix: { rows: inner, columns, parts }, output: 'swiglu' } as const;
    recordPart(rec, kernels, swiglu, { type, buffer, rows: 2 * count, rowStart: first }, count);
  };
  const [only] = parts;
  if (only && parts.length === 1 && !dequantizes(kernels, only.type, rows)) {
    record(only.type, only.buffer, 0, inner);
    return;
  }
  for (const slab of swigluSlabs(kernels, matrix)) {
    const halves = rec.workspace('weights as f16', 4 * slab.rows * columns);
    slab.parts.forEach((part, i) => {
      const first = i * inner + slab.first - part.rowStart;
      recordDequantize(rec, kernels, part, { first, rows: slab.rows, columns }, halves, i * slab.rows);
    });
    record('f16', halves, slab.first, slab.rows);
    rec.release(halves);
  }
}

/** Rows of gate and up of which each lie in one part of the matrix, and of which both fit a slab. */
function swigluSlabs(kernels: ModelKernels, { rows, columns, parts }: Matrix): SwigluSlab[] {
  const inner = rows / 2;
  const partAt = (row: number): WeightPart => parts.find((p) => row < p.rowStart + p.rows) as WeightPart;
  const most = slabs(kernels, inner, 2 * columns)[0]?.rows ?? inner;
  const found: SwigluSlab[] = [];
  for (let first = 0; first < inner; ) {
    const pair = [partAt(first), partAt(inner + first)] as const;
    const ends = [pair[0].rowStart + pair[0].rows, pair[1].rowStart + pair[1].rows - inner];
    const end = Math.min(first + most, inner, ...ends);
    found.push({ first, rows: end - first, parts: pair });
    first = end;
  }
  return found;
}
