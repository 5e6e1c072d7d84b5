import { type MatrixShape, SUBGROUP_SIZE } from '../device/subgroup_matrix.js';
import { type Index, type MatrixOps, plus, times, wgsl } from '../kernels/matrix_ops.js';
import { range, text } from '../kernels/matrix_tiles.js';
import type { MatrixTileSize } from './score_tile.js';

const TILE_KEYS = 128;
/** The part of a tile that a subgroup multiplies. */
const SUBGROUP_ROWS = 32;
export const SUBGROUP_KEYS = 64;

/** How the matrix form passes rows, keys and scores through workgroup memory. */
export interface Staging {
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

/** The best staging of dot products of `headDim` numbers that takes at most `wanted` bytes, or else `room`. */
export function stagingWithin(
  size: MatrixTileSize,
  headDim: number,
  keepsRows: boolean,
  wanted: number,
  room: number,
): Staging | undefined {
  const within = (bytes: number): Staging | undefined =>
    STAGINGS.find((s) => headDim % s.chunk === 0 && 16 * (tileWords(size, s, keepsRows) + size.stage) <= Math.min(bytes, room));
  return within(wanted) ?? within(room);
}

/** A 16-byte word that a thread carries to workgroup memory: a variable, the line that it belongs to, and its place there. */
interface Word {
  readonly name: string;
  readonly line: string;
  readonly d: string;
}

/** Writes the part of the matrix form that names every matrix, and every word that is on its way to workgroup memory. */
export class ScoreTileWriter {
  readonly #shape: MatrixShape;
  readonly #size: MatrixTileSize;
  readonly #staging: Staging;
  readonly #keepsRows: boolean;
  readonly #ops: MatrixOps;
  /** Matrices of a subgroup's rows, of its keys, and of the dimensions of a chunk. */
  readonly #rowMatrices: number;
  readonly #keyMatrices: number;
  readonly #steps: number;

  constructor(shape: MatrixShape, size: MatrixTileSize, staging: Staging, keepsRows: boolean, ops: MatrixOps) {
    this.#shape = shape;
    this.#size = size;
    this.#staging = staging;
    this.#keepsRows = keepsRows;
    this.#ops = ops;
    this.#rowMatrices = SUBGROUP_ROWS / shape.m;
    this.#keyMatrices = SUBGROUP_KEYS / shape.n;
    this.#steps = staging.chunk / shape.k;
  }

