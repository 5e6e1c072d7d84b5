import { Float16Array } from '@petamoriken/float16';
import { type MatrixShape, matrixShapes } from '../src/device/subgroup_matrix.js';
import { median } from './measure.js';
import copySource from './shaders/copy.wgsl?raw';
import fmaSource from './shaders/fma.wgsl?raw';
import matrixSource from './shaders/matrix.wgsl?raw';

const REPETITIONS = 10;

/** Times `dispatch` as the median of several timed passes after a warm-up of as many passes, in milliseconds. */
async function timePasses(device: GPUDevice, encode: (pass: GPUComputePassEncoder) => void, warmUp = 2): Promise<number> {
  const querySet = device.createQuerySet({ type: 'timestamp', count: 2 * REPETITIONS });
  const bytes = 16 * REPETITIONS;
  const resolved = device.createBuffer({ size: bytes, usage: GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC });
  const readback = device.createBuffer({ size: bytes, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
  const encoder = device.createCommandEncoder();
  for (let i = -warmUp; i < REPETITIONS; i++) {
    const timestampWrites = { querySet, beginningOfPassWriteIndex: 2 * i, endOfPassWriteIndex: 2 * i + 1 };
    const pass = encoder.beginComputePass(i < 0 ? {} : { timestampWrites });
    encode(pass);
    pass.end();
  }
  encoder.resolveQuerySet(querySet, 0, 2 * REPETITIONS, resolved, 0);
  encoder.copyBufferToBuffer(resolved, 0, readback, 0, bytes);
  device.queue.submit([encoder.finish()]);
  await readback.mapAsync(GPUMapMode.READ);
  const ns = new BigUint64Array(readback.getMappedRange().slice(0));
  for (const thing of [querySet, resolved, readback]) thing.destroy();
  return median(Array.from({ length: REPETITIONS }, (_, i) => Number((ns[2 * i + 1] ?? 0n) - (ns[2 * i] ?? 0n)) / 1e6));
}

/** What this device reaches at best from WGSL. */
export interface Ceilings {
  /** f32 fused multiply-adds, in TFLOPS. */
  readonly fmaF32: number;
  /** f16 fused multiply-adds, in TFLOPS; absent without `shader-f16`. */
  readonly fmaF16?: number;
  /** f16 subgroup matrix products with f32 results, the best of the device's shapes, in TFLOPS; absent without them. */
  readonly matrix?: number;
  /** The same after a second and a half of it, when clocks have come down to what power allows; where asked for. */
  readonly matrixSustained?: number;
  /** Bytes read plus bytes written by a copy, in GB/s. */
  readonly copyGBs: number;
}

/** 16x16 f16 elements, or 16 rows of 16 f32 in two: the room of any operand, in vec4<u32> elements. */
const OPERAND = 32;

/** The text of the subgroup matrix ceiling for one shape. */
export function matrixCeilingShader({ m, n, k }: MatrixShape): string {
  return `enable f16;
enable subgroups;
enable chromium_experimental_subgroup_matrix;
diagnostic(off, chromium.subgroup_matrix_uniformity);
alias Left = subgroup_matrix_left<f16, ${k}, ${m}>;
alias Right = subgroup_matrix_right<f16, ${n}, ${k}>;
alias Result = subgroup_matrix_result<f32, ${n}, ${m}>;
const STEP = ${OPERAND}u;
${matrixSource}`;
}

/**
 * Measures the device's ceilings, for roofline percentages.
 * @param scale 1 on a GPU; less on slow devices.
 * @param sustained whether to measure matrices under load too, which leaves the device warm.
 */
export async function measureCeilings(device: GPUDevice, scale = 1, sustained = false): Promise<Ceilings> {
  const out = device.createBuffer({ size: 65536, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST });
  /** Milliseconds of a dispatch; the buffers are its bindings 0, 1, ... */
  const timed = (
    code: string,
    constants: Record<string, number>,
    buffers: GPUBuffer[],
    groups: number,
    warmUp?: number,
  ): Promise<number> => {
    const module = device.createShaderModule({ code });
    const pipeline = device.createComputePipeline({ layout: 'auto', compute: { module, constants } });
    const group = device.createBindGroup({
      layout: pipeline.getBindGroupLayout(0),
      entries: buffers.map((buffer, binding) => ({ binding, resource: { buffer } })),
    });
    const encode = (pass: GPUComputePassEncoder): void => {
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, group);
      pass.dispatchWorkgroups(groups);
    };
    return timePasses(device, encode, warmUp);
  };
  const fma = async (type: 'f32' | 'f16'): Promise<number> => {
    const loops = Math.max(4, Math.round(1024 * scale));
    const groups = Math.max(8, Math.round(8192 * scale));
    const code = `${type === 'f16' ? 'enable f16;\n' : ''}alias T = vec4<${type}>;\nalias S = ${type};\n${fmaSource}`;
    const ms = await timed(code, { LOOPS: loops }, [out], groups);
    return (groups * 256 * loops * 64 * 2) / ms / 1e9; // 16 vec4 accumulators, 2 operations each
  };
  const matrix = async (shape: MatrixShape, warmUp?: number): Promise<number> => {
    const loops = Math.max(4, Math.round(4096 * scale));
    const groups = Math.max(8, Math.round(4096 * scale));
    // Numbers as attention has them: products of zeros draw less power and run at a higher clock.
    const operands = Float16Array.from({ length: 8 * 8 * OPERAND }, () => Math.random() - 0.5);
    device.queue.writeBuffer(out, 0, operands.buffer);
    const ms = await timed(matrixCeilingShader(shape), { LOOPS: loops }, [out], groups, warmUp);
    // 4 subgroups of 32 in a workgroup, 8 products each.
    return (groups * 4 * loops * 8 * 2 * shape.m * shape.n * shape.k) / ms / 1e9;
  };
  const copy = async (): Promise<number> => {
    const bytes = Math.min(device.limits.maxStorageBufferBindingSize, Math.max(2 ** 22, 2 ** 30 * scale)) & ~255;
    const usage = GPUBufferUsage.STORAGE;
    const [from, to] = [device.createBuffer({ size: bytes, usage }), device.createBuffer({ size: bytes, usage })];
    const ms = await timed(copySource, {}, [from, to], Math.min(8192, Math.ceil(bytes / 16 / 256)));
    from.destroy();
    to.destroy();
    return (2 * bytes) / ms / 1e6;
  };
  const matrices: number[] = [];
  const shapes = matrixShapes(device);
  for (const shape of shapes) matrices.push(await matrix(shape));
  const best = shapes[matrices.indexOf(Math.max(...matrices))];
  // A pass at the best rate takes about 3.5 ms.
  const matrixSustained = best && sustained ? await matrix(best, 430) : undefined;
  const result: Ceilings = {
    fmaF32: await fma('f32'),
    ...(device.features.has('shader-f16') ? { fmaF16: await fma('f16') } : {}),
    ...(matrices.length > 0 ? { matrix: Math.max(...matrices) } : {}),
    ...(matrixSustained === undefined ? {} : { matrixSustained }),
    copyGBs: await copy(),
  };
  out.destroy();
  return result;
}
