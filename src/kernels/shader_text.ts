import storageF16 from '../../shaders/lib/storage_f16.wgsl?raw';
import storageF16Packed from '../../shaders/lib/storage_f16_packed.wgsl?raw';
import storageF32 from '../../shaders/lib/storage_f32.wgsl?raw';
import type { DeviceProfile } from '../device/profile.js';
import type { DType } from './tensor.js';

/** How a tensor's elements are read: `f16-packed` is f16 data on a device without `shader-f16`. */
export type StorageFormat = 'f32' | 'f16' | 'f16-packed';

/** The storage format of a tensor type on a device. */
export function storageFormat(profile: DeviceProfile, dtype: DType): StorageFormat {
  if (dtype === 'f32') return 'f32';
  return profile.tier === 'portable' ? 'f16-packed' : 'f16';
}

const STORAGE: Readonly<Record<StorageFormat, string>> = {
  f32: storageF32,
  f16: storageF16,
  'f16-packed': storageF16Packed,
};

/** shaders/lib/storage_*.wgsl: `StorageVec4`, `elements`, `unpack_vec4`, `pack_vec4`. */
export function storageLibrary(format: StorageFormat): string {
  return STORAGE[format];
}

/** What {@link prelude} writes at the top of a shader. */
export interface PreludeOptions {
  readonly f16?: boolean;
  readonly subgroups?: boolean;
  readonly aliases?: Readonly<Record<string, string>>;
  /** u32 constants. They size register arrays, which `override` constants cannot. */
  readonly constants?: Readonly<Record<string, number>>;
}

/** The head of a specialised shader: `enable` directives, aliases and constants. */
export function prelude(options: PreludeOptions): string {
  const lines: string[] = [];
  if (options.f16) lines.push('enable f16;');
  if (options.subgroups) lines.push('enable subgroups;', 'diagnostic(off, subgroup_uniformity);');
  for (const [name, type] of Object.entries(options.aliases ?? {})) lines.push(`alias ${name} = ${type};`);
  for (const [name, value] of Object.entries(options.constants ?? {})) lines.push(`const ${name}: u32 = ${value}u;`);
  return `${lines.join('\n')}\n`;
}

/**
 * A shader whose loops are bounded by constants times UNIT. Bare, so that compilers unroll them; or times `one`, an expression that is 1
 * only at run time, where that would compile for too long.
 */
export function withUnit(source: string, one?: string): string {
  return source.replaceAll(' * UNIT', one ? ` * ${one}` : '');
}
