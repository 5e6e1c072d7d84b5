import places from '../../shaders/lib/index_score_part_places.wgsl?raw';
import plainParts from '../../shaders/lib/index_score_parts.wgsl?raw';
import matrixParts from '../../shaders/lib/index_score_parts_matrix.wgsl?raw';
import matrixSquares from '../../shaders/lib/index_score_squares_matrix.wgsl?raw';
import plain from '../../shaders/lib/index_score_tile.wgsl?raw';
import matrix from '../../shaders/lib/index_score_tile_matrix.wgsl?raw';
import type { DeviceProfile } from '../device/profile.js';
import { type MatrixShape, SUBGROUP_SIZE } from '../device/subgroup_matrix.js';
import { type Index, type MatrixOps, nativeOps, plus, times, wgsl } from '../kernels/matrix_ops.js';
import type { StorageFormat } from '../kernels/shader_text.js';
import { stagedDimensions } from './layer.js';

/** The inner loop of an index estimator: `rows` x 128 dot products. */
export interface ScoreTile {
  /** For labels. */
  readonly tag: string;
  /** `enable` and `diagnostic` directives that must stand before everything else. */
  readonly directives: string;
  /** Rows of a tile. */
  readonly rows: number;
  /** How the kernel reads its tensors. */
  readonly storage: StorageFormat;
  /** Value of the constant D_CHUNK. */
  readonly dChunk: number;
  /** In how many parts `score_parts` hands the scores over. */
  readonly parts: number;
  /** WGSL of `score_tile`, or of `score_parts`, and its constants, written when it is asked for. */
  readonly code: string;
  /** Whether it runs on subgroup matrices. */
  readonly onMatrices: boolean;
}

/** What a kernel wants of the tile, mostly of the matrix form. The plain form has 64 rows and at least 960 elements. */
export interface MatrixTileSize {
  /** Rows of a tile. */
  readonly rows: 64 | 128;
  /** A square of scores for each thread, or parts of all scores one after the other: shaders/lib/index_score_parts.wgsl. */
  readonly scores: 'squares' | 'parts';
  /** Elements of `stage` that the kernel uses. */
  readonly stage: number;
  /** Bytes of workgroup memory to stay below where a staging does, for several workgroups a multiprocessor. */
  readonly memory?: number;
}

/** Writes the matrix operations of a shape. */
type OpsOf = (shape: MatrixShape) => MatrixOps;

const TILE_KEYS = 128;
/** PARTS of shaders/lib/index_score_parts.wgsl. */
const PLAIN_PARTS = 4;
/** The part of a tile that a subgroup multiplies. */
const SUBGROUP_ROWS = 32;
const SUBGROUP_KEYS = 64;
/** Workgroup memory that kernels may use beside the tile. */
const KERNEL_BYTES = 512;

/**
 * shaders/lib/index_score_tile_matrix.wgsl for f16 tensors in the matrix tier, shaders/lib/index_score_tile.wgsl otherwise.
 *
 * @param headDim - dimensions of a dot product.
 */
export function scoreTile(
  profile: DeviceProfile,
  headDim: number,
  storage: StorageFormat,
  size: MatrixTileSize,
  opsOf: OpsOf = (shape) => nativeOps(shape, 'subgroup'),
): ScoreTile {
  const shapes = profile.matrix?.shapes ?? [];
  const shape = shapes.find((s) => s.n === 16) ?? shapes[0];
  const room = profile.limits.maxComputeWorkgroupStorageSize - KERNEL_BYTES;
  const within = (bytes: number): Staging | undefined =>
    STAGINGS.find((s) => headDim % s.chunk === 0 && 16 * (tileWords(size, s) + size.stage) <= Math.min(bytes, room));
  const staging = within(size.memory ?? room) ?? within(room);
  if (shape && storage === 'f16' && staging) {
    const { m, n, k } = shape;
    return {
      tag: `${size.rows} ${m}x${n}x${k} d${staging.chunk}`,
      directives: `enable f16;\n${opsOf(shape).directives}\n`,
      rows: size.rows,
      storage: 'f16-packed',
      dChunk: staging.chunk,
      parts: SUBGROUP_KEYS / staging.part,
      get code() {
        const handOver = size.scores === 'parts' ? matrixParts : matrixSquares;
        return `${matrix}\n${places}\n${handOver}\n${matrixCode(shape, size, staging, opsOf(shape))}`;
      },
      onMatrices: true,
    };
  }
  const dChunk = stagedDimensions(profile);
  const code = size.scores === 'parts' ? `${plain}\n${places}\n${plainParts}` : plain;
  return { tag: `d${dChunk}`, directives: '', rows: 64, storage, dChunk, parts: PLAIN_PARTS, code, onMatrices: false };
}

/** How the matrix form passes rows, keys and scores through workgroup memory. */
interface Staging {
  /** Dimensions of rows and keys. */
  readonly chunk: number;
  /** Scores of each subgroup's row. */
  readonly part: number;
}

/** All, best first. */
const STAGINGS: readonly Staging[] = [64, 80, 48, 32, 16].flatMap((chunk) => [32, 16].map((part) => ({ chunk, part })));

