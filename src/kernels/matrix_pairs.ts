import { type Index, plus, times, wgsl } from './matrix_ops.js';
import { PairWriter } from './matrix_pair_writer.js';
import { indent, range, text } from './matrix_tiles.js';

/**
 * Writes the entry point of a kernel whose subgroups work in pairs. Of the softmax a subgroup takes 16 of the pair's rows, of {@link width}
 * keys an invocation. So scores and probabilities change hands, at the two barriers that staging needs anyway:
 *
 *   stage V of t, fetch that of t + 1; scores of t + 1 beside the softmax of t       barrier
 *   stage K of t + 2, fetch that of t + 3; O += P V of t; store the scores of t + 1   barrier
 *
 * Behind a barrier all subgroups do the same, and nothing hides what one waits for. So what comes from workgroup memory is asked for
 * first, and arrives while words are stored and addresses worked out.
 */
export class PairBody extends PairWriter {
  protected override probabilityOffset(r: number, c: number): string {
    const { m, k } = this.t.shape;
    return `(pair_row + ${r * m}u) * P_STRIDE + ${(c * k) / 8}u`;
  }

  main(): string {
    // Steps of the head dimension whose matrices of K are asked for right behind the barrier.
    const keySteps = Math.min(2, this.depth);
    return indent(
      text(
        this.arrays('Scores (f32), and in passing queries and output of each subgroup: its half of the columns of its pair.'),
        'var<workgroup> p_tile: array<vec4<u32>, BLOCK_M * P_STRIDE - 1u>;',
        '// What the output of a row is to be multiplied with, and the step at which rows of a subgroup rose.',
        'var<workgroup> row_factors: array<f32, BLOCK_M>;',
        'var<workgroup> risen: array<u32, BLOCK_M / 16u>;',
        '',
        this.opening(),
        `let pair_row = subgroup / 2u * 32u;
let side = subgroup % 2u;
let s_pair = pair_row * S_STRIDE + side * ${this.width / 4}u;
// This invocation works on half \`half\` of one row in the softmax, and otherwise on one row of the pair.
let own_row = subgroup * 16u + lane / 2u;
let half = lane % 2u;
let s_own = own_row * S_STRIDE + half;
let s_lane = s_pair + lane * S_STRIDE;
var m = M_START;
var l = 0.0;`,
        this.queries('pair_row', {
          array: 's_tile',
          word: (i, words) => `s_pair + (lane + ${i}u) / ${words}u * S_STRIDE + (lane + ${i}u) % ${words}u`,
          row: (row) => `s_pair + ${row}u * S_STRIDE`,
          stride: () => 'S_STRIDE',
        }),
        this.firstScores(),
        this.#storeScores(),
        this.stage('k'),
        this.fetch('k', '2u'),
        this.tileLoop(),
        'workgroupBarrier();',
        this.#takeScores(),
        range(keySteps).map((c) => this.keysAt(c)),
        this.stage('v'),
        this.early('tile + 1u', this.fetch('v', '(tile + 1u)')),
        this.#softmax(this.scores(keySteps)),
        'workgroupBarrier();',
        this.#takeRisen(),
        range(this.keyDepth).map((c) => this.probabilitiesAt(c)),
        this.t.vFirst ? this.valuesAt(0) : '',
        this.stage('k'),
        this.early('tile + 3u', this.fetch('k', '(tile + 3u)')),
        this.t.vFirst ? '' : this.valuesAt(0),
        this.#rescale(),
        this.output(1),
        this.#storeScores(),
        '}',
        this.#epilogue(),
        '}',
      ),
    );
  }

  #storeScores(): string {
    return text(this.rowMatrices.map((r) => this.#store(`s_${r}`, r, this.scoreMatrices, (j) => j)));
  }

  /** Stores matrices of a list side by side into this subgroup's part of s_tile. */
  #store(list: string, r: number, count: number, indexOf: (i: Index) => Index): string {
    const { ops } = this;
    const { m, n } = this.t.shape;
    return ops.each('n', count, (i) =>
      ops.store('s_tile', `s_pair + ${r * m}u * S_STRIDE + ${wgsl(times(i, n / 4))}`, ops.get(list, indexOf(i)), 'S_STRIDE'),
    );
  }

