import plain from '../../shaders/lib/index_score_tile.wgsl?raw';
import matrix from '../../shaders/lib/index_score_tile_matrix.wgsl?raw';
import packHalves from '../../shaders/lib/pack_halves.wgsl?raw';
import type { DeviceProfile } from '../device/profile.js';
import type { MatrixShape } from '../device/subgroup_matrix.js';
import { nativeOps } from '../kernels/matrix_ops.js';
import type { StorageFormat } from '../kernels/shader_text.js';
import { stagedDimensions } from './layer.js';

/** The inner loop of an index estimator: 64 x 128 dot products. */
export interface ScoreTile {
  /** For labels. */
  readonly tag: string;
  /** `enable` and `diagnostic` directives that must stand before everything else. */
  readonly directives: string;
  /** Value of the constant D_CHUNK. */
  readonly dChunk: number;
  /** WGSL of `score_tile` and its constants. */
  readonly code: string;
}

const TILE_KEYS = 128;
/** Rows that a subgroup multiplies. */
const ROWS = 16;
/** Workgroup memory of the matrix form, and what kernels add to it. */
const MATRIX_BYTES = 192 * 9 * 16 + 960 * 16 + 1024;

/** shaders/lib/index_score_tile_matrix.wgsl for f16 tensors in the matrix tier, shaders/lib/index_score_tile.wgsl otherwise. */
export function scoreTile(profile: DeviceProfile, headDim: number, storage: StorageFormat): ScoreTile {
  const shapes = profile.matrix?.shapes ?? [];
  const shape = shapes.find((s) => s.n === 16) ?? shapes[0];
  if (shape && storage === 'f16' && profile.limits.maxComputeWorkgroupStorageSize >= MATRIX_BYTES) {
    const { m, n, k } = shape;
    return {
      tag: `${m}x${n}x${k}`,
      directives: `enable f16;\n${nativeOps(shape, 'workgroup').directives}\n`,
      dChunk: Math.min(64, headDim),
      code: `${packHalves}\n${matrix}\n${matrixTile(shape)}`,
    };
  }
  const dChunk = stagedDimensions(profile);
  return { tag: `d${dChunk}`, directives: '', dChunk, code: plain };
}

/** The part of the matrix form that names every matrix. */
function matrixTile(shape: MatrixShape): string {
  const { m, n, k } = shape;
  const rows = range(ROWS / m);
  const keys = range(TILE_KEYS / n);
  const all = rows.flatMap((r) => keys.map((j) => ({ r, j, name: `s_${r}_${j}` })));
  const load = (type: string, at: string, order: string) => `subgroupMatrixLoad<${type}, ${order}>(&matrix_stage, ${at}, LINE)`;
  const stores = (half: number): string[] =>
    all
      .filter(({ j }) => Math.floor((j * n) / 64) === half)
      .map(({ r, j, name }) => {
        const at = `(first_row + ${r * m}u) * SCORE_LINE + ${(j * n - 64 * half) / 4}u`;
        return `  subgroupMatrixStore<row_major>(&matrix_stage, ${at}, ${name}, SCORE_LINE);`;
      });
  return [
    `alias Left = subgroup_matrix_left<f16, ${k}, ${m}>;`,
    `alias Right = subgroup_matrix_right<f16, ${n}, ${k}>;`,
    `alias Result = subgroup_matrix_result<f32, ${n}, ${m}>;`,
    '',
    '// Every thread of the workgroup must call this together.',
    'fn score_tile(s: ptr<function, array<vec4<f32>, 16>>, tx: u32, ty: u32) {',
    '  let thread = ty * TX + tx;',
    `  let first_row = thread / 32u * ${ROWS}u;`,
    ...all.map(({ name }) => `  var ${name} = Result();`),
    '  for (var d0 = 0u; d0 < HEAD_DIM; d0 += D_CHUNK) {',
    '    let depth8 = min(DC8, (HEAD_DIM - d0) / 8u);',
    '    stage_chunk(d0, depth8, thread);',
    '    workgroupBarrier();',
    `    for (var c = 0u; c < depth8; c += ${k / 8}u) {`,
    ...rows.map((r) => `      let left_${r} = ${load('Left', `(first_row + ${r * m}u) * LINE + c`, 'row_major')};`),
    ...keys.flatMap((j) => [
      '      {',
      `        let right = ${load('Right', `KEY_LINES + ${j * n}u * LINE + c`, 'col_major')};`,
      ...rows.map((r) => `        s_${r}_${j} = subgroupMatrixMultiplyAccumulate(left_${r}, right, s_${r}_${j});`),
      '      }',
    ]),
    '    }',
    '    workgroupBarrier();',
    '  }',
    ...[0, 1].flatMap((half) => [
      ...stores(half),
      '  workgroupBarrier();',
      `  read_half(s, ${half}u, tx, ty);`,
      '  workgroupBarrier();',
    ]),
    '}',
  ].join('\n');
}

function range(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i);
}
