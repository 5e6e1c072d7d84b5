import { type MatrixShape, SUBGROUP_SIZE } from '../device/subgroup_matrix.js';
import { type Index, type MatrixOps, plus, times, wgsl } from './matrix_ops.js';
import { range, text } from './matrix_tiles.js';

/** How a product C = A W^T on subgroup matrices is cut up. */
export interface ProductBlock {
  readonly shape: MatrixShape;
  /** Rows of A and of W (columns of C) of a workgroup. */
  readonly blockM: number;
  readonly blockN: number;
  /** The part of that which a subgroup computes. */
  readonly subgroupM: number;
  readonly subgroupN: number;
  /** Columns of A and W staged at a time. */
  readonly depth: 32 | 64;
}

/** A block apart from the matrix shape, which the device decides. */
export type ProductBlockShape = Omit<ProductBlock, 'shape'>;

/** Subgroups of a workgroup. */
export function blockSubgroups(b: ProductBlock): number {
  return (b.blockM / b.subgroupM) * (b.blockN / b.subgroupN);
}

/**
 * 16-byte words from one row of a staged tile to the next. Strips of 16 rows lie side by side, so that one word of padding a row puts
 * neighbouring rows into different banks, whatever the number of strips.
 */
function tileStride(b: ProductBlock, rows: number): number {
  return ((rows / 16) * b.depth) / 8 + 1;
}

/** 16-byte words of the staged tiles. */
function tileWords(b: ProductBlock): number {
  return 16 * (tileStride(b, b.blockM) + tileStride(b, b.blockN));
}

/** Bytes of workgroup memory that a block takes. */
export function blockBytes(b: ProductBlock): number {
  return tileWords(b) * 16;
}

/** Columns of C that a subgroup passes through workgroup memory at a time: as many as fit where the tiles were. */
function sliceColumns(b: ProductBlock): number {
  let columns = b.subgroupN;
  const fits = (): boolean => blockSubgroups(b) * 16 * (columns / 4 + 1) <= tileWords(b);
  while (columns > b.shape.n && !(b.subgroupN % columns === 0 && fits())) columns -= b.shape.n;
  return columns;
}

/** Whether a subgroup's columns of C pass through workgroup memory all at once. */
export function hasWholeRows(b: ProductBlock): boolean {
  return sliceColumns(b) === b.subgroupN;
}

/**
 * 32-bit registers per invocation that a block keeps live: accumulators, matrices of W of two steps and of A of one, the fetched
 * words, and some 24 for addresses. An estimate: compilers add their own.
 */
export function blockRegisters(b: ProductBlock): number {
  const accumulators = (b.subgroupM * b.subgroupN) / SUBGROUP_SIZE;
  const operands = ((b.subgroupM + 2 * b.subgroupN) * b.shape.k) / 2 / SUBGROUP_SIZE;
  const fetched = ((b.blockM + b.blockN) * b.depth) / 2 / (blockSubgroups(b) * SUBGROUP_SIZE);
  return accumulators + operands + fetched + 24;
}

/** Why a block cannot be used, or undefined when it can. */
export function blockProblem(b: ProductBlock): string | undefined {
  const { m, n, k } = b.shape;
  if (b.blockM % b.subgroupM !== 0 || b.blockN % b.subgroupN !== 0) return 'subgroups do not divide the block';
  // Tint must find that every matrix of W ends in the tile: so its row is known, or that of a strip.
  if (b.subgroupM % 16 !== 0 || b.subgroupM % m !== 0)
    return `${b.subgroupM} rows are not whole matrices of ${m} and strips of 16`;
  if (b.subgroupN % 16 !== 0 || b.subgroupN % n !== 0)
    return `${b.subgroupN} columns are not whole matrices of ${n} and strips of 16`;
  if (b.subgroupM < 2 * m) return `${b.subgroupM} rows are fewer than two matrices`;
  if (b.depth % (2 * k) !== 0) return `a depth of ${b.depth} is not an even number of matrices of ${k}`;
  if (blockSubgroups(b) * 16 * (sliceColumns(b) / 4 + 1) > tileWords(b)) return 'results do not fit where the tiles were';
  return undefined;
}

/** What of a device decides whether it can run a block. */
export type BlockLimits = Pick<GPUSupportedLimits, 'maxComputeWorkgroupStorageSize' | 'maxComputeInvocationsPerWorkgroup'>;

