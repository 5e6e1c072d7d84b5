import antidiagonalProducts from '../../shaders/index/antidiagonal_products.wgsl?raw';
import fourNumbers from '../../shaders/lib/four_numbers.wgsl?raw';
import antidiagonalParams from '../../shaders/lib/index_antidiagonal_params.wgsl?raw';
import tensors from '../../shaders/lib/index_tensors.wgsl?raw';
import { lazyShader, type ShaderSpec } from '../device/pipelines.js';
import type { DeviceProfile } from '../device/profile.js';
import type { MatrixShape } from '../device/subgroup_matrix.js';
import { invalidArgument } from '../errors.js';
import { entryPoint, type MatrixOps, nativeOps } from '../kernels/matrix_ops.js';
import {
  type AbsentWords,
  blockName,
  blockProblem,
  chooseBlock,
  hasWholeRows,
  type ProductBlock,
  type ProductBlockShape,
  ProductWriter,
  type WordLoader,
} from '../kernels/matrix_product.js';
import { indent, text } from '../kernels/matrix_tiles.js';
import { prelude } from '../kernels/shader_text.js';
import { STATISTICS_ROWS } from './softmax_merge.js';

/** Blocks of row groups and key groups, best first; see {@link blockSuits}. */
const BLOCKS: readonly ProductBlockShape[] = [
  { blockM: 192, blockN: 160, subgroupM: 48, subgroupN: 80, depth: 64 },
  { blockM: 128, blockN: 96, subgroupM: 64, subgroupN: 48, depth: 64 },
  { blockM: 64, blockN: 96, subgroupM: 32, subgroupN: 48, depth: 64 },
];

/**
 * Whether the kernel can work in a possible block: its rows are whole strips of 64 statistics, and its blocks of 64 keys fours of scores.
 * Half of a subgroup's columns are whole blocks of 64 keys, 8 groups or 4, in any block.
 */
function blockSuits(b: ProductBlock): boolean {
  return hasWholeRows(b) && b.blockM % STATISTICS_ROWS === 0 && b.blockN % 32 === 0;
}

/** The block of XAttention's estimate on a device, if it has matrices that do. */
export function antidiagonalBlock({ matrix, limits }: Pick<DeviceProfile, 'matrix' | 'limits'>): ProductBlock | undefined {
  return chooseBlock(BLOCKS, matrix?.shapes ?? [], limits, blockSuits);
}

/**
 * Writes shaders/index/antidiagonal_products.wgsl for a block, a head size and a stride.
 *
 * @throws {@link MinferenceError} `invalid-argument` for an impossible block.
 */
export function antidiagonalProductsShader(
  block: ProductBlock,
  headDim: number,
  stride: number,
  checked: boolean,
  opsOf: (shape: MatrixShape) => MatrixOps = (shape) => nativeOps(shape, 'subgroup'),
): ShaderSpec {
  if (blockProblem(block) || !blockSuits(block))
    throw invalidArgument('block', block, "a block that XAttention's estimate can work in");
  const ops = opsOf(block.shape);
  const spec: Omit<ShaderSpec, 'code'> = {
    label: `x-attention estimate: products D=${headDim} S=${stride} ${blockName(block)} ${ops.name}${checked ? '' : ' clamped'}`,
    bindings: ['uniform', 'uniform', 'read', 'read', 'read', 'write', 'write', ...ops.bindings],
  };
  return lazyShader(spec, () => {
    const writer = new ProductWriter(block, ops);
    const constants = { HEAD_DIM: headDim, STRIDE: stride, TILE_GROUPS: block.subgroupN, ...writer.constants() };
    const main = mainFunction(writer, checked, ops);
    return [
      `enable f16;\n${ops.directives}`,
      prelude({ constants }),
      antidiagonalParams,
      tensors,
      fourNumbers,
      antidiagonalProducts,
      writer.workgroupMemory(),
      ops.declarations(),
      main,
    ].join('\n');
  });
}

function mainFunction(writer: ProductWriter, checked: boolean, ops: MatrixOps): string {
  // Rows past the end are whatever lies there: WGSL's checks see to it that something does.
  const load: WordLoader = (of, { offset }, k0, group) => {
    const [tensor, start, place] = of === 'a' ? ['q', 'q_start', 'query_place'] : ['k', 'k_start', 'key_place'];
    const at = `${place}(${start}, ${offset}u, ${k0} / 8u + ${group})`;
    return `${tensor}[${checked ? at : `min(${at}, arrayLength(&${tensor}) - 1u)`}]`;
  };
  const absent: AbsentWords = {
    when: 'params.first_row + (workgroup.x + 1u) * BLOCK_M > last_group || (workgroup.y + 1u) * BLOCK_N > last_key_group',
    is: (of, { line, offset }, k0, group) => {
      const [name, first] = of === 'a' ? ['is_no_query', 'row0'] : ['is_no_key', 'column0'];
      return `${name}(${first} + ${line} + ${offset}u, ${k0} / 8u + ${group})`;
    },
  };
  return indent(
    text(
      entryPoint(ops),
      `if (!block_is_visible(workgroup)) {
see_nothing(workgroup, thread);
return;
}
let head = heads[workgroup.z];
let row0 = params.first_row + workgroup.x * BLOCK_M;
let column0 = workgroup.y * BLOCK_N;
let q_start = query_start(head.x, row0 + ${writer.line});
let k_start = key_start(head.y, column0 + ${writer.line});
// Whole groups: those behind may have rows that do not exist.
let last_group = params.n_q / STRIDE;
let last_key_group = (params.q_offset + params.n_q) / STRIDE;`,
      writer.opening(),
      `let half = lane % 2u;
let tile_of_subgroup = workgroup.y * BLOCK_TILES + subgroup_column / TILE_GROUPS;
let first_key_group = column0 + subgroup_column + half * (TILE_GROUPS / 2u);
let sums_start = ((workgroup.z * params.row_tiles + workgroup.x) * params.tiles + tile_of_subgroup) * TILE_BLOCKS + half * HALF_BLOCKS;
let scores_start = scratch + lane / 2u * SLICE_STRIDE + half * HALF_WORDS;`,
      writer.products(load, '0u', 'LENGTH', absent),
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
