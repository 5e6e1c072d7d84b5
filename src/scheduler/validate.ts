import type { DeviceProfile } from '../device/profile.js';
import { checkInteger, checkOneOf, invalidArgument, limitExceeded, MinferenceError, show } from '../errors.js';
import { HEAD_DIMS } from '../kernels/attention.js';
import { BYTES, type Tensor } from '../kernels/tensor.js';
import { resolveStaticPattern } from '../patterns/static.js';
import type { AttentionLayer, HeadPattern, TensorBinding } from './types.js';

/** An {@link AttentionLayer} with every default filled in and everything checked. */
export interface ResolvedLayer {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  readonly o: Tensor;
  readonly lse: { readonly buffer: GPUBuffer; readonly offset: number } | undefined;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly seqLen: number;
  readonly kvLen: number;
  readonly queryOffset: number;
  readonly scale: number;
  /** One for each query head. */
  readonly patterns: readonly HeadPattern[];
}

/** Longest sequence: positions and counts stay well inside u32. */
export const MAX_LENGTH = 2 ** 26;
const MAX_HEADS = 4096;
const STORAGE_USAGE = 0x80;

/**
 * Checks a layer against its own shapes and against the device, and fills in the defaults.
 * @throws {@link MinferenceError} that names the argument, its value and what is allowed.
 */
export function resolveLayer(profile: DeviceProfile, layer: AttentionLayer): ResolvedLayer {
  checkObject('layer', layer);
  checkOneOf('dtype', layer.dtype, ['f16', 'f32']);
  checkInteger('numHeads', layer.numHeads, 1, MAX_HEADS);
  const numKvHeads = layer.numKvHeads ?? layer.numHeads;
  checkInteger('numKvHeads', numKvHeads, 1, layer.numHeads);
  if (layer.numHeads % numKvHeads !== 0) {
    throw invalidArgument('numKvHeads', numKvHeads, `a divisor of numHeads (${layer.numHeads})`);
  }
  if (!HEAD_DIMS.includes(layer.headDim as (typeof HEAD_DIMS)[number])) {
    throw invalidArgument('headDim', layer.headDim, HEAD_DIMS.join(', '));
  }
  checkInteger('seqLen', layer.seqLen, 1, MAX_LENGTH);
  if (layer.queryOffset !== undefined) checkInteger('queryOffset', layer.queryOffset, 0, MAX_LENGTH - layer.seqLen);
  const kvLen = layer.kvLen ?? (layer.queryOffset ?? 0) + layer.seqLen;
  checkInteger('kvLen', kvLen, layer.seqLen, MAX_LENGTH);
  const queryOffset = layer.queryOffset ?? kvLen - layer.seqLen;
  checkInteger('queryOffset', queryOffset, 0, kvLen - layer.seqLen);
  const layout = layer.layout ?? 'HND';
  checkOneOf('layout', layout, ['HND', 'NHD']);
  const scale = layer.scale ?? 1 / Math.sqrt(layer.headDim);
  if (typeof scale !== 'number' || !Number.isFinite(scale)) throw invalidArgument('scale', scale, 'a finite number');

  const shape = { profile, layer, layout };
  const q = tensor('q', layer.q, layer.numHeads, layer.seqLen, shape);
  const k = tensor('k', layer.k, numKvHeads, kvLen, shape);
  const v = tensor('v', layer.v, numKvHeads, kvLen, shape);
  const o = tensor('o', layer.o, layer.numHeads, layer.seqLen, shape);
  for (const [name, other] of [
    ['q', q],
    ['k', k],
    ['v', v],
  ] as const) {
    if (o.buffer === other.buffer)
      throw invalidArgument(
        'o',
        o.buffer,
        `a buffer other than ${name}'s: WebGPU cannot read and write one buffer in a dispatch`,
      );
  }
  const lse = resolveLse(layer, [q, k, v, o]);

  return {
    q,
    k,
    v,
    o,
    lse,
    numHeads: layer.numHeads,
    numKvHeads,
    headDim: layer.headDim,
    seqLen: layer.seqLen,
    kvLen,
    queryOffset,
    scale,
    patterns: resolvePatterns(layer.patterns, layer.numHeads),
  };
}

