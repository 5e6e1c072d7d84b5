import { SUBGROUP_SIZE } from '../device/subgroup_matrix.js';
import { type MatrixKernel, type MatrixTiling, STRIP_ROWS, secondStrip } from './matrix_config.js';
import { type Index, type MatrixOps, plus, times, wgsl } from './matrix_ops.js';
import { PairWriter } from './matrix_pair_writer.js';
import { indent, plusConstant, range, slotOf, text } from './matrix_tiles.js';

/** Strips of 16 rows that a subgroup works on. */
const STRIPS = [0, 1] as const;

/**
 * Writes the entry point of a kernel whose subgroups work in pairs, in less workgroup memory than {@link PairBody}: so two workgroups fit a
 * multiprocessor, and one works while the other waits.
 *
 * Of the softmax a subgroup takes the scores that it has computed, and only probabilities change hands. Scores leave the matrices through
 * the slice of `k_tile` that the subgroup itself stages: the products with the old keys are done, the new ones not there yet.
 *
 *   stage V of t, fetch K of t + 2; P of t; scores of t + 1 beside its exponentials                                 barrier
 *   scores of t + 1 through the slice; stage K of t + 2, fetch V of t + 1; O += P V of t; maxima of t + 1            barrier
 *
 * A row's maximum is that of both subgroups: where it rises by more than MAX_RISE, which is rare, they tell each other, and O is rescaled.
 */
export class SliceBody extends PairWriter {
  /** 16-byte words of a result matrix, whose rows lie side by side in the slice: no bank conflicts with columns of 32 bytes. */
  readonly #matrixWords: number;

  constructor(kernel: MatrixKernel, headDim: number, tiling: MatrixTiling, ops: MatrixOps) {
    super(kernel, headDim, tiling, ops);
    this.#matrixWords = (tiling.shape.m * tiling.shape.n) / 4;
  }

  /** A subgroup's words are those of the rows of its slice, of `v_tile` as of `k_tile`. */
  protected override slot(tensor: 'k' | 'v', i: number): { readonly slot: string; readonly d: string; readonly row: string } {
    const rows = i * (SUBGROUP_SIZE / (this.d / 8));
    const row = `(slice_row${plusConstant(rows)})`;
    // slot_of is its own inverse.
    return { slot: tensor === 'k' ? row : `(slice_slot${plusConstant(slotOf(rows))})`, d: '(lane % D8)', row };
  }

  protected override probabilityOffset(r: number, c: number): string {
    const { m, k } = this.t.shape;
    const strip = Math.floor((r * m) / STRIP_ROWS);
    const lines = `pair * ${this.t.keys / 8}u + ${strip * secondStrip(this.t)}u`;
    return `${(r * m) % STRIP_ROWS}u * P_STRIDE + ${lines} + ${(c * k) / 8}u`;
  }

