import { MATRIX_FEATURE, MATRIX_SHAPES } from '../../src/device/subgroup_matrix.js';
import { EMULATION_BYTES, emulatedOps } from '../../src/kernels/matrix_emulation.js';
import type { MatrixOps } from '../../src/kernels/matrix_ops.js';
import { blockBytes, blockProblem, blockSubgroups } from '../../src/kernels/matrix_product.js';
import { combineShader, gemmParams, recordCombine, shareColumns } from '../../src/model/gemm.js';
import {
  FEW_ROWS_TILINGS,
  GEMM_TILINGS,
  type GemmTilingShape,
  gemmTilingName,
  type MatrixGemmTiling,
  type MatrixProductOutput,
  matrixGemmShader,
  type ProductOutput,
} from '../../src/model/matrix_gemm.js';
import { BLOCK_LAYOUT, type WeightType } from '../../src/model/types.js';
import { product, swiglu } from '../../src/reference/model.js';
import { relativeError } from '../../src/reference/oracle.js';
import { dequantize } from '../../src/reference/quant.js';
import { assert, randomOf, type SuiteCase, type SuiteContext } from './context.js';
import { randomWeights, readNumbers, upload, uploadNumbers } from './model.js';
import { gpuOf, recorderOf, roundToF16, submit } from './tensors.js';

const TYPES = Object.keys(BLOCK_LAYOUT) as WeightType[];

/** The binding after those of a product. */
const BANK = 5;

/** One product on subgroup matrices. */
export interface MatrixProduct {
  readonly tiling: MatrixGemmTiling;
  readonly type: WeightType;
  readonly output: ProductOutput;
  readonly m: number;
  readonly n: number;
  readonly k: number;
  /** Whether it relies on WGSL's checks of loads. */
  readonly checked?: boolean;
}

/** What a product on matrices needs to know beside {@link MatrixProduct}. */
interface MatrixProductOptions {
  readonly output: MatrixProductOutput;
  readonly bias: boolean;
  readonly rowStart: number;
  readonly firstRow: number;
  readonly stride: number;
  readonly upStart: number;
}

/** Runs a kernel on weights, A, bias and C; emulated on a device without subgroup matrices. */
async function runOnMatrices(
  { device, profile }: SuiteContext,
  run: Omit<MatrixProduct, 'output'> & MatrixProductOptions,
  [weights, a, biases, c]: readonly [GPUBuffer, GPUBuffer, GPUBuffer, GPUBuffer],
): Promise<void> {
  const { tiling, type, output, m, n, k, bias, checked, rowStart, firstRow, stride, upStart } = run;
  const ops: MatrixOps | undefined = device.features.has(MATRIX_FEATURE) ? undefined : emulatedOps(tiling.shape, BANK);
  const shader = matrixGemmShader(tiling, type, output, bias, checked, ops);
  const kernels = { profile, activation: 'f16' } as const;
  const combine = combineShader(kernels, output, bias);
  await gpuOf(device).pipelines.prepare([shader, combine]);
  const splits = tiling.split ? 3 : 1;
  const share = shareColumns(k, tiling.depth, splits);
  const workgroups = [Math.ceil(m / tiling.blockM), Math.ceil(n / tiling.blockN), Math.ceil(k / share)] as const;
  const rec = recorderOf(device);
  const invocations = workgroups[0] * workgroups[1] * workgroups[2] * blockSubgroups(tiling) * 32;
  const bank = ops ? [rec.workspace('emulated matrices', invocations * EMULATION_BYTES)] : [];
  const part = { rows: n, rowStart };
  const sums = tiling.split ? rec.workspace('sums of shares', workgroups[2] * m * n * 4) : undefined;
  const params = sums
    ? gemmParams(m, { ...part, rowStart: 0 }, k, firstRow, n, upStart, 0, share)
    : gemmParams(m, part, k, firstRow, stride, upStart);
  rec.dispatch({
    stage: 'kernel',
    shader,
    bindings: [rec.constant(params), weights, a, biases, sums ?? c, ...bank],
    workgroups,
  });
  if (sums) {
    const of = { rows: m, part, stride, splits: workgroups[2], swiglu: output === 'swiglu' };
    recordCombine(rec, kernels, combine, of, [sums, biases, c]);
  }
  submit(rec);
}