/** Whether a device can run a block. */
export function blockFits(b: ProductBlock, limits: BlockLimits): boolean {
  return (
    blockProblem(b) === undefined &&
    blockBytes(b) <= limits.maxComputeWorkgroupStorageSize &&
    blockSubgroups(b) * SUBGROUP_SIZE <= limits.maxComputeInvocationsPerWorkgroup &&
    blockRegisters(b) <= 255
  );
}

/**
 * The first of some blocks that a device can run and that suits, if any: in matrices of 16x8x16 where there are such, with which products
 * are fastest on an H100 (bench/NOTES.md).
 */
export function chooseBlock<Shape extends ProductBlockShape>(
  blocks: readonly Shape[],
  shapes: readonly MatrixShape[],
  limits: BlockLimits,
  suits: (b: ProductBlock) => boolean = () => true,
): (Shape & { readonly shape: MatrixShape }) | undefined {
  const shape = shapes.find(({ n, k }) => n === 8 && k === 16) ?? shapes[0];
  return shape && blocks.map((b) => ({ ...b, shape })).find((b) => blockFits(b, limits) && suits(b));
}

/** A block in a few words, for labels and tables. */
export function blockName(b: ProductBlock): string {
  const { m, n, k } = b.shape;
  return `${b.blockM}x${b.blockN} sg${b.subgroupM}x${b.subgroupN} k${b.depth} ${m}x${n}x${k}`;
}

/** The left operand, or the right one, whose rows are columns of C. */
export type Operand = 'a' | 'w';

/**
 * A WGSL expression for eight f16 of an operand: row `line + offset` of the block, which the text does not bound, and columns `8 * group`
 * to `8 * group + 7` behind column `k0`, a multiple of the depth.
 */
export type WordLoader = (of: Operand, row: { line: string; offset: number }, k0: string, group: string) => string;

/** Words that count as zero, for operands with elements that are nowhere. */
export interface AbsentWords {
  /** A uniform condition without which there are none in the block. */
  readonly when: string;
  /** Whether a word is one of them. */
  readonly is: WordLoader;
}

/**
 * Writes what kernels of products on subgroup matrices share: operands staged in workgroup memory, sums in matrices, and these handed over.
 *
 * A workgroup computes blockM x blockN elements, each of its subgroups subgroupM x subgroupN of them, in matrices that
 * are variables of their own: arrays of matrices land in local memory. Each step of `depth` columns stages both operands,
 * and the words of the next one are on their way meanwhile. A subgroup loads a matrix of A for the next step of k
 * as soon as it has multiplied with that of this step, and those of W a step ahead: so what changes from product to product is the
 * narrower operand, which takes less power. The last products of a tile stand beside the staging of the next one, and in front of its
 * loads, so that one buffer does. At the end the sums pass through the same memory, 16 rows at a time, since elements of a matrix cannot
 * be reached.
 *
 * The text takes `thread`, `subgroup` and `lane`, and the constants of {@link ProductWriter.constants}.
 */
export class ProductWriter {
  readonly #block: ProductBlock;
  readonly #ops: MatrixOps;
  readonly #rowMatrices: readonly number[];
  readonly #columnMatrices: number;

  constructor(block: ProductBlock, ops: MatrixOps) {
    this.#block = block;
    this.#ops = ops;
    this.#rowMatrices = range(block.subgroupM / block.shape.m);
    this.#columnMatrices = block.subgroupN / block.shape.n;
  }

  /**
   * The row of an invocation's first 16-byte word of a tile. Eight neighbours store words of eight banks: those of a row of 8, or of two
   * rows of 4 that are four rows apart.
   */
  get line(): string {
    return this.#block.depth === 64 ? '(thread / 8u)' : '(thread / 32u * 8u + thread / 8u % 4u + thread / 4u % 2u * 4u)';
  }

  /** Constants of the text. */
  constants(): Record<string, number> {
    const b = this.#block;
    const slice = sliceColumns(b) / 4;
    return {
      BLOCK_M: b.blockM,
      BLOCK_N: b.blockN,
      THREADS: blockSubgroups(b) * SUBGROUP_SIZE,
      DEPTH: b.depth,
      DEPTH8: b.depth / 8,
      A_STRIDE: tileStride(b, b.blockM),
      W_STRIDE: tileStride(b, b.blockN),
      W_TILE: 16 * tileStride(b, b.blockM),
      // Of a row of sums in workgroup memory: its 16-byte words, and how far it is to the next one.
      SLICE4: slice,
      SLICE_STRIDE: slice + 1,
    };
  }

