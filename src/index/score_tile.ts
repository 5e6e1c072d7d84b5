import places from '../../shaders/lib/index_score_part_places.wgsl?raw';
import plainParts from '../../shaders/lib/index_score_parts.wgsl?raw';
import matrixParts from '../../shaders/lib/index_score_parts_matrix.wgsl?raw';
import matrixSquares from '../../shaders/lib/index_score_squares_matrix.wgsl?raw';
import plain from '../../shaders/lib/index_score_tile.wgsl?raw';
import matrix from '../../shaders/lib/index_score_tile_matrix.wgsl?raw';
import tiles from '../../shaders/lib/index_score_tiles.wgsl?raw';
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
  /** Whether `score_tiles` keeps the rows from one tile to the next. */
  readonly keepsRows: boolean;
}

/** What a kernel wants of the tile, mostly of the matrix form. The plain form has 64 rows and at least 960 elements. */
export interface MatrixTileSize {
  /** Rows of a tile. */
  readonly rows: 64 | 128;
  /**
   * A square of scores for each thread, or parts of all scores one after the other: shaders/lib/index_score_parts.wgsl; or those of
   * several tiles with the same rows: shaders/lib/index_score_tiles.wgsl.
   */
  readonly scores: 'squares' | 'parts' | 'tiles';
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
/** Most dimensions of rows that are kept in registers, with as many of the next tile's keys beside them. */
const MOST_KEPT = 128;

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
  const keepsRows = size.scores === 'tiles' && headDim <= MOST_KEPT;
  const within = (bytes: number): Staging | undefined =>
    STAGINGS.find((s) => headDim % s.chunk === 0 && 16 * (tileWords(size, s, keepsRows) + size.stage) <= Math.min(bytes, room));
  const staging = within(size.memory ?? room) ?? within(room);
  if (shape && storage === 'f16' && staging) {
    const { m, n, k } = shape;
    return {
      tag: `${size.rows} ${m}x${n}x${k} d${staging.chunk}${keepsRows ? ' rows kept' : ''}`,
      directives: `enable f16;\n${opsOf(shape).directives}\n`,
      rows: size.rows,
      storage: 'f16-packed',
      dChunk: staging.chunk,
      parts: SUBGROUP_KEYS / staging.part,
      get code() {
        const ops = opsOf(shape);
        if (size.scores === 'squares') return [matrix, places, matrixSquares, matrixCode(shape, size, staging, ops)].join('\n');
        const body = keepsRows ? keptRowsCode(shape, headDim, size, staging, ops) : matrixCode(shape, size, staging, ops);
        return [matrix, places, matrixParts, body, size.scores === 'tiles' && !keepsRows ? tiles : ''].join('\n');
      },
      onMatrices: true,
      keepsRows,
    };
  }
  const dChunk = stagedDimensions(profile);
  const more = { squares: [], parts: [places, plainParts], tiles: [places, plainParts, tiles] }[size.scores];
  const code = [plain, ...more].join('\n');
  return {
    tag: `d${dChunk}`,
    directives: '',
    rows: 64,
    storage,
    dChunk,
    parts: PLAIN_PARTS,
    code,
    onMatrices: false,
    keepsRows: false,
  };
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
function tileWords({ rows }: MatrixTileSize, { chunk, part }: Staging, keepsRows: boolean): number {
  const lines = (keepsRows ? TILE_KEYS : rows + TILE_KEYS) * (chunk / 8 + 1);
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
  const parts = size.scores !== 'squares';
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
  return lines(frame(size, staging, false), ops.declarations(), scoreTile);
}

/** Constants and workgroup memory of both matrix forms. */
function frame(size: MatrixTileSize, staging: Staging, keepsRows: boolean): string {
  return lines(
    `const TILE_ROWS: u32 = ${size.rows}u;`,
    `const PART4: u32 = ${staging.part / 4}u;`,
    `var<workgroup> stage: array<vec4<f32>, ${size.stage}>;`,
    `var<workgroup> s_tile: array<vec4<u32>, ${tileWords(size, staging, keepsRows)}>;`,
  );
}

/**
 * `score_tiles` for tiles with the same rows. These stay in registers, so only keys pass through workgroup memory, and those of the next
 * tile are on their way while the scores of this one are taken: what a tile waits for otherwise is mostly memory.
 */
function keptRowsCode(shape: MatrixShape, headDim: number, size: MatrixTileSize, staging: Staging, ops: MatrixOps): string {
  const { m, n, k } = shape;
  const { rows } = size;
  const { chunk, part } = staging;
  const threads = (rows / SUBGROUP_ROWS) * (TILE_KEYS / SUBGROUP_KEYS) * SUBGROUP_SIZE;
  const rowMatrices = SUBGROUP_ROWS / m;
  const keyMatrices = SUBGROUP_KEYS / n;
  const chunks = range(headDim / chunk);
  const steps = chunk / k;
  /** The words of a chunk of all rows or keys that a thread carries. */
  const words = (of: 'row' | 'key', c: number) =>
    range(((of === 'row' ? rows : TILE_KEYS) * chunk) / 8 / threads).map((i) => {
      const at = `(thread + ${i * threads}u)`;
      return { name: `${of}_${c}_${i}`, line: `${at} / DC8`, d: `${at} % DC8` };
    });
  const declare = (of: 'row' | 'key'): string[] =>
    chunks.flatMap((c) => words(of, c).map(({ name }) => `var ${name} = vec4<u32>();`));
  const stage = (of: 'row' | 'key', c: number): string[] =>
    words(of, c).map(({ name, line, d }) => `s_tile[${line} * LINE + ${d}] = ${name};`);
  const fetchKeys = (tile: string): string[] =>
    chunks.flatMap((c) =>
      words('key', c).map(({ name, line, d }) => `${name} = key_word_of(${tile}, ${line}, ${(c * chunk) / 8}u + ${d});`),
    );
  const result = (i: Index, j: Index): Index => plus(times(i, keyMatrices), j);
  /** The matrix of rows i at step `step` of chunk c. */
  const row = (i: Index, c: number, step: Index): Index => plus(times(i, chunks.length * steps), plus(c * steps, step));
  const each = (count: number, body: (i: Index) => string, variable: string): string => ops.each(variable, count, body);
  const keepRows = (c: number): string =>
    each(
      rowMatrices,
      (i) =>
        each(
          steps,
          (step) =>
            ops.loadInto(
              'kept_rows',
              row(i, c, step),
              'Left',
              's_tile',
              `(own_rows + ${wgsl(times(i, m))}) * LINE + ${wgsl(times(step, k / 8))}`,
              'LINE',
              'row_major',
            ),
          'step',
        ),
      'i',
    );
  const multiply = (c: number): string =>
    each(
      steps,
      (step) =>
        each(
          keyMatrices,
          (j) =>
            lines(
              `let right = ${ops.load('Right', 's_tile', `(own_keys + ${wgsl(times(j, n))}) * LINE + ${wgsl(times(step, k / 8))}`, 'LINE', 'col_major')};`,
              each(
                rowMatrices,
                (i) => {
                  const sum = result(i, j);
                  return ops.set(
                    'sums',
                    sum,
                    ops.multiplyAdd(ops.get('kept_rows', row(i, c, step)), 'right', ops.get('sums', sum)),
                  );
                },
                'i',
              ),
            ),
          'j',
        ),
      'step',
    );
  const storePart = (p: Index): string =>
    each(
      rowMatrices,
      (i) =>
        each(
          part / n,
          (j) =>
            ops.store(
              's_tile',
              `(own_rows + ${wgsl(times(i, m))}) * SCORE_LINE + half * PART4 + ${wgsl(times(j, n / 4))}`,
              ops.get('sums', result(i, plus(times(p, part / n), j))),
              'SCORE_LINE',
            ),
          'j',
        ),
      'i',
    );
  const last = chunks.length - 1;
  const scoreTiles = lines(
    `// Dimensions 8 * d .. 8 * d + 7 of a key of a tile.
fn key_word_of(tile: u32, key: u32, d: u32) -> vec4<u32> {
let at = key_start(tile * TILE_KEYS + key) + 2u * d;
return vec4<u32>(k[at], k[at + 1u]);
}
// Every thread of the workgroup must call this together.
fn score_tiles(index: u32, first: u32, end: u32) {
// The remainder changes nothing, but tells compilers the bounds of every matrix access.
let thread = index % THREADS;
// What the subgroup multiplies.
let half = thread / ${SUBGROUP_SIZE}u % 2u;
let own_rows = thread / ${2 * SUBGROUP_SIZE}u * ${SUBGROUP_ROWS}u;
let own_keys = half * ${SUBGROUP_KEYS}u;`,
    ops.declare('kept_rows', 'Left', rowMatrices * chunks.length * steps),
    ops.declare('sums', 'Result', rowMatrices * keyMatrices),
    ...declare('row'),
    ...declare('key'),
    'if (first < end) {', // keeps the loads together
    ...chunks.flatMap((c) =>
      words('row', c).map(({ name, line, d }) => `${name} = row_word(${line}, ${(c * chunk) / 8}u + ${d});`),
    ),
    ...fetchKeys('first'),
    '}',
    ...chunks.flatMap((c) => [...stage('row', c), 'workgroupBarrier();', keepRows(c), 'workgroupBarrier();']),
    'for (var tile = first; tile < end; tile += params.unit) {',
    'begin_tile(tile);',
    each(rowMatrices * keyMatrices, (i) => ops.set('sums', i, ops.zero()), 'i'),
    ...chunks.flatMap((c) => [
      ...stage('key', c),
      'workgroupBarrier();',
      ...(c === last ? ['if (tile + 1u < end) {', ...fetchKeys('(tile + 1u)'), '}'] : []),
      multiply(c),
      'workgroupBarrier();',
    ]),
    ops.each('p', SUBGROUP_KEYS / part, (p) =>
      lines(storePart(p), 'workgroupBarrier();', `take_part(${wgsl(p)}, thread);`, 'workgroupBarrier();'),
    ),
    'end_tile(thread);',
    '}',
    '}',
  );
  return lines(frame(size, staging, true), ops.declarations(), scoreTiles);
}

function lines(...parts: readonly string[]): string {
  return parts.join('\n');
}

function range(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i);
}
