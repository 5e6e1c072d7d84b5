import { SUBGROUP_SIZE } from '../device/subgroup_matrix.js';
import { type MatrixKernel, type MatrixTiling, STRIP_ROWS } from './matrix_config.js';
import { type Index, type MatrixOps, plus, type TileArray, times, wgsl } from './matrix_ops.js';
import { range, TileWriter, text } from './matrix_tiles.js';

/** Where queries pass through workgroup memory, `words` 16-byte words of each of a pair's 32 rows at a time. */
export interface QueryRoom {
  readonly array: TileArray;
  /** Place of word `lane + i` of all rows, row after row. */
  readonly word: (i: number, words: number) => string;
  /** Where a row begins, and how far it is to the next one. */
  readonly row: (row: number, words: number) => string;
  readonly stride: (words: number) => string;
}

/**
 * What kernels share whose subgroups work in pairs, 32 rows for each pair, so that every matrix of K and V that is loaded from workgroup
 * memory is used twice: of the products with K a subgroup takes half of the tile's keys, of those with V half of the head dimension,
 * both for all 32 rows. The text takes `side` to be 0 or 1, which of its pair a subgroup is.
 */
export abstract class PairWriter extends TileWriter {
  /** Keys of a subgroup. */
  protected readonly width: number;

  constructor(kernel: MatrixKernel, headDim: number, tiling: MatrixTiling, ops: MatrixOps) {
    super(kernel, headDim, tiling, ops, { rows: 2 * STRIP_ROWS, keys: tiling.keys / 2, columns: headDim / 2 });
    this.width = tiling.keys / 2;
  }

  /**
   * First tiles and queries, all on the way at once; the queries pass through workgroup memory into registers.
   *
   * @param pairRow first row of the pair in the workgroup
   */
  protected queries(pairRow: string, through: QueryRoom): string {
    const { ops } = this;
    const { m, k } = this.t.shape;
    // A row of scores has room for twice as many halves; what remains of the head dimension has a group of its own.
    const groups = this.groupsOf(2 * this.width);
    const eachWord = (visit: (name: string, row: string, word: string, start: number) => string): string[] =>
      groups.flatMap(({ start, columns }) =>
        range(columns / 8).map((i) => {
          const at = `(lane + ${SUBGROUP_SIZE * i}u)`;
          return visit(`word_${start}_${i}`, `${at} / ${columns / 8}u`, `${at} % ${columns / 8}u`, start);
        }),
      );
    return text(
      this.declareFetched('k'),
      this.declareFetched('v'),
      eachWord((name) => `var ${name} = vec4<u32>();`),
      'if (params.n_q > 0u) {', // keeps the loads together
      this.fetch('k', '0u'),
      eachWord(
        (name, row, word, start) =>
          `${name} = load_q(q_row(q_head, row0 + ${pairRow} + ${row}) + 2u * (${word}) + ${start / 4}u);`,
      ),
      this.fetch('v', '0u'),
      '}',
      this.rowMatrices.map((r) => ops.declare(`q_${r}`, 'Left', this.depth)),
      groups.map(({ start, columns }) => {
        const words = columns / 8;
        return text(
          ops.sync(),
          range(words).map((i) => {
            const to = through.word(SUBGROUP_SIZE * i, words);
            return `${through.array}[${to}] = word_${start}_${i} ^ vec4<u32>(sign_flip);`;
          }),
          ops.sync(),
          this.rowMatrices.map((r) =>
            ops.each('c', columns / k, (c) => {
              const offset = `${through.row(r * m, words)} + ${wgsl(times(c, k / 8))}`;
              return ops.loadInto(
                `q_${r}`,
                plus(start / k, c),
                'Left',
                through.array,
                offset,
                through.stride(words),
                'row_major',
              );
            }),
          ),
        );
      }),
      ops.sync(),
    );
  }

  /** Offset in `p_tile` of the probabilities of row matrix r at step c of the keys. */
  protected abstract probabilityOffset(r: number, c: number): string;

