import { MATRIX_FEATURE, MATRIX_SHAPES } from '../../src/device/subgroup_matrix.js';
import { EMULATION_BYTES, emulatedOps } from '../../src/kernels/matrix_emulation.js';
import type { MatrixOps } from '../../src/kernels/matrix_ops.js';
import { gemmParams } from '../../src/model/gemm.js';
import {
  GEMM_TILINGS,
  type GemmTilingShape,
  gemmSubgroups,
  gemmTilingName,
  gemmTilingProblem,
  gemmWorkgroupBytes,
  type MatrixGemmTiling,
  type MatrixProductOutput,
  matrixGemmShader,
  type ProductOutput,
} from '../../src/model/matrix_gemm.js';
import type { WeightType } from '../../src/model/types.js';
import { product, swiglu } from '../../src/reference/model.js';
import { relativeError } from '../../src/reference/oracle.js';
import { dequantize } from '../../src/reference/quant.js';
import { assert, randomOf, type SuiteCase, type SuiteContext } from './context.js';
import { randomWeights, readNumbers, upload, uploadNumbers } from './model.js';
import { gpuOf, recorderOf, roundToF16, submit } from './tensors.js';

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

/** Runs a kernel on its bindings; emulated on a device without subgroup matrices. */
async function runOnMatrices(
  { device }: SuiteContext,
  run: Omit<MatrixProduct, 'output' | 'k'> & { readonly output: MatrixProductOutput; readonly bias: boolean },
  [params, ...buffers]: readonly [Uint32Array, ...GPUBuffer[]],
): Promise<void> {
  const { tiling, type, output, m, n, bias, checked } = run;
  const ops: MatrixOps | undefined = device.features.has(MATRIX_FEATURE) ? undefined : emulatedOps(tiling.shape, BANK);
  const shader = matrixGemmShader(tiling, type, output, bias, checked, ops);
  await gpuOf(device).pipelines.prepare([shader]);
  const workgroups = [Math.ceil(m / tiling.blockM), Math.ceil(n / tiling.blockN)] as const;
  const rec = recorderOf(device);
  const invocations = workgroups[0] * workgroups[1] * gemmSubgroups(tiling) * 32;
  const bank = ops ? [rec.workspace('emulated matrices', invocations * EMULATION_BYTES)] : [];
  rec.dispatch({ stage: 'kernel', shader, bindings: [rec.constant(params), ...buffers, ...bank], workgroups });
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
  await runOnMatrices(ctx, { ...run, bias: true }, [
    gemmParams(m, { rows: n, rowStart }, k, firstRow, width),
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
  await runOnMatrices(ctx, { ...run, output: 'swiglu', n: 2 * inner, bias: false }, [
    gemmParams(m, { rows: 2 * inner, rowStart: first }, k, 0, width, inner + gap),
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
  if (gemmWorkgroupBytes(t) <= memory) return t;
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
export const matrixGemmCases: SuiteCase[] = [groups, ...swigluCases, ...GEMM_TILINGS.map(tilingCase)];

function tilingCase(t: GemmTilingShape, i: number): SuiteCase {
  const shapes = MATRIX_SHAPES.filter((shape) => gemmTilingProblem({ ...t, shape }) === undefined);
  const shape = shapes[i % shapes.length] ?? { m: 16, n: 8, k: 16 };
  const type = (['f16', 'q8_0', 'q4_0', 'q4_1', 'q6_k', 'q4_k', 'f32'] as const)[i % 7] ?? 'f16';
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