  main(): string {
    const { ops } = this;
    const { m, n } = this.t.shape;
    const lanePart =
      m === STRIP_ROWS
        ? `lane / 2u * ${n / 4}u`
        : `lane / ${2 * m}u * ${this.scoreMatrices * this.#matrixWords}u + lane / 2u % ${m}u * ${n / 4}u`;
    // Steps of the head dimension whose matrices of K are asked for right behind the barrier.
    const keySteps = Math.min(2, this.depth);
    const listed = this.kernel === 'block_sparse';
    // First keys of the tiles behind this one.
    const keys0 = ['next_key0', 'ahead_key0'];
    const keysOf = (name: string): string | undefined => (listed ? name : undefined);
    return indent(
      text(
        this.arrays(),
        '// Probabilities: lines of the first strips of all pairs, and of the second ones.',
        'var<workgroup> p_tile: array<vec4<u32>, 16u * P_STRIDE>;',
        '// Maxima of a row, of either half of the keys, and the step at which they rose in a subgroup.',
        'var<workgroup> row_max: array<f32, 2u * BLOCK_M>;',
        'var<workgroup> risen: array<u32, BLOCK_M / 16u>;',
        '',
        this.opening(),
        `let pair = subgroup / 2u;
let side = subgroup % 2u;
let slice = subgroup * (BLOCK_N / ${this.t.subgroups}u) * KV_STRIDE;
let slice_row = subgroup * (BLOCK_N / ${this.t.subgroups}u) + lane / D8;
let slice_slot = slot_of(slice_row);
// This invocation works on half \`half\` of row \`lane / 2\` of both strips.
let half = lane % 2u;
let p_lane = lane / 2u * P_STRIDE + pair * ${this.t.keys / 8}u + side * ${this.width / 8}u + half;
let s_lane = slice + ${lanePart};
let local_row = pair * 32u + lane / 2u;`,
        STRIPS.map(
          (s) => `let row_${s} = row0 + local_row + ${s * STRIP_ROWS}u;
var m_${s} = M_START;
var l_${s} = 0.0;`,
        ),
        this.walks ? this.beginWalk() : '',
        this.queries('pair * 32u', {
          array: 'k_tile',
          word: (i) => `slice + lane + ${i}u`,
          row: (row, words) => `slice + ${row * words}u`,
          stride: (words) => `${words}u`,
        }),
        this.firstScores(),
        this.#storeScores(),
        this.#takeScores(true),
        ops.sync(),
        this.stage('k'),
        listed ? keys0.map((name, i) => `var ${name} = ${this.firstKey(`${i + 1}u`)};`) : '',
        ops.anyOfWorkgroup ? 'var rises = false;' : '',
        this.#maxima('0u', listed ? this.firstKey('0u') : undefined),
        this.tileLoop(),
        'workgroupBarrier();',
        this.#rise(),
        range(keySteps).map((c) => this.keysAt(c)),
        this.stage('v'),
        this.early('tile + 2u', this.fetch('k', '(tile + 2u)', keysOf('ahead_key0'))),
        this.walks ? this.handOnWalk() : '',
        this.scores(keySteps),
        this.#exponentials(),
        'workgroupBarrier();',
        this.#storeScores(),
        range(this.keyDepth).map((c) => this.probabilitiesAt(c)),
        this.#takeScores(false),
        ops.sync(),
        this.stage('k'),
        this.early('tile + 1u', this.fetch('v', '(tile + 1u)', keysOf('next_key0'))),
        this.output(),
        this.#maxima('(tile + 1u)', keysOf('next_key0')),
        listed ? keys0.map((name, i) => `${name} = ${keys0[i + 1] ?? this.firstKey(`(tile + ${keys0.length + 1}u)`)};`) : '',
        '}',
        this.#epilogue(),
        '}',
      ),
    );
  }