  /** This invocation's scores. */
  #takeScores(): string {
    return text(range(this.width / 4).map((j) => `var x_${j} = bitcast<vec4<f32>>(s_tile[s_own + ${2 * j}u]);`));
  }

  /**
   * Online softmax of the scores taken. Exponentials do not wait for the maxima: they are taken against the maxima of
   * before, and once more if a row's maximum rises by so much that this would not do, which is rare. `between`, the scores of the
   * next tile, stands before them, so that matrix units and exponentials work at the same time.
   */
  #softmax(between: string): string {
    const { ops } = this;
    const parts = range(this.width / 4);
    const exponentials = text(
      parts.map((j) => `p_${j} = exp2(fma(x_${j}, vec4<f32>(scale), vec4<f32>(-m)));`),
      `sum = ${this.sum(parts.map((j) => `p_${j}`))};`,
    );
    const storeProbabilities = range(this.width / 8)
      .map((u) => `p_tile[own_row * P_STRIDE + ${2 * u}u + half] = pack_halves(p_${2 * u}, p_${2 * u + 1});`)
      .join('\n');
    return text(
      '// P = exp2(scale S - m)',
      parts.map((j) => `var p_${j}: vec4<f32>;`),
      'var sum: f32;',
      `if (!${this.isFull('tile')}) {`,
      'let position = position_of(row0 + own_row);',
      parts.map((j) => this.hide(`x_${j}`, 'position', (i) => this.keyAt('tile', this.keyOf(j, i)))),
      '}',
      between,
      exponentials,
      `let own_max = ${this.greatest(parts.map((j) => `x_${j}`))};`,
      storeProbabilities,
      ops.any('rises', 'scale * own_max > m + MAX_RISE'),
      'if (rises) {',
      `let m_new = max(m, scale * ${ops.pairMax('own_max')});
let alpha = exp2(m - m_new);
m = m_new;
l *= alpha;`,
      exponentials,
      storeProbabilities,
      `row_factors[own_row] = alpha;
risen[subgroup] = tile + 1u;
}
l += sum;`,
    );
  }

  /** When rows of the pair's subgroups rose. */
  #takeRisen(): string {
    return this.ops.anyOfWorkgroup ? '' : 'let risen_of_pair = vec2<u32>(risen[pair_row / 16u], risen[pair_row / 16u + 1u]);';
  }

  /** Rescales the output where rows of the pair rose. */
  #rescale(): string {
    const { ops } = this;
    const rises = ops.anyOfWorkgroup ? 'rises' : 'any(risen_of_pair == vec2<u32>(tile + 1u))';
    return text(
      "// O = O exp2(m - m')",
      `if (${rises} && tile > 0u) {`,
      'let factor = select(1.0, row_factors[pair_row + lane], risen[pair_row / 16u + lane / 16u] == tile + 1u);',
      this.#eachOutput(
        (columns) => `for (var i = 0u; i < ${columns / 4}u; i++) {
s_tile[s_lane + i] = bitcast<vec4<u32>>(bitcast<vec4<f32>>(s_tile[s_lane + i]) * factor);
}`,
        true,
      ),
      '}',
    );
  }

  /** Passes the output through s_tile, a group of columns at a time, and back if wanted. */
  #eachOutput(visit: (columns: number, start: Index) => string, back: boolean): string {
    const { ops } = this;
    const { m, n } = this.t.shape;
    return this.eachGroup(
      this.width,
      (start, columns) =>
        text(
          ops.sync(),
          this.rowMatrices.map((r) => this.#store(`o_${r}`, r, columns / n, (i) => plus(times(start, columns / n), i))),
          ops.sync(),
          visit(columns, start),
          back
            ? text(
                ops.sync(),
                this.rowMatrices.map((r) =>
                  ops.each('n', columns / n, (i) =>
                    ops.loadInto(
                      `o_${r}`,
                      plus(times(start, columns / n), i),
                      'Result',
                      's_tile',
                      `s_pair + ${r * m}u * S_STRIDE + ${wgsl(times(i, n / 4))}`,
                      'S_STRIDE',
                      'row_major',
                    ),
                  ),
                ),
                ops.sync(),
              )
            : '',
        ),
      this.d / 2,
    );
  }

  /** O / l to memory, and the log-sum-exp. */
  #epilogue(): string {
    return text(
      `workgroupBarrier();
l = ${this.ops.pairSum('l')};
row_factors[own_row] = select(0.0, 1.0 / l, l > 0.0);
if (half == 0u && is_row(row0 + own_row) && params.write_lse != 0u) {
lse[lse_row(head_out, row0 + own_row)] = LN2 * (m + log2(l));
}
workgroupBarrier();
let inv_l = row_factors[pair_row + lane];
let row = row0 + pair_row + lane;
let to = o_row(head_out, row) + side * ${this.d / 8}u;`,
      this.#eachOutput(
        (columns, start) => `if (is_row(row)) {
for (var i = 0u; i < ${columns / 8}u; i++) {
let a = bitcast<vec4<f32>>(s_tile[s_lane + 2u * i]) * inv_l;
let b = bitcast<vec4<f32>>(s_tile[s_lane + 2u * i + 1u]) * inv_l;
store_o(to + ${wgsl(times(start, columns / 4))} + 2u * i, a, b);
}
}`,
        false,
      ),
    );
  }
}