/** 16-byte words of the workgroup memory that chunks and scores share; each line is padded by one. */
function tileWords({ rows }: MatrixTileSize, { chunk, part }: Staging): number {
  const lines = (rows + TILE_KEYS) * (chunk / 8 + 1);
  const scores = rows * (((TILE_KEYS / SUBGROUP_KEYS) * part) / 4 + 2);
  return Math.max(lines, scores);
}

/** The part of the matrix form that names every matrix, and every word that is on its way to workgroup memory. */
function matrixCode({ m, n, k }: MatrixShape, size: MatrixTileSize, staging: Staging, ops: MatrixOps): string {
  const { rows } = size;
  const { chunk, part } = staging;
  const threads = (rows / SUBGROUP_ROWS) * (TILE_KEYS / SUBGROUP_KEYS) * SUBGROUP_SIZE;
  const rowMatrices = SUBGROUP_ROWS / m;
  const keyMatrices = SUBGROUP_KEYS / n;
  const words = (['row', 'key'] as const).flatMap((of) =>
    range(((of === 'row' ? rows : TILE_KEYS) * chunk) / 8 / threads).map((i) => {
      const at = `(thread + ${i * threads}u)`;
      return { name: `${of}_${i}`, of, line: `${at} / DC8`, d: `${at} % DC8` };
    }),
  );
  const fetch = (d8: string): string[] => words.map(({ name, of, line, d }) => `${name} = ${of}_word(${line}, ${d8} + ${d});`);
  const result = (i: Index, j: Index): Index => plus(times(i, keyMatrices), j);
  const multiply = (step: string): string[] => [
    ops.each('i', rowMatrices, (i) =>
      ops.loadInto('left', i, 'Left', 's_tile', `(own_rows + ${wgsl(times(i, m))}) * LINE + ${step}`, 'LINE', 'row_major'),
    ),
    ops.each('j', keyMatrices, (j) =>
      lines(
        `let right = ${ops.load('Right', 's_tile', `(own_keys + ${wgsl(times(j, n))}) * LINE + ${step}`, 'LINE', 'col_major')};`,
        ops.each('i', rowMatrices, (i) =>
          ops.set('sums', result(i, j), ops.multiplyAdd(ops.get('left', i), 'right', ops.get('sums', result(i, j)))),
        ),
      ),
    ),
  ];
  const storePart = (p: Index): string =>
    ops.each('i', rowMatrices, (i) =>
      ops.each('j', part / n, (j) =>
        ops.store(
          's_tile',
          `(own_rows + ${wgsl(times(i, m))}) * SCORE_LINE + half * PART4 + ${wgsl(times(j, n / 4))}`,
          ops.get('sums', result(i, plus(times(p, part / n), j))),
          'SCORE_LINE',
        ),
      ),
    );
  const parts = size.scores === 'parts';
  const scoreTile = lines(
    '// Every thread of the workgroup must call this together.',
    parts ? 'fn score_parts(index: u32) {' : 'fn score_tile(s: ptr<function, array<vec4<f32>, 16>>, tx: u32, ty: u32) {',
    // The remainder changes nothing, but tells compilers the bounds of every matrix access.
    `let thread = ${parts ? 'index' : '(ty * TX + tx)'} % THREADS;`,
    '// What the subgroup multiplies.',
    `let half = thread / ${SUBGROUP_SIZE}u % 2u;`,
    `let own_rows = thread / ${2 * SUBGROUP_SIZE}u * ${SUBGROUP_ROWS}u;`,
    `let own_keys = TILE_ROWS + half * ${SUBGROUP_KEYS}u;`,
    ops.declare('sums', 'Result', rowMatrices * keyMatrices),
    ops.declare('left', 'Left', rowMatrices),
    ...words.map(({ name }) => `var ${name} = vec4<u32>();`),
    ...fetch('0u'),
    'for (var d8 = 0u; d8 < D8; d8 += DC8) {',
    ...words.map(({ name, of, line, d }) => `s_tile[(${of === 'key' ? 'TILE_ROWS + ' : ''}${line}) * LINE + ${d}] = ${name};`),
    'workgroupBarrier();',
    '// On their way while this chunk is multiplied.',
    'if (d8 + DC8 < D8) {',
    ...fetch('d8 + DC8'),
    '}',
    ops.each('step', chunk / k, (step) => lines(...multiply(wgsl(times(step, k / 8))))),
    'workgroupBarrier();',
    '}',
    ops.each('p', SUBGROUP_KEYS / part, (p) =>
      lines(
        storePart(p),
        'workgroupBarrier();',
        parts ? `take_part(${wgsl(p)}, thread);` : `read_part(s, ${wgsl(p)}, tx, ty);`,
        'workgroupBarrier();',
      ),
    ),
    '}',
  );
  return lines(
    `const TILE_ROWS: u32 = ${rows}u;`,
    `const PART4: u32 = ${part / 4}u;`,
    `var<workgroup> stage: array<vec4<f32>, ${size.stage}>;`,
    `var<workgroup> s_tile: array<vec4<u32>, ${tileWords(size, staging)}>;`,
    ops.declarations(),
    scoreTile,
  );
}

function lines(...parts: readonly string[]): string {
  return parts.join('\n');
}

function range(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i);
}