  /** Declares `tile`, where operands and then sums lie. */
  workgroupMemory(): string {
    return `var<workgroup> tile: array<vec4<u32>, ${tileWords(this.#block)}>;`;
  }

  /** Where the subgroup's part of the block begins, and its place for sums: `subgroup_row`, `subgroup_column`, `scratch`. */
  opening(): string {
    const b = this.#block;
    const across = b.blockN / b.subgroupN;
    return `let subgroup_row = (subgroup / ${across}u) * ${b.subgroupM}u;
let subgroup_column = (subgroup % ${across}u) * ${b.subgroupN}u;
let scratch = subgroup * 16u * SLICE_STRIDE;`;
  }

  /** Declares the sums and adds the products of the columns from `begin` to `end`, two WGSL expressions, multiples of the depth. */
  products(load: WordLoader, begin: string, end: string, absent?: AbsentWords): string {
    const ops = this.#ops;
    const b = this.#block;
    const { m, n, k } = b.shape;
    const rowMatrices = this.#rowMatrices;
    const columnMatrices = this.#columnMatrices;
    const threads = blockSubgroups(b) * SUBGROUP_SIZE;
    const d8 = b.depth / 8;
    const { line } = this;
    const group = 'thread % DEPTH8';
    /** Rows that all invocations together take at a time. */
    const turn = threads / d8;
    /** Statements for each 16-byte word of A and W that an invocation has room for. */
    const everyWord = (visit: (name: string, of: Operand, i: number, words: number) => string): string[] =>
      (['a', 'w'] as const).flatMap((of) => {
        const words = (of === 'a' ? b.blockM : b.blockN) * d8;
        return range(Math.ceil(words / threads)).map((i) => visit(`${of}_next_${i}`, of, i, words));
      });
    /** The same for words that it stages, `i * turn` rows below its first one, where there is such a row. */
    const eachWord = (visit: (name: string, of: Operand, i: number) => string): string[] =>
      everyWord((name, of, i, words) => {
        const body = visit(name, of, i);
        return (i + 1) * threads > words ? `if (thread + ${i * threads}u < ${words}u) {\n${body}\n}` : body;
      });
    const fetch = (k0: string): string[] =>
      eachWord((name, of, i) => `${name} = ${load(of, { line, offset: i * turn }, k0, group)};`);
    /** How far into a tile a row begins: a number where it is known when the text is written. */
    const rowAt = (of: Operand, row: Index): string => {
      const stride = of === 'a' ? 'A_STRIDE' : 'W_STRIDE';
      if (typeof row === 'number') return `${Math.floor(row / 16) * d8}u + ${row % 16}u * ${stride}`;
      return `${row} % 16u * ${stride} + ${row} / 16u * DEPTH8`;
    };
    const tileOf = { a: '', w: 'W_TILE + ' } as const;
    // Words that lie whole strips apart are in the same row of the strips: one address does for all.
    const places = (['a', 'w'] as const).map((of) => `let ${of}_place = ${tileOf[of]}${rowAt(of, line)} + ${group};`);
    const placeOf = (of: Operand, i: number): string =>
      turn % 16 === 0
        ? `${of}_place + ${(i * turn * d8) / 16}u`
        : `${tileOf[of]}${rowAt(of, `(${line} + ${i * turn}u)`)} + ${group}`;
    const stage = eachWord((name, of, i) => `tile[${placeOf(of, i)}] = ${name};`);
    // Behind the staging: a condition on a word that is still on its way would wait for it.
    const clear = (k0: string): string =>
      absent
        ? text(
            `if (${absent.when}) {`,
            eachWord(
              (_, of, i) =>
                `if (${absent.is(of, { line, offset: i * turn }, k0, group)}) {\ntile[${placeOf(of, i)}] = vec4<u32>();\n}`,
            ),
            '}',
          )
        : '';
    /** Part `i` of `count` of a list. */
    const part = (list: readonly string[], i: number, count: number): string[] =>
      list.slice(Math.floor((i * list.length) / count), Math.floor(((i + 1) * list.length) / count));
    const steps = b.depth / k;
    /** Loads the i-th matrix of A of a step. */
    const loadLeft = (step: number, i: number): string => {
      const at = `subgroup_row / 16u * DEPTH8 + ${rowAt('a', i * m)}`;
      return ops.loadInto('left', i, 'Left', 'tile', `${at} + ${(step * k) / 8}u`, 'A_STRIDE', 'row_major');
    };
    /** Loads the matrices of W of a step into set `step % 2`. */
    const loadRight = (step: number): string =>
      ops.each('j', columnMatrices, (j) => {
        const offset = `W_TILE + subgroup_column / 16u * DEPTH8 + ${rowAt('w', times(j, n))} + ${(step * k) / 8}u`;
        return ops.loadInto(`right_${step % 2}`, j, 'Right', 'tile', offset, 'W_STRIDE', 'col_major');
      });
    /** Products of a step and of one row of matrices; of every other row backwards, so that between rows the matrix of W stays. */
    const multiply = (step: number, i: number): string =>
      ops.each('j', columnMatrices, (place) => {
        const j =
          i % 2 === 0 ? place : typeof place === 'number' ? columnMatrices - 1 - place : `(${columnMatrices - 1}u - ${place})`;
        return ops.set(`c_${i}`, j, ops.multiplyAdd(ops.get('left', i), ops.get(`right_${step % 2}`, j), ops.get(`c_${i}`, j)));
      });
    const last = steps - 1;
    // Rows of matrices whose last products of a tile stand beside the staging of the next one; the others stand in front of its first loads.
    const beside = rowMatrices.slice(0, rowMatrices.length >> 1);
    const inFront = rowMatrices.slice(beside.length);
    // Compilers would move loads to where their words are used, past any barrier. A branch around them and nothing else keeps them
    // where they are: early, but behind the loads of matrices, which products wait for. Tiles of two steps leave no time between the
    // first and the staging, so that each word is fetched when the one before it has been stored.
    const guarded = (ahead: string, words: readonly string[]): string => text(`if (${ahead} < ${end}) {`, words, '}');
    const exchanges = steps <= 2;
    const ahead = fetch('(k0 + 2u * DEPTH)');
    const exchange = (i: number): string =>
      text(part(stage, i, beside.length), guarded('k0 + 2u * DEPTH', part(ahead, i, beside.length)));
    return text(
      places,
      rowMatrices.map((i) => ops.declare(`c_${i}`, 'Result', columnMatrices)),
      everyWord((name) => `var ${name} = vec4<u32>();`),
      ops.declare('left', 'Left', rowMatrices.length),
      ops.declare('right_0', 'Right', columnMatrices),
      ops.declare('right_1', 'Right', columnMatrices),
      fetch(begin),
      stage,
      clear(begin),
      exchanges ? guarded(`${begin} + DEPTH`, fetch(`(${begin} + DEPTH)`)) : '',
      `for (var k0 = ${begin}; k0 < ${end}; k0 += DEPTH) {`,
      'workgroupBarrier();',
      // The set of W of a tile's first step is not that of its last one: steps are even in number.
      loadRight(0),
      beside.map((i) => loadLeft(0, i)),
      // Products of the tile before: zeros before the first one.
      inFront.map((i) => text(multiply(last, i), loadLeft(0, i))),
      exchanges ? '' : guarded('k0 + DEPTH', fetch('(k0 + DEPTH)')),
      range(last).map((step) =>
        text(
          loadRight(step + 1),
          rowMatrices.map((i) => text(multiply(step, i), loadLeft(step + 1, i))),
        ),
      ),
      'workgroupBarrier();',
      beside.map((i) => text(multiply(last, i), exchanges ? exchange(i) : part(stage, i, beside.length))),
      clear('(k0 + DEPTH)'),
      '}',
      inFront.map((i) => multiply(last, i)),
    );
  }

  /**
   * Hands the sums over, 16 rows of the subgroup and a slice of its columns at a time: row r of them is SLICE4 words from
   * `scratch + r * SLICE_STRIDE` on in `tile`.
   *
   * @param take statements for the sums from a row and a column of the subgroup's part on
   */
  sums(take: (row: number, column: number) => string): string {
    const ops = this.#ops;
    const { m, n } = this.#block.shape;
    const slice = sliceColumns(this.#block);
    return text(
      range(this.#block.subgroupM / 16).flatMap((strip) =>
        range(this.#block.subgroupN / slice).map((part) =>
          text(
            'workgroupBarrier();',
            range(16 / m).map((sub) =>
              ops.each('j', slice / n, (j) =>
                ops.store(
                  'tile',
                  `scratch + ${sub * m}u * SLICE_STRIDE + ${wgsl(times(j, n / 4))}`,
                  ops.get(`c_${strip * (16 / m) + sub}`, plus((part * slice) / n, j)),
                  'SLICE_STRIDE',
                ),
              ),
            ),
            'workgroupBarrier();',
            take(strip * 16, part * slice),
          ),
        ),
      ),
    );
  }
}