/** The kinds of patterns. */
export const PATTERN_KINDS: readonly HeadPattern['kind'][] = [
  'dense',
  'a_shape',
  'vertical_slash',
  'block_sparse',
  'tri_shape',
  'static_vertical_slash',
  'x_attention',
  'flex_prefill',
];

/** Checks one pattern and returns it without unknown properties. */
export function resolvePattern(argument: string, pattern: HeadPattern): HeadPattern {
  checkObject(argument, pattern);
  const max = MAX_LENGTH;
  switch (pattern.kind) {
    case 'dense':
      return { kind: 'dense' };
    case 'a_shape':
      checkInteger(`${argument}.initSize`, pattern.initSize, 0, max);
      checkInteger(`${argument}.localSize`, pattern.localSize, 1, max);
      return { kind: 'a_shape', initSize: pattern.initSize, localSize: pattern.localSize };
    case 'vertical_slash':
      checkInteger(`${argument}.verticalSize`, pattern.verticalSize, 0, max);
      checkInteger(`${argument}.slashSize`, pattern.slashSize, 0, max);
      return { kind: 'vertical_slash', verticalSize: pattern.verticalSize, slashSize: pattern.slashSize };
    case 'block_sparse':
      checkInteger(`${argument}.topK`, pattern.topK, 1, max);
      return { kind: 'block_sparse', topK: pattern.topK };
    case 'tri_shape':
      checkInteger(`${argument}.initSize`, pattern.initSize, 0, max);
      checkInteger(`${argument}.localSize`, pattern.localSize, 1, max);
      checkInteger(`${argument}.lastSize`, pattern.lastSize, 0, max);
      return { kind: 'tri_shape', initSize: pattern.initSize, localSize: pattern.localSize, lastSize: pattern.lastSize };
    case 'static_vertical_slash':
      return resolveStaticPattern(argument, pattern);
    case 'x_attention':
      if (pattern.stride !== 8 && pattern.stride !== 16) throw invalidArgument(`${argument}.stride`, pattern.stride, '8, 16');
      checkShare(`${argument}.threshold`, pattern.threshold);
      return { kind: 'x_attention', stride: pattern.stride, threshold: pattern.threshold };
    case 'flex_prefill': {
      const { gamma = 0.9, tau = 0.1, minBudget = 1024 } = pattern;
      checkShare(`${argument}.gamma`, gamma);
      if (typeof tau !== 'number' || !(tau >= 0 && tau <= 1))
        throw invalidArgument(`${argument}.tau`, tau, 'a number from 0 to 1');
      checkInteger(`${argument}.minBudget`, minBudget, 0, max);
      return { kind: 'flex_prefill', gamma, tau, minBudget };
    }
    default:
      throw invalidArgument(
        `${argument}.kind`,
        (pattern as { kind: unknown }).kind,
        PATTERN_KINDS.map((k) => `"${k}"`).join(', '),
      );
  }
}

function checkShare(argument: string, value: number): void {
  if (typeof value !== 'number' || !(value > 0 && value <= 1))
    throw invalidArgument(argument, value, 'a number above 0, up to 1');
}

function resolvePatterns(patterns: HeadPattern | readonly HeadPattern[], numHeads: number): HeadPattern[] {
  if (!Array.isArray(patterns)) {
    const pattern = resolvePattern('patterns', patterns as HeadPattern);
    return new Array<HeadPattern>(numHeads).fill(pattern);
  }
  if (patterns.length !== numHeads)
    throw invalidArgument('patterns', patterns, `one pattern, or an array of numHeads (${numHeads})`);
  return Array.from(patterns as readonly HeadPattern[], (p, head) => resolvePattern(`patterns[${head}]`, p));
}

/** Throws unless `value` is an object. */
export function checkObject(argument: string, value: unknown): void {
  if (typeof value !== 'object' || value === null) throw invalidArgument(argument, value, 'an object');
}

function isBuffer(value: unknown): value is GPUBuffer {
  const b = value as Partial<GPUBuffer> | null;
  return (
    typeof b === 'object' &&
    b !== null &&
    typeof b.size === 'number' &&
    typeof b.usage === 'number' &&
    typeof b.mapAsync === 'function'
  );
}