  /** The matrices of K at step c of the head dimension, as keys_<c>_<keys>. */
  protected keysAt(c: number): string {
    return text(range(this.scoreMatrices).map((j) => `let keys_${c}_${j} = ${this.#key(c, j)};`));
  }

  /** Loads a matrix of this subgroup's keys. */
  #key(c: Index, j: Index): string {
    const { n, k } = this.t.shape;
    const offset = `(side * ${this.width}u + ${wgsl(times(j, n))}) * KV_STRIDE + ${wgsl(times(c, k / 8))}`;
    return this.ops.load('Right', 'k_tile', offset, 'KV_STRIDE', 'col_major');
  }

  /** S = Q K^T for this subgroup's keys of the staged tile; `loaded` steps of the head dimension are loaded ({@link keysAt}). */
  protected scores(loaded = 0): string {
    const { ops } = this;
    const products = (c: Index, j: Index, right: string): string[] =>
      this.rowMatrices.map((r) => ops.set(`s_${r}`, j, ops.multiplyAdd(ops.get(`q_${r}`, c), right, ops.get(`s_${r}`, j))));
    return text(
      '// S = Q K^T',
      this.rowMatrices.map((r) => ops.each('n', this.scoreMatrices, (j) => ops.set(`s_${r}`, j, ops.zero()))),
      range(loaded).flatMap((c) => range(this.scoreMatrices).map((j) => text(products(c, j, `keys_${c}_${j}`)))),
      ops.each('c', this.depth - loaded, (c) =>
        ops.each('n', this.scoreMatrices, (j) =>
          text(`let right = ${this.#key(plus(loaded, c), j)};`, products(plus(loaded, c), j, 'right')),
        ),
      ),
    );
  }

  /** Declares output and scores; scores of the first tile, whose K is fetched, and K of the second one on its way. */
  protected firstScores(): string {
    return text(
      this.rowMatrices.map((r) => this.ops.declare(`o_${r}`, 'Result', this.outputMatrices)),
      this.rowMatrices.map((r) => this.ops.declare(`s_${r}`, 'Result', this.scoreMatrices)),
      this.stage('k'),
      this.fetch('k', '1u'),
      'workgroupBarrier();',
      this.scores(),
      'workgroupBarrier();',
    );
  }

  /** The probabilities at step c of the keys, as left_<rows>_<c>. */
  protected probabilitiesAt(c: number): string {
    return text(
      this.rowMatrices.map(
        (r) => `let left_${r}_${c} = ${this.ops.load('Left', 'p_tile', this.probabilityOffset(r, c), 'P_STRIDE', 'row_major')};`,
      ),
    );
  }

  /** The matrices of V at step c of the keys, as right_<c>_<columns>. */
  protected valuesAt(c: number): string {
    return text(range(this.outputMatrices).map((j) => `let right_${c}_${j} = ${this.#value(c, j)};`));
  }

  /** Loads a matrix of V of this subgroup's half of the head dimension. */
  #value(c: number, j: Index): string {
    const { n, k } = this.t.shape;
    const offset = `${c * k}u * KV_STRIDE + side * ${this.d / 16}u + ${wgsl(times(j, n / 8))}`;
    return this.ops.load('Right', 'v_tile', offset, 'KV_STRIDE', 'row_major');
  }

  /** O += P V for this subgroup's half of the head dimension; `loaded` steps of the keys are loaded ({@link valuesAt}). */
  protected output(loaded = 0): string {
    const { ops } = this;
    const products = (c: number, j: Index, right: string): string[] =>
      this.rowMatrices.map((r) => ops.set(`o_${r}`, j, ops.multiplyAdd(`left_${r}_${c}`, right, ops.get(`o_${r}`, j))));
    return text(
      '// O += P V',
      range(loaded).flatMap((c) => range(this.outputMatrices).map((j) => text(products(c, j, `right_${c}_${j}`)))),
      range(this.keyDepth - loaded).map((i) =>
        ops.each('n', this.outputMatrices, (j) =>
          text(`let right = ${this.#value(loaded + i, j)};`, products(loaded + i, j, 'right')),
        ),
      ),
    );
  }
}
