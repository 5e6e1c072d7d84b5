import antidiagonalProducts from '../../shaders/index/antidiagonal_products.wgsl?raw';
import { lazyShader, type ShaderSpec } from '../device/pipelines.js';
import type { DeviceProfile } from '../device/profile.js';
import type { MatrixShape } from '../device/subgroup_matrix.js';
import { type MatrixOps, nativeOps } from '../kernels/matrix_ops.js';
import {
  blockFits,
  blockName,
  hasWholeRows,
  type ProductBlock,
  type ProductBlockShape,
  ProductWriter,
  type WordLoader,
} from '../kernels/matrix_product.js';
import { indent, text } from '../kernels/matrix_tiles.js';
import { prelude } from '../kernels/shader_text.js';
import { STATISTICS_ROWS } from './softmax_merge.js';

/**
 * Blocks of row groups and key groups, best first. Rows are whole strips of 64 statistics, and half of a subgroup's columns whole blocks of
 * 64 keys, of 8 or 4 groups.
 */
const BLOCKS: readonly ProductBlockShape[] = [
  { blockM: 192, blockN: 160, subgroupM: 48, subgroupN: 80, depth: 64 },
  { blockM: 128, blockN: 96, subgroupM: 64, subgroupN: 48, depth: 64 },
  { blockM: 64, blockN: 96, subgroupM: 32, subgroupN: 48, depth: 64 },
];

/** The block of XAttention's estimate on a device, if it has matrices that do. */
export function antidiagonalBlock({ matrix, limits }: Pick<DeviceProfile, 'matrix' | 'limits'>): ProductBlock | undefined {
  const shapes = matrix?.shapes ?? [];
  // Matrices of 8 columns are the faster ones here (bench/NOTES.md).
  const shape = shapes.find(({ n, k }) => n === 8 && k === 16) ?? shapes[0];
  if (!shape) return undefined;
  const fits = (b: ProductBlock): boolean => blockFits(b, limits) && hasWholeRows(b) && b.blockM % STATISTICS_ROWS === 0;
  return BLOCKS.map((b) => ({ ...b, shape })).find(fits);
}

/** Writes shaders/index/antidiagonal_products.wgsl for a block, a head size and a stride. */
export function antidiagonalProductsShader(
  block: ProductBlock,
  headDim: number,
  stride: number,
  checked: boolean,
  opsOf: (shape: MatrixShape) => MatrixOps = (shape) => nativeOps(shape, 'subgroup'),
): ShaderSpec {
  const ops = opsOf(block.shape);
  const spec: Omit<ShaderSpec, 'code'> = {
    label: `x-attention estimate: products D=${headDim} S=${stride} ${blockName(block)} ${ops.name}${checked ? '' : ' clamped'}`,
    bindings: ['uniform', 'uniform', 'read', 'read', 'read', 'write', 'write', ...ops.bindings],
  };
  return lazyShader(spec, () => {
    const writer = new ProductWriter(block, ops);
    const constants = { HEAD_DIM: headDim, STRIDE: stride, TILE_GROUPS: block.subgroupN, ...writer.constants() };
    const main = mainFunction(writer, ops);
    return [
      `enable f16;\n${ops.directives}`,
      prelude({ constants }),
      antidiagonalProducts,
      inBounds(checked),
      writer.workgroupMemory(),
      ops.declarations(),
      main,
    ].join('\n');
  });
}

/** Rows past the end are whatever lies there: WGSL's checks see to it that something does. */
function inBounds(checked: boolean): string {
  return `fn in_q(i: u32) -> u32 {
  return ${checked ? 'i' : 'min(i, params.n_q - 1u)'};
}

fn in_k(j: u32) -> u32 {
  return ${checked ? 'j' : 'min(j, params.q_offset + params.n_q - 1u)'};
}
`;
}

function mainFunction(writer: ProductWriter, ops: MatrixOps): string {
  const load: WordLoader = (of, { line, offset }, k0, group) =>
    of === 'a'
      ? `query_word(q_start, row0 + ${line} + ${offset}u, ${k0} / 8u + ${group})`
      : `key_word(k_start, column0 + ${line} + ${offset}u, ${k0} / 8u + ${group})`;
  return indent(
    text(
      '@compute @workgroup_size(THREADS)',
      `fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32${ops.builtins ? `, ${ops.builtins}` : ''}) {`,
      ops.prologue,
      `if (!block_is_visible(workgroup)) {
see_nothing(workgroup, thread);
return;
}
let head = heads[workgroup.z];
let q_start = (tensors.q_base + head.x * tensors.q_head_stride) >> 1u;
let k_start = (tensors.k_base + head.y * tensors.k_head_stride) >> 1u;
let row0 = params.first_row + workgroup.x * BLOCK_M;
let column0 = workgroup.y * BLOCK_N;`,
      writer.opening(),
      `let half = lane % 2u;
let tile_of_subgroup = workgroup.y * BLOCK_TILES + subgroup_column / TILE_GROUPS;
let first_key_group = column0 + subgroup_column + half * (TILE_GROUPS / 2u);
let sums_start = ((workgroup.z * params.row_tiles + workgroup.x) * params.tiles + tile_of_subgroup) * TILE_BLOCKS + half * HALF_BLOCKS;
let scores_start = scratch + lane / 2u * SLICE_STRIDE + half * HALF_WORDS;`,
      writer.products(load, '0u', 'LENGTH'),
      writer.sums(
        (row) => `{
let row = subgroup_row + ${row}u + lane / 2u;
let scores = row_half(scores_start, row0 + row, first_key_group);
let own_max = maximum_of(scores);
let m = ${ops.pairMax('own_max')};
let own_l = add_blocks(scores, m, sums_start * BLOCK_M + row);
let l = ${ops.pairSum('own_l')};
if (half == 0u) {
partial[partial_place(workgroup, row, tile_of_subgroup)] = vec2<f32>(m, l);
}
}`,
      ),
      '}',
    ),
  );
}