  /** Where matrix j of the columns in the slice lies, of row matrix r. */
  #place(r: number, j: Index): string {
    return `slice + ${r * this.scoreMatrices * this.#matrixWords}u + ${wgsl(times(j, this.#matrixWords))}`;
  }

  /** Stores matrices of a list into the slice, from index `start` on. */
  #store(list: string, r: number, start: Index = 0, array: 'k_tile' | 'v_tile' = 'k_tile'): string {
    const { ops } = this;
    return ops.each('n', this.scoreMatrices, (j) =>
      ops.store(array, this.#place(r, j), ops.get(list, plus(start, j)), `${this.t.shape.n / 4}u`),
    );
  }

  #storeScores(): string {
    return text(
      this.rowMatrices.map((r) => this.#store(`s_${r}`, r)),
      this.ops.sync(),
    );
  }

  /** Offset from `s_lane` of a strip's columns 4 c to 4 c + 3, c even. */
  #words(strip: number, c: number): number {
    const { m, n } = this.t.shape;
    const fours = n / 4;
    const rows = strip * (STRIP_ROWS / m) * this.scoreMatrices * this.#matrixWords;
    return rows + Math.floor(c / fours) * this.#matrixWords + (c % fours);
  }

  /** This invocation's groups of four scores of a strip, and the variable of each. */
  #taken(strip: number): { readonly j: number; readonly x: string; readonly p: string }[] {
    return range(this.width / 8).map((j) => ({ j, x: `x_${strip}_${j}`, p: `p_${strip}_${j}` }));
  }

  #takeScores(declare: boolean): string {
    return text(
      STRIPS.flatMap((s) =>
        this.#taken(s).map(
          ({ j, x }) => `${declare ? 'var ' : ''}${x} = bitcast<vec4<f32>>(k_tile[s_lane + ${this.#words(s, 2 * j)}u + half]);`,
        ),
      ),
    );
  }

  /** Hides scores of a tile that rows do not see, and says so where maxima rise. */
  #maxima(tile: string, key0?: string): string {
    const { ops } = this;
    return text(
      '{',
      `if (!${this.isFull(tile, key0)}) {`,
      STRIPS.map((s) =>
        text(
          `let position_${s} = position_of(row_${s});`,
          this.#taken(s).map(({ j, x }) =>
            this.hide(x, `position_${s}`, (i) => this.keyAt(tile, `side * ${this.width}u + ${this.keyOf(j, i)}`, key0)),
          ),
        ),
      ),
      '}',
      STRIPS.map((s) => `let own_max_${s} = ${this.greatest(this.#taken(s).map(({ x }) => x))};`),
      ops.any('rises_ahead', STRIPS.map((s) => `(scale * own_max_${s} > m_${s} + MAX_RISE)`).join(' | ')),
      'if (rises_ahead) {',
      STRIPS.map((s) => `row_max[side * BLOCK_M + local_row + ${s * STRIP_ROWS}u] = scale * ${ops.pairMax(`own_max_${s}`)};`),
      `risen[subgroup] = ${tile} + 1u;`,
      '}',
      ops.anyOfWorkgroup ? 'rises = rises_ahead;' : '',
      '}',
    );
  }

  /** Moves to the maxima of the tile where rows of the pair rose; the output is rescaled through the slice of V, which is stored behind that. */
  #rise(): string {
    const { ops } = this;
    return text(
      `let risen_of_pair = vec2<u32>(risen[2u * pair], risen[2u * pair + 1u]);`,
      ops.anyOfWorkgroup ? '' : 'let rises = any(risen_of_pair == vec2<u32>(tile + 1u));',
      'if (rises) {',
      STRIPS.map((s) => {
        const of = (side: number): string =>
          `select(M_START, row_max[${side > 0 ? 'BLOCK_M + ' : ''}local_row + ${s * STRIP_ROWS}u], risen_of_pair[${side}] == tile + 1u)`;
        return `let m_new_${s} = max(m_${s}, max(${of(0)}, ${of(1)}));
let alpha_${s} = exp2(m_${s} - m_new_${s});
m_${s} = m_new_${s};
l_${s} *= alpha_${s};`;
      }),
      "// O = O exp2(m - m')",
      'if (tile > 0u) {',
      this.#rescale(),
      '}',
      '}',
    );
  }

  /**
   * P = exp2(scale S - m), to p_tile. Of a row's two invocations one stores its word of the first strip first, the other one that of
   * the second: so neither they nor those of three rows beside them meet in a bank ({@link secondStrip}).
   */
  #exponentials(): string {
    const second = secondStrip(this.t);
    const words = range(this.width / 16);
    return text(
      '// P = exp2(scale S - m)',
      STRIPS.flatMap((s) => words.map((u) => `var p_word_${s}_${u}: vec4<u32>;`)),
      STRIPS.map((s) => {
        const taken = this.#taken(s);
        return text(
          '{',
          taken.map(({ x, p }) => `let ${p} = exp2(fma(${x}, vec4<f32>(scale), vec4<f32>(-m_${s})));`),
          words.map((u) => `p_word_${s}_${u} = pack_halves(p_${s}_${2 * u}, p_${s}_${2 * u + 1});`),
          `l_${s} += ${this.sum(taken.map(({ p }) => p))};`,
          '}',
        );
      }),
      words.map(
        (u) => `p_tile[p_lane + ${2 * u}u + half * ${second}u] = select(p_word_0_${u}, p_word_1_${u}, half == 1u);
p_tile[p_lane + ${2 * u}u + (1u - half) * ${second}u] = select(p_word_1_${u}, p_word_0_${u}, half == 1u);`,
      ),
    );
  }

  /** Multiplies the output with `alpha_<strip>`, a group of columns at a time through the slice of V. */
  #rescale(): string {
    const { ops } = this;
    const scale = (word: string, s: number): string =>
      `v_tile[${word}] = bitcast<vec4<u32>>(bitcast<vec4<f32>>(v_tile[${word}]) * alpha_${s});`;
    const stride = `${this.t.shape.n / 4}u`;
    return ops.each('g', this.d / 2 / this.width, (g) => {
      const start = times(g, this.scoreMatrices);
      return text(
        ops.sync(),
        this.rowMatrices.map((r) => this.#store(`o_${r}`, r, start, 'v_tile')),
        ops.sync(),
        STRIPS.flatMap((s) => this.#eights(s).flatMap(({ words }) => words.map((word) => scale(word, s)))),
        ops.sync(),
        this.rowMatrices.map((r) =>
          ops.each('n', this.scoreMatrices, (j) =>
            ops.loadInto(`o_${r}`, plus(start, j), 'Result', 'v_tile', this.#place(r, j), stride, 'row_major'),
          ),
        ),
        ops.sync(),
      );
    });
  }

  /** The eights of columns of a strip's row in the slice that this invocation works on: their columns, and their two words. */
  #eights(strip: number): { readonly column: string; readonly words: readonly [string, string] }[] {
    const { n } = this.t.shape;
    const otherHalf = n === 8 ? this.#matrixWords : 2;
    return range(this.width / 16).map((u) => {
      const word = (i: number): string => `s_lane + ${this.#words(strip, 4 * u) + i}u + half * ${otherHalf}u`;
      return { column: `${16 * u}u + 8u * half`, words: [word(0), word(1)] };
    });
  }

  /** O / l to memory, and the log-sum-exp; merged with those of the band, where the head has one. */
  #epilogue(): string {
    const groups = range(this.d / 2 / this.width);
    const band = (s: number, g: number, u: number): string => `o_word_${s}_${g}_${u}`;
    const eachEight = (visit: (s: number, g: number, u: number, at: string) => string): string[] =>
      STRIPS.flatMap((s) =>
        groups.flatMap((g) =>
          this.#eights(s).map(({ column }, u) => visit(s, g, u, `side * ${this.d / 8}u + (${column} + ${g * this.width}u) / 4u`)),
        ),
      );
    return text(
      this.walks
        ? text(
            'let merges = has_band(entry);',
            eachEight((s, g, u) => `var ${band(s, g, u)} = vec4<u32>();`),
            'if (params.n_q > 0u) {', // keeps the loads together
            eachEight((s, g, u, at) => `${band(s, g, u)} = load_o(o_row(head_out, min(row_${s}, params.n_q - 1u)) + ${at});`),
            '}',
          )
        : '',
      'workgroupBarrier();',
      STRIPS.map((s) =>
        text(
          `let own_l_${s} = ${this.ops.pairSum(`l_${s}`)};`,
          `row_max[side * BLOCK_M + local_row + ${s * STRIP_ROWS}u] = own_l_${s};`,
        ),
      ),
      'workgroupBarrier();',
      STRIPS.map((s) =>
        text(
          `let sum_${s} = row_max[local_row + ${s * STRIP_ROWS}u] + row_max[BLOCK_M + local_row + ${s * STRIP_ROWS}u];`,
          this.walks
            ? `var m_band_${s} = M_START;
if (merges) {
m_band_${s} = LOG2E * lse[lse_row(head_out, min(row_${s}, params.n_q - 1u))];
}
let m_all_${s} = max(m_${s}, m_band_${s});
let total_${s} = sum_${s} * exp2(m_${s} - m_all_${s}) + select(0.0, exp2(m_band_${s} - m_all_${s}), merges);
let inv_total_${s} = select(0.0, 1.0 / total_${s}, total_${s} > 0.0);
let own_${s} = exp2(m_${s} - m_all_${s}) * inv_total_${s};
let of_band_${s} = exp2(m_band_${s} - m_all_${s}) * inv_total_${s};`
            : `let m_all_${s} = m_${s};
let total_${s} = sum_${s};
let own_${s} = select(0.0, 1.0 / sum_${s}, sum_${s} > 0.0);`,
        ),
      ),
      this.walks ? 'storageBarrier();' : '', // the other subgroup of the pair reads the band's log-sum-exp, too
      STRIPS.map(
        (s) => `if (side == 0u && half == 0u && is_row(row_${s}) && params.write_lse != 0u) {
lse[lse_row(head_out, row_${s})] = LN2 * (m_all_${s} + log2(total_${s}));
}`,
      ),
      groups.map((g) => {
        const { ops } = this;
        return text(
          '{',
          ops.sync(),
          this.rowMatrices.map((r) => this.#store(`o_${r}`, r, g * this.scoreMatrices)),
          ops.sync(),
          STRIPS.map((s) =>
            text(
              `if (is_row(row_${s})) {`,
              this.#eights(s).map(
                ({ column, words }, u) => `{
var a = bitcast<vec4<f32>>(k_tile[${words[0]}]) * own_${s};
var b = bitcast<vec4<f32>>(k_tile[${words[1]}]) * own_${s};
${this.walks ? this.addBand(band(s, g, u), `of_band_${s}`) : ''}
store_o(o_row(head_out, row_${s}) + side * ${this.d / 8}u + (${column} + ${g * this.width}u) / 4u, a, b);
}`,
              ),
              '}',
            ),
          ),
          '}',
        );
      }),
    );
  }
}