/** Runs a product, with a bias, against the oracle; emulated on a device without subgroup matrices. */
export async function checkMatrixProduct(ctx: SuiteContext, name: string, run: MatrixProduct): Promise<void> {
  const { device } = ctx;
  const { type, output, m, n, k } = run;
  const random = randomOf(ctx, name);
  // Columns before and after the ones of this dispatch stay as they are.
  const [rowStart, width] = [8, n + 20];
  const bytes = randomWeights(type, n, k, random);
  const bias = random.normals(width);
  const firstRow = 1;
  const a = roundToF16(random.normals((m + firstRow) * k));
  const before = roundToF16(random.normals(m * width, 3));
  const dtype = output === 'activation' ? 'f16' : 'f32';
  const c = uploadNumbers(device, before, dtype);
  await runOnMatrices(ctx, { ...run, bias: true, rowStart, firstRow, stride: width, upStart: 0 }, [
    upload(device, bytes, bytes.byteLength + 4),
    uploadNumbers(device, a, 'f16'),
    uploadNumbers(device, bias, 'f32'),
    c,
  ]);
  // What the matrices see of the weights.
  const w = roundToF16(dequantize(type, bytes));
  const expected = product(a.subarray(firstRow * k), w, m, k, bias.subarray(rowStart, rowStart + n));
  const actual = await readNumbers(device, c, m * width, dtype);
  const inside = new Float64Array(m * n);
  for (let row = 0; row < m; row++) {
    for (let column = 0; column < width; column++) {
      const at = row * width + column;
      const own = column - rowStart;
      if (own < 0 || own >= n) {
        assert(actual[at] === before[at], `${name}: column ${column} of row ${row} was written`);
      } else {
        inside[row * n + own] = actual[at] as number;
        if (output === 'add') expected[row * n + own] = (expected[row * n + own] as number) + (before[at] as number);
      }
    }
  }
  const error = relativeError(inside, expected);
  assert(error <= (dtype === 'f16' ? 1e-3 : 1e-5), `${name}: relative error ${error}`);
}

/** One SwiGLU of two products on subgroup matrices; `inner` rows of gate, and of up. */
type MatrixSwiglu = Omit<MatrixProduct, 'output' | 'n'> & { readonly inner: number };

/** Runs gate and up against the oracle; emulated on a device without subgroup matrices. */
async function checkMatrixSwiglu(ctx: SuiteContext, name: string, run: MatrixSwiglu): Promise<void> {
  const { device } = ctx;
  const { type, m, inner, k } = run;
  const random = randomOf(ctx, name);
  // Rows between gate and up that are neither, and columns on both sides that stay as they are.
  const [gap, first, width] = [64, 8, inner + 20];
  const bytes = randomWeights(type, 2 * inner + gap, k, random);
  const a = roundToF16(random.normals(m * k));
  const before = roundToF16(random.normals(m * width, 3));
  const c = uploadNumbers(device, before, 'f16');
  const weights = upload(device, bytes, bytes.byteLength + 4);
  const where = { rowStart: first, firstRow: 0, stride: width, upStart: inner + gap };
  await runOnMatrices(ctx, { ...run, ...where, output: 'swiglu', n: 2 * inner, bias: false }, [
    weights,
    uploadNumbers(device, a, 'f16'),
    weights,
    c,
  ]);
  const w = roundToF16(dequantize(type, bytes));
  const part = (row: number): Float64Array => product(a, w.subarray(row * k, (row + inner) * k), m, k);
  const expected = swiglu(part(0), part(inner + gap));
  const actual = await readNumbers(device, c, m * width, 'f16');
  const inside = new Float64Array(m * inner);
  actual.forEach((x, at) => {
    const [row, column] = [Math.floor(at / width), (at % width) - first];
    if (column >= 0 && column < inner) inside[row * inner + column] = x;
    else assert(x === before[at], `${name}: column ${column + first} of row ${row} was written`);
  });
  const error = relativeError(inside, expected);
  assert(error <= 1e-3, `${name}: relative error ${error}`);
}

/** Gate and up in strips, in halves of strips and in 16 KiB; whole and ragged blocks, with and without rows past the end. */
const swigluCases: SuiteCase[] = (
  [
    [160, 'f16', true],
    [160, 'f16', false],
    [192, 'f16', true],
    [64, 'q8_0', true],
    [64, 'q6_k', false],
  ] as const
).map(([blockM, type, checked]): SuiteCase => {
  const halves = blockM === 192;
  const t = GEMM_TILINGS.find((tiling) => tiling.blockM === blockM && (tiling.subgroupN % 16 !== 0) === halves);
  const shape = { m: 16, n: halves ? 8 : 16, k: 16 } as const;
  const name = `SwiGLU on matrices: ${t && gemmTilingName({ ...t, shape })}, ${type}${checked ? '' : ', clamped'}`;
  return {
    name,
    needs: 'f16',
    run: (ctx) => {
      assert(t !== undefined, `there is no tiling of ${blockM} rows`);
      const tiling = fitting({ ...t, shape }, ctx.profile.limits.maxComputeWorkgroupStorageSize);
      const size = { m: tiling.blockM + 9, inner: tiling.blockN / 2 + 20, k: type === 'q6_k' ? 256 : 192 };
      return checkMatrixSwiglu(ctx, name, { tiling, type, checked, ...size });
    },
  };
});