  /** `score_tile` or `score_parts`: rows and keys of one tile, a chunk at a time. */
  tile(): string {
    const ops = this.#ops;
    const parts = this.#size.scores !== 'squares';
    const words = (['row', 'key'] as const).flatMap((of) => this.#words(of).map((word) => ({ ...word, of })));
    const fetch = (d8: string): string[] => words.map(({ name, of, line, d }) => `${name} = ${of}_word(${line}, ${d8} + ${d});`);
    const multiply = (step: Index): string =>
      text(
        ops.each('i', this.#rowMatrices, (i) => this.#loadRows('left', i, i, step)),
        this.#products(step, (i) => ops.get('left', i)),
      );
    return this.#shader(
      '// Every thread of the workgroup must call this together.',
      parts ? 'fn score_parts(index: u32) {' : 'fn score_tile(s: ptr<function, array<vec4<f32>, 16>>, tx: u32, ty: u32) {',
      this.#opening(parts ? 'index' : '(ty * TX + tx)'),
      ops.declare('left', 'Left', this.#rowMatrices),
      ...words.map(({ name }) => `var ${name} = vec4<u32>();`),
      ...fetch('0u'),
      'for (var d8 = 0u; d8 < D8; d8 += DC8) {',
      ...words.map(({ name, of, line, d }) => `s_tile[(${of === 'key' ? 'TILE_ROWS + ' : ''}${line}) * LINE + ${d}] = ${name};`),
      'workgroupBarrier();',
      '// On their way while this chunk is multiplied.',
      'if (d8 + DC8 < D8) {',
      ...fetch('d8 + DC8'),
      '}',
      ops.each('step', this.#steps, multiply),
      'workgroupBarrier();',
      '}',
      this.#handOver((p) => (parts ? `take_part(${wgsl(p)}, thread);` : `read_part(s, ${wgsl(p)}, tx, ty);`)),
      '}',
    );
  }

  /**
   * `score_tiles` for tiles with the same rows. These stay in registers, so only keys pass through workgroup memory, and those of the next
   * tile are on their way while the scores of this one are taken: what a tile waits for otherwise is mostly memory.
   */
  tiles(headDim: number): string {
    const ops = this.#ops;
    const { chunk } = this.#staging;
    const chunks = range(headDim / chunk);
    const words = (of: 'row' | 'key', c: number): Word[] => this.#words(of, `${c}_`);
    const all = (of: 'row' | 'key', visit: (word: Word, d8: number) => string): string[] =>
      chunks.flatMap((c) => words(of, c).map((word) => visit(word, (c * chunk) / 8)));
    const stage = (of: 'row' | 'key', c: number): string[] =>
      words(of, c).map(({ name, line, d }) => `s_tile[${line} * LINE + ${d}] = ${name};`);
    const fetchKeys = (tile: string): string[] =>
      all('key', ({ name, line, d }, d8) => `${name} = key_word_of(${tile}, ${line}, ${d8}u + ${d});`);
    /** The matrix of rows i at step `step` of chunk c. */
    const row = (i: Index, c: number, step: Index): Index =>
      plus(times(i, chunks.length * this.#steps), plus(c * this.#steps, step));
    const keepRows = (c: number): string =>
      ops.each('i', this.#rowMatrices, (i) =>
        ops.each('step', this.#steps, (step) => this.#loadRows('kept_rows', row(i, c, step), i, step)),
      );
    const multiply = (c: number): string =>
      ops.each('step', this.#steps, (step) => this.#products(step, (i) => ops.get('kept_rows', row(i, c, step))));
    return this.#shader(
      `// Dimensions 8 * d .. 8 * d + 7 of a key of a tile.
fn key_word_of(tile: u32, key: u32, d: u32) -> vec4<u32> {
let at = key_start(tile * TILE_KEYS + key) + 2u * d;
return vec4<u32>(k[at], k[at + 1u]);
}
// Every thread of the workgroup must call this together.
fn score_tiles(index: u32, first: u32, end: u32) {`,
      this.#opening('index'),
      ops.declare('kept_rows', 'Left', this.#rowMatrices * chunks.length * this.#steps),
      ...all('row', ({ name }) => `var ${name} = vec4<u32>();`),
      ...all('key', ({ name }) => `var ${name} = vec4<u32>();`),
      'if (first < end) {', // keeps the loads together
      ...all('row', ({ name, line, d }, d8) => `${name} = row_word(${line}, ${d8}u + ${d});`),
      ...fetchKeys('first'),
      '}',
      ...chunks.flatMap((c) => [...stage('row', c), 'workgroupBarrier();', keepRows(c), 'workgroupBarrier();']),
      'for (var tile = first; tile < end; tile += params.unit) {',
      'begin_tile(tile);',
      ops.each('i', this.#rowMatrices * this.#keyMatrices, (i) => ops.set('sums', i, ops.zero())),
      ...chunks.flatMap((c) => [
        ...stage('key', c),
        'workgroupBarrier();',
        ...(c === chunks.length - 1 ? ['if (tile + 1u < end) {', ...fetchKeys('(tile + 1u)'), '}'] : []),
        multiply(c),
        'workgroupBarrier();',
      ]),
      this.#handOver((p) => `take_part(${wgsl(p)}, thread);`),
      'end_tile(thread);',
      '}',
      '}',
    );
  }

  /** Constants, workgroup memory and what the matrices need, before statements that make a function. */
  #shader(...statements: readonly string[]): string {
    const size = this.#size;
    const body = text(...statements);
    return text(
      `const TILE_ROWS: u32 = ${size.rows}u;`,
      `const PART4: u32 = ${this.#staging.part / 4}u;`,
      `var<workgroup> stage: array<vec4<f32>, ${size.stage}>;`,
      `var<workgroup> s_tile: array<vec4<u32>, ${tileWords(size, this.#staging, this.#keepsRows)}>;`,
      this.#ops.declarations(),
      body,
    );
  }

  /** What the subgroup multiplies, and its sums. */
  #opening(thread: string): string {
    return text(
      // The remainder changes nothing, but tells compilers the bounds of every matrix access.
      `let thread = ${thread} % THREADS;`,
      '// What the subgroup multiplies.',
      `let half = thread / ${SUBGROUP_SIZE}u % 2u;`,
      `let own_rows = thread / ${2 * SUBGROUP_SIZE}u * ${SUBGROUP_ROWS}u;`,
      `let own_keys = ${this.#keepsRows ? '' : 'TILE_ROWS + '}half * ${SUBGROUP_KEYS}u;`,
      this.#ops.declare('sums', 'Result', this.#rowMatrices * this.#keyMatrices),
    );
  }

  /** The words of a chunk of all rows or keys that a thread carries. */
  #words(of: 'row' | 'key', prefix = ''): Word[] {
    const { rows } = this.#size;
    const threads = (rows / SUBGROUP_ROWS) * (TILE_KEYS / SUBGROUP_KEYS) * SUBGROUP_SIZE;
    return range(((of === 'row' ? rows : TILE_KEYS) * this.#staging.chunk) / 8 / threads).map((i) => {
      const at = `(thread + ${i * threads}u)`;
      return { name: `${of}_${prefix}${i}`, line: `${at} / DC8`, d: `${at} % DC8` };
    });
  }

  /** Loads the subgroup's rows i at a step of the staged chunk into a matrix of a list. */
  #loadRows(list: string, index: Index, i: Index, step: Index): string {
    const { m, k } = this.#shape;
    const offset = `(own_rows + ${wgsl(times(i, m))}) * LINE + ${wgsl(times(step, k / 8))}`;
    return this.#ops.loadInto(list, index, 'Left', 's_tile', offset, 'LINE', 'row_major');
  }

  /** Adds the products of rows and all of the subgroup's keys at a step of the staged chunk. */
  #products(step: Index, left: (i: Index) => string): string {
    const ops = this.#ops;
    const { n, k } = this.#shape;
    return ops.each('j', this.#keyMatrices, (j) => {
      const offset = `(own_keys + ${wgsl(times(j, n))}) * LINE + ${wgsl(times(step, k / 8))}`;
      return text(
        `let right = ${ops.load('Right', 's_tile', offset, 'LINE', 'col_major')};`,
        ops.each('i', this.#rowMatrices, (i) => {
          const sum = this.#sum(i, j);
          return ops.set('sums', sum, ops.multiplyAdd(left(i), 'right', ops.get('sums', sum)));
        }),
      );
    });
  }

  #sum(i: Index, j: Index): Index {
    return plus(times(i, this.#keyMatrices), j);
  }

  /** Hands the sums over, part by part. */
  #handOver(take: (p: Index) => string): string {
    const ops = this.#ops;
    const { m, n } = this.#shape;
    const { part } = this.#staging;
    const store = (p: Index): string =>
      ops.each('i', this.#rowMatrices, (i) =>
        ops.each('j', part / n, (j) =>
          ops.store(
            's_tile',
            `(own_rows + ${wgsl(times(i, m))}) * SCORE_LINE + half * PART4 + ${wgsl(times(j, n / 4))}`,
            ops.get('sums', this.#sum(i, plus(times(p, part / n), j))),
            'SCORE_LINE',
          ),
        ),
      );
    return ops.each('p', SUBGROUP_KEYS / part, (p) => text(store(p), 'workgroupBarrier();', take(p), 'workgroupBarrier();'));
  }
}