function checkBuffer(argument: string, value: unknown): asserts value is GPUBuffer {
  if (!isBuffer(value)) throw invalidArgument(argument, value, 'a GPUBuffer');
  if ((value.usage & STORAGE_USAGE) === 0) {
    throw invalidArgument(`${argument}.usage`, value.usage, 'a buffer created with GPUBufferUsage.STORAGE');
  }
  if (value.mapState !== 'unmapped') throw invalidArgument(`${argument}.mapState`, value.mapState, '"unmapped"');
}

interface ShapeContext {
  readonly profile: DeviceProfile;
  readonly layer: AttentionLayer;
  readonly layout: 'HND' | 'NHD';
}

function tensor(name: string, input: GPUBuffer | TensorBinding, heads: number, rows: number, context: ShapeContext): Tensor {
  const { headDim, dtype } = context.layer;
  checkObject(name, input);
  const binding: TensorBinding = isBuffer(input) ? { buffer: input } : input;
  checkBuffer(isBuffer(input) ? name : `${name}.buffer`, binding.buffer);
  const packed = context.layout === 'HND' ? { head: rows * headDim, row: headDim } : { head: headDim, row: heads * headDim };
  const headStride = binding.headStride ?? packed.head;
  const rowStride = binding.rowStride ?? packed.row;
  const bytes = BYTES[dtype];
  const offset = binding.offset ?? 0;
  const maxStride = 2 ** 34;
  for (const [field, value] of [
    ['headStride', headStride],
    ['rowStride', rowStride],
  ] as const) {
    checkInteger(`${name}.${field}`, value, 0, maxStride);
    if (value % 4 !== 0) throw invalidArgument(`${name}.${field}`, value, 'a multiple of 4 elements');
  }
  if (rowStride < headDim && rows > 1) throw invalidArgument(`${name}.rowStride`, rowStride, `at least headDim (${headDim})`);
  if (headStride < headDim && heads > 1) throw invalidArgument(`${name}.headStride`, headStride, `at least headDim (${headDim})`);
  checkInteger(`${name}.offset`, offset, 0, binding.buffer.size);
  if (offset % (4 * bytes) !== 0)
    throw invalidArgument(`${name}.offset`, offset, `a multiple of ${4 * bytes} bytes (four elements)`);
  const needed = offset + ((heads - 1) * headStride + (rows - 1) * rowStride + headDim) * bytes;
  if (needed > binding.buffer.size) {
    throw invalidArgument(
      `${name}.size`,
      binding.buffer.size,
      `at least ${needed} bytes for [${heads}, ${rows}, ${headDim}] ${dtype}`,
    );
  }
  const head = ((rows - 1) * rowStride + headDim) * bytes;
  const limit = context.profile.limits.maxStorageBufferBindingSize;
  if (head + 512 > limit)
    throw limitExceeded(`one head of ${name} ([${rows}, ${headDim}] ${dtype})`, head, 'maxStorageBufferBindingSize', limit);
  return { buffer: binding.buffer, dtype, heads, rows, headDim, offset: offset / bytes, headStride, rowStride };
}

function resolveLse(layer: AttentionLayer, tensors: readonly Tensor[]): ResolvedLayer['lse'] {
  if (layer.lse === undefined) return undefined;
  checkObject('lse', layer.lse);
  const { buffer, offset = 0 } = isBuffer(layer.lse) ? { buffer: layer.lse } : layer.lse;
  checkBuffer(isBuffer(layer.lse) ? 'lse' : 'lse.buffer', buffer);
  checkInteger('lse.offset', offset, 0, buffer.size);
  if (offset % 4 !== 0) throw invalidArgument('lse.offset', offset, 'a multiple of 4 bytes');
  const needed = offset + layer.numHeads * layer.seqLen * 4;
  if (needed > buffer.size)
    throw invalidArgument('lse.size', buffer.size, `at least ${needed} bytes for [${layer.numHeads}, ${layer.seqLen}] f32`);
  if (tensors.some((t) => t.buffer === buffer))
    throw invalidArgument('lse', buffer, 'a buffer other than those of q, k, v and o');
  return { buffer, offset };
}

/** Throws a `device-lost` error. */
export function deviceLost(info: GPUDeviceLostInfo): MinferenceError {
  return new MinferenceError('device-lost', `the GPU device was lost (${show(info.reason)}): ${info.message}`, { cause: info });
}