/** The tiling, with smaller blocks where it does not fit the device's workgroup memory. */
function fitting(t: MatrixGemmTiling, memory: number): MatrixGemmTiling {
  if (blockBytes(t) <= memory) return t;
  const narrow = t.blockN >= t.blockM && t.blockN > t.subgroupN && t.blockN % 32 === 0;
  return fitting(narrow ? { ...t, blockN: t.blockN / 2 } : { ...t, blockM: t.blockM / 2 }, memory);
}

/** Several groups of blocks, the last one smaller, and two columns of blocks; with and without rows past the end. */
const groups: SuiteCase = {
  name: 'product on matrices: groups of blocks',
  needs: 'f16',
  run: async (ctx) => {
    const small = GEMM_TILINGS.find((t) => t.blockM === 64) ?? GEMM_TILINGS[0];
    assert(small !== undefined, 'there is no tiling');
    const tiling = { ...small, shape: { m: 16, n: 8, k: 16 } as const, groupRows: 2 * small.blockM };
    const size = { m: 4 * tiling.blockM + 7, n: tiling.blockN + 36, k: 96 };
    await checkMatrixProduct(ctx, groups.name, { tiling, type: 'f16', output: 'f32', ...size });
    await checkMatrixProduct(ctx, groups.name, { tiling, type: 'f16', output: 'f32', ...size, checked: false });
  },
};

/** Every tiling on an odd number of rows and a ragged number of columns; types, shapes and results in turn. */
export const matrixGemmCases: SuiteCase[] = [groups, ...swigluCases, ...GEMM_TILINGS.map(tilingCase), ...sharesCases()];

/** Few rows, whose columns are dealt out in three shares, of which the last is smaller. */
function sharesCases(): SuiteCase[] {
  const shape = { m: 16, n: 16, k: 16 } as const;
  return FEW_ROWS_TILINGS.map((few, i): SuiteCase => {
    const name = `shares of a product on matrices: ${few.blockM} rows`;
    return {
      name,
      needs: 'f16',
      run: async (ctx) => {
        const fits = fitting(
          { ...few, shape, depth: i === 1 ? 32 : few.depth },
          ctx.profile.limits.maxComputeWorkgroupStorageSize,
        );
        const tiling = { ...fits, split: true };
        const [m, k] = [few.blockM - 11, 8 * tiling.depth];
        const output = (['add', 'activation', 'f32'] as const)[i % 3] ?? 'f32';
        await checkMatrixProduct(ctx, name, { tiling, type: i === 0 ? 'q8_0' : 'f16', output, m, n: tiling.blockN + 4, k });
        if (i < 2) await checkMatrixSwiglu(ctx, `${name} swiglu`, { tiling, type: 'f16', m, inner: tiling.blockN / 2 + 4, k });
      },
    };
  });
}

function tilingCase(t: GemmTilingShape, i: number): SuiteCase {
  const shapes = MATRIX_SHAPES.filter((shape) => blockProblem({ ...t, shape }) === undefined);
  const shape = shapes[i % shapes.length] ?? { m: 16, n: 8, k: 16 };
  const type = TYPES[i % TYPES.length] ?? 'f16';
  const output = (['activation', 'add', 'f32'] as const)[i % 3] ?? 'f32';
  const name = `product on matrices: ${gemmTilingName({ ...t, shape })}, ${type}, ${output}`;
  return {
    name,
    needs: 'f16',
    run: (ctx) => {
      const tiling = fitting({ ...t, shape }, ctx.profile.limits.maxComputeWorkgroupStorageSize);
      // One whole block and a ragged one.
      const size = { m: tiling.blockM + 7, n: i % 2 === 0 ? tiling.blockN + 36 : 36, k: type.endsWith('_k') ? 256 : 192 };
      return checkMatrixProduct(ctx, name, { tiling, type, output, ...size });
    },
  };
}
