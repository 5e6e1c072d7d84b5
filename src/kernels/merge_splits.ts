import headEntry from '../../shaders/lib/head_entry.wgsl?raw';
import mergeSplits from '../../shaders/merge_splits.wgsl?raw';
import { lazyShader, type ShaderSpec } from '../device/pipelines.js';
import { prelude, type StorageFormat, storageLibrary } from './shader_text.js';

/** Threads of a workgroup that share an element of the output, and elements of a workgroup. */
const PARTS = 8;
/** Elements (vec4) of the output that a workgroup makes. */
export const MERGE_ITEMS = 32;

/** The kernel that joins the results of splits (shaders/merge_splits.wgsl). */
export function mergeSplitsShader(headDim: number, storage: StorageFormat): ShaderSpec {
  const bindings = ['uniform', 'read', 'read', 'read', 'write', 'write'] as const;
  return lazyShader({ label: `merge splits D=${headDim} ${storage}`, bindings }, () =>
    [
      prelude({ f16: storage === 'f16', constants: { HEAD_DIM: headDim, ITEMS: MERGE_ITEMS, PARTS } }),
      storageLibrary(storage),
      headEntry,
      mergeSplits,
    ].join('\n'),
  );
}
