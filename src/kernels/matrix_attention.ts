import aShape from '../../shaders/a_shape.wgsl?raw';
import blockSparse from '../../shaders/block_sparse.wgsl?raw';
import dense from '../../shaders/dense.wgsl?raw';
import attentionBindings from '../../shaders/lib/attention_bindings.wgsl?raw';
import headEntry from '../../shaders/lib/head_entry.wgsl?raw';
import packHalves from '../../shaders/lib/pack_halves.wgsl?raw';
import verticalSlashIndex from '../../shaders/lib/vertical_slash_index.wgsl?raw';
import fullTileAShape from '../../shaders/matrix/full_tile_a_shape.wgsl?raw';
import fullTileCausal from '../../shaders/matrix/full_tile_causal.wgsl?raw';
import fullTileSlashBand from '../../shaders/matrix/full_tile_slash_band.wgsl?raw';
import softmax from '../../shaders/matrix/softmax.wgsl?raw';
import storageF16 from '../../shaders/matrix/storage_f16.wgsl?raw';
import storageF16Wide from '../../shaders/matrix/storage_f16_wide.wgsl?raw';
import verticalSlash from '../../shaders/matrix/vertical_slash.wgsl?raw';
import slashBand from '../../shaders/slash_band.wgsl?raw';
import { lazyShader, type ShaderSpec } from '../device/pipelines.js';
import { SUBGROUP_SIZE } from '../device/subgroup_matrix.js';
import { invalidArgument } from '../errors.js';
import { ATTENTION_BINDINGS, rowLibrary } from './attention.js';
import {
  type MatrixKernel,
  type MatrixTiling,
  matrixBlockM,
  probabilityStride,
  STRIP_ROWS,
  scoreStride,
  stagedStride,
  tilingProblem,
} from './matrix_config.js';
import { type Index, type MatrixOps, nativeOps, plus, times, wgsl } from './matrix_ops.js';
import { PairBody } from './matrix_pairs.js';
import { SliceBody } from './matrix_slices.js';
import { indent, range, TileWriter, text } from './matrix_tiles.js';
import { prelude } from './shader_text.js';
import { startsOn16Bytes, type TensorWindow } from './tensor.js';

/** How a matrix kernel reads and writes tensors: `f16-wide` moves 16 bytes at a time, so every row must start on 16 bytes. */
export type MatrixStorage = 'f16-wide' | 'f16';

/** The fastest storage format that the bound tensors, which hold f16, allow. */
export function matrixStorage(windows: readonly TensorWindow[]): MatrixStorage {
  return windows.every(startsOn16Bytes) ? 'f16-wide' : 'f16';
}

const STORAGE: Readonly<Record<MatrixStorage, string>> = { 'f16-wide': storageF16Wide, f16: storageF16 };

const SOURCES: Readonly<Record<MatrixKernel, readonly string[]>> = {
  dense: [dense, fullTileCausal],
  a_shape: [aShape, fullTileAShape],
  vertical_slash: [verticalSlash],
  block_sparse: [blockSparse, fullTileCausal],
  slash_band: [verticalSlashIndex, slashBand, fullTileSlashBand],
};

/**
 * The matrix-tier attention kernel of a pattern: FlashAttention-2's loop on subgroup matrices, f16 inputs and
 * probabilities, f32 scores, softmax and output.
 *
 *   for each tile of BLOCK_N keys:   S = Q K^T;   m' = max(m, rowmax S);   P = exp2(scale S - m')
 *                                    l = l exp2(m - m') + rowsum P;   O = O exp2(m - m') + P V
 *
 * A subgroup owns `strips` strips of 16 query rows, entirely: only staging K and V needs the whole workgroup. Its scores leave the
 * matrices through workgroup memory that no other subgroup touches (`s_tile`), where two invocations share a row; probabilities go
 * back the same way, in place. m, l and the rare rescaling of O (when a maximum rises by more than 2^8: FlashAttention-4's lazy
 * rescaling) are a subgroup's own decision. Or two subgroups share 32 rows, decide together and exchange what they must:
 * {@link PairBody}, {@link SliceBody}.
 * Tiles that every row sees entirely skip the mask.
 *
 * WGSL has no access to the elements of a matrix, and arrays of matrices land in local memory unless every
 * index is a literal, so the text is generated with every matrix a variable of its own.
 *
 * Bindings, parameters and head entries are those of shaders/lib/attention_bindings.wgsl; the pattern's own
 * shaders/*.wgsl says which keys each tile holds. Dispatch: one workgroup for each `matrixBlockM(tiling)` rows.
 *
 * @throws {@link MinferenceError} `invalid-argument` for a tiling that does not suit the kernel or head size.
 */
export function matrixAttentionShader(
  kernel: MatrixKernel,
  headDim: number,
  storage: MatrixStorage,
  tiling: MatrixTiling,
  ops: MatrixOps = nativeOps(tiling.shape, tiling.sync),
): ShaderSpec {
  const problem = tilingProblem(kernel, headDim, tiling);
  if (problem) throw invalidArgument('tiling', tiling, `a tiling for ${kernel} attention: ${problem}`);
  const t = tiling;
  const rows = rowLibrary(t.group);
  const head = prelude({
    f16: true,
    constants: {
      HEAD_DIM: headDim,
      ...rows.constants,
      BLOCK_M: matrixBlockM(t),
      BLOCK_N: t.keys,
      SCORE_KEYS: t.scoreKeys,
      THREADS: t.subgroups * SUBGROUP_SIZE,
      D8: headDim / 8,
      KV_STRIDE: stagedStride(headDim),
      S_STRIDE: scoreStride(t),
      P_STRIDE: probabilityStride(t),
    },
  });
  const enables = head.slice(0, head.indexOf('const '));
  const tag = [
    `${matrixBlockM(t)}x${t.keys}`,
    `r${STRIP_ROWS * t.strips}`,
    ...(t.pairs ? [t.slices ? 'slices' : 'pairs'] : []),
    ...(t.vFirst ? ['v-first'] : []),
    ...(t.split ? ['split'] : []),
    ...((t.group ?? 1) > 1 ? [`g${t.group}`] : []),
    `s${t.scoreKeys}`,
    `q-${t.queries}`,
    t.staging,
    ...(t.pipelined ? ['pipelined'] : []),
    ...(t.unrolled ? ['unrolled'] : []),
    ops.name,
  ].join(' ');
  const spec = { label: `${kernel} matrix D=${headDim} ${storage} ${tag}`, bindings: [...ATTENTION_BINDINGS, ...ops.bindings] };
  return lazyShader(spec, () => {
    const main = new (t.slices ? SliceBody : t.pairs ? PairBody : KernelBody)(kernel, headDim, t, ops).main();
    return [
      enables + ops.directives,
      head.slice(enables.length),
      headEntry,
      attentionBindings,
      rows.code,
      STORAGE[storage],
      packHalves,
      softmax,
      ops.declarations(),
      ...SOURCES[kernel],
      main,
    ].join('\n');
  });
}

/** Writes the entry point of one kernel. */
class KernelBody extends TileWriter {
  readonly #strips: readonly number[];
  /** An invocation's scores of a row, four keys each: every other four (see {@link TileWriter.keyOf}). */
  readonly #fours: readonly number[];

  constructor(kernel: MatrixKernel, headDim: number, tiling: MatrixTiling, ops: MatrixOps) {
    const { scoreKeys } = tiling;
    super(kernel, headDim, tiling, ops, { rows: STRIP_ROWS, keys: scoreKeys, columns: headDim });
    this.#strips = range(tiling.strips);
    this.#fours = range(scoreKeys / 8);
  }

  /** Every (strip, row matrix) of a subgroup, with its name. */
  #rows(): { readonly strip: number; readonly matrix: number; readonly id: string }[] {
    return this.#strips.flatMap((strip) =>
      this.rowMatrices.map((matrix) => ({ strip, matrix, id: `${strip}${this.rowMatrices.length > 1 ? `_${matrix}` : ''}` })),
    );
  }

  #rowsOf(strip: number): { readonly matrix: number; readonly id: string }[] {
    return this.#rows().filter((r) => r.strip === strip);
  }

  /** Offset in `s_tile` of a matrix of a strip whose first column lies `words` into the row. */
  #at(strip: number, matrix: number, words: Index): string {
    const rows = matrix * this.t.shape.m;
    return `strip_${strip}${rows > 0 ? ` + ${rows}u * S_STRIDE` : ''}${words === 0 ? '' : ` + ${wgsl(words)}`}`;
  }

  main(): string {
    const t = this.t;
    const registers = t.queries === 'registers';
    const body = text(
      this.arrays(
        'Scores (f32), probabilities (f16) and, in passing, queries and output of each subgroup: its strips, side by side.',
      ),
      registers ? '' : 'var<workgroup> q_tile: array<vec4<u32>, BLOCK_M * KV_STRIDE>;',
      '',
      this.opening(),
      '// This invocation works on half `lane % 2` of row `lane / 2` of each strip.',
      `let strip_row = lane / 2u;
let half = lane % 2u;`,
      this.#strips.map(
        (s) => `let strip_${s} = (subgroup * ${t.strips}u + ${s}u) * (SCORE_KEYS / 4u);
let row_${s} = row0 + (subgroup * ${t.strips}u + ${s}u) * ${STRIP_ROWS}u + strip_row;
let s_row_${s} = strip_${s} + strip_row * S_STRIDE;
var m_${s} = M_START;
var l_${s} = 0.0;`,
      ),
      registers ? this.#queriesToRegisters() : this.#queriesToWorkgroup(),
      this.#rows().map(({ id }) => this.ops.declare(`o_${id}`, 'Result', this.outputMatrices)),
      this.#loop(),
      this.#epilogue(),
      '}',
    );
    return indent(body);
  }

  // ---- queries

  #queriesToRegisters(): string {
    const ops = this.ops;
    const { k } = this.t.shape;
    const word = (s: number, i: number): string => `q_word_${s}_${i}`;
    return text(
      '// Queries pass through s_tile into registers.',
      this.#loadRows(word, (row, at) => `load_q(q_row(q_head, ${row}) + ${at})`),
      this.#rows().map(({ id }) => ops.declare(`q_${id}`, 'Left', this.depth)),
      // A row of s_tile holds twice as many halves as scores.
      this.groupsOf(2 * this.t.scoreKeys).map(({ start, columns }) =>
        text(
          ops.sync(),
          this.#strips.flatMap((s) =>
            range(columns / 16).map(
              (i) => `s_tile[s_row_${s} + ${2 * i}u + half] = ${word(s, start / 16 + i)} ^ vec4<u32>(sign_flip);`,
            ),
          ),
          ops.sync(),
          this.#rows().map(({ strip, id, matrix }) =>
            ops.each('c', columns / k, (c) =>
              ops.loadInto(
                `q_${id}`,
                plus(start / k, c),
                'Left',
                's_tile',
                this.#at(strip, matrix, times(c, k / 8)),
                'S_STRIDE',
                'row_major',
              ),
            ),
          ),
        ),
      ),
    );
  }

  /** Loads this invocation's words of its rows, eight columns each, every other word of a row: all are on the way at once. */
  #loadRows(word: (strip: number, i: number) => string, load: (row: string, at: string) => string): string {
    const words = this.#strips.flatMap((s) => range(this.d / 16).map((i) => ({ s, i })));
    return text(
      words.map(({ s, i }) => `var ${word(s, i)} = vec4<u32>();`),
      'if (params.n_q > 0u) {', // keeps the loads together
      words.map(({ s, i }) => `${word(s, i)} = ${load(`row_${s}`, `2u * (${2 * i}u + half)`)};`),
      '}',
    );
  }

  #queriesToWorkgroup(): string {
    return `for (var i = thread; i < BLOCK_M * D8; i += THREADS) {
let row = i / D8;
let d = i % D8;
var x = vec4<u32>();
if (is_row(row0 + row)) {
x = load_q(q_row(q_head, row0 + row) + 2u * d) ^ vec4<u32>(sign_flip);
}
q_tile[row * KV_STRIDE + d] = x;
}`;
  }

  // ---- the loop

  /** How the loops of `single` and `prefetch` staging come by keys that are in memory: ahead of the tiles that wait for them. */
  #lookUps(): {
    /** The first key of the tile that `begin` or `next` was called for, where its keys are neighbours. */
    readonly key0?: string;
    /** Before the loop; `tile` is the first whose first key is looked up ahead. */
    readonly begin: (tile: string) => string;
    /** While others store. */
    readonly meanwhile: string;
    /** In front of the products. */
    readonly next: (tile: string) => string;
  } {
    const nothing = { begin: () => '', meanwhile: '', next: () => '' };
    if (this.kernel === 'block_sparse') {
      const lookUp = (tile: string): string => `ahead_key0 = ${this.firstKey(tile)};`;
      if (this.t.staging === 'single')
        return {
          ...nothing,
          key0: 'ahead_key0',
          begin: (tile) => `var ${lookUp(tile)}`,
          next: (tile) => `let tile_key0 = ahead_key0;\n${lookUp(tile)}`,
        };
      return {
        ...nothing,
        key0: 'ahead_key0',
        begin: (tile) => `var next_key0 = ${this.firstKey('0u')};\nvar ${lookUp(tile)}`,
        next: (tile) => `let tile_key0 = next_key0;\nnext_key0 = ahead_key0;\n${lookUp(tile)}`,
      };
    }
    if (!this.walks) return nothing;
    return {
      ...nothing,
      begin: () => this.beginWalk(),
      meanwhile: this.handOnWalk(),
    };
  }

  #loop(): string {
    const t = this.t;
    const fetchBoth = (tile: string, key0?: string): string => text(this.fetch('k', tile, key0), this.fetch('v', tile, key0));
    const declareBoth = text(this.declareFetched('k'), this.declareFetched('v'));
    const barrier = 'workgroupBarrier();';
    const tileLoop = (...parts: string[]): string => text(this.tileLoop(), ...parts, '}');
    const { key0, begin, meanwhile, next } = this.#lookUps();
    switch (t.staging) {
      case 'single':
        return text(
          begin('0u'),
          tileLoop(
            barrier,
            `{\n${declareBoth}\n${fetchBoth('tile', key0)}\n${this.stage('k')}\n${this.stage('v')}\n}`,
            meanwhile,
            barrier,
            next('(tile + 1u)'),
            this.#compute(),
          ),
        );
      case 'prefetch':
        return text(
          begin('1u'),
          declareBoth,
          fetchBoth('0u'),
          tileLoop(
            barrier,
            this.stage('k'),
            this.stage('v'),
            meanwhile,
            barrier,
            this.early('tile + 1u', fetchBoth('(tile + 1u)', key0)),
            next('(tile + 2u)'),
            this.#compute(),
          ),
        );
      case 'overlap':
        return text(
          declareBoth,
          this.fetch('k', '0u'),
          this.stage('k'),
          this.fetch('k', '1u'),
          this.fetch('v', '0u'),
          barrier,
          this.#scores('0u'),
          this.#storeScores(),
          this.#takeScores(true),
          tileLoop(
            barrier,
            this.stage('k'),
            this.stage('v'),
            barrier,
            this.early('tile + 1u', this.fetch('v', '(tile + 1u)')),
            this.early('tile + 2u', this.fetch('k', '(tile + 2u)')),
            this.#softmax('0u', this.#scores('0u', false)),
            this.#output('0u'),
            this.#storeScores(),
            this.#takeScores(false),
          ),
        );
      case 'overlap-single':
        return text(
          `{\n${this.declareFetched('k')}\n${this.fetch('k', '0u')}\n${this.stage('k')}\n}`,
          barrier,
          this.#scores('0u'),
          this.#storeScores(),
          this.#takeScores(true),
          tileLoop(
            barrier,
            `{\n${declareBoth}\n${this.fetch('k', '(tile + 1u)')}\n${this.fetch('v', 'tile')}\n${this.stage('k')}\n${this.stage('v')}\n}`,
            barrier,
            this.#softmax('0u', this.#scores('0u', false)),
            this.#output('0u'),
            this.#storeScores(),
            this.#takeScores(false),
          ),
        );
    }
  }

  /** Scores, softmax and output of a staged tile, `scoreKeys` keys at a time. */
  #compute(): string {
    const t = this.t;
    const parts = t.keys / t.scoreKeys;
    if (t.pipelined) {
      return text(
        this.#scores('0u'),
        this.#storeScores(),
        this.#takeScores(true),
        range(parts).map((part) => {
          const key = `${part * t.scoreKeys}u`;
          const next = part + 1 < parts ? this.#scores(`${(part + 1) * t.scoreKeys}u`, false) : '';
          return text(
            this.#softmax(key, next),
            this.#output(key),
            next ? text(this.#storeScores(), this.#takeScores(false)) : '',
          );
        }),
      );
    }
    const step = (key: string): string =>
      text(this.#scores(key), this.#storeScores(), this.#takeScores(true), this.#softmax(key), this.#output(key));
    if (parts === 1) return step('0u');
    return text('for (var key = 0u; key < BLOCK_N; key += SCORE_KEYS) {', step('key'), '}');
  }

  /** S = Q K^T for the keys from `key` on, into s_<rows>. */
  #scores(key: string, declare = true): string {
    const { shape, queries, strips } = this.t;
    const ops = this.ops;
    const rows = this.#rows();
    const rowOf = (strip: number, matrix: number): string =>
      `((subgroup * ${strips}u + ${strip}u) * ${STRIP_ROWS}u + ${matrix * shape.m}u)`;
    return text(
      '// S = Q K^T',
      rows.map(({ id }) =>
        declare
          ? ops.declare(`s_${id}`, 'Result', this.scoreMatrices)
          : ops.each('n', this.scoreMatrices, (n) => ops.set(`s_${id}`, n, ops.zero())),
      ),
      ops.each('c', this.depth, (c) => {
        const word = times(c, shape.k / 8);
        return text(
          rows.map(({ strip, matrix, id }) => {
            const offset = `${rowOf(strip, matrix)} * KV_STRIDE + ${wgsl(word)}`;
            const left =
              queries === 'registers' ? ops.get(`q_${id}`, c) : ops.load('Left', 'q_tile', offset, 'KV_STRIDE', 'row_major');
            return `let left_${id} = ${left};`;
          }),
          ops.each('n', this.scoreMatrices, (n) =>
            text(
              `let right = ${ops.load('Right', 'k_tile', `(${key} + ${wgsl(times(n, shape.n))}) * KV_STRIDE + ${wgsl(word)}`, 'KV_STRIDE', 'col_major')};`,
              rows.map(({ id }) => ops.set(`s_${id}`, n, ops.multiplyAdd(`left_${id}`, 'right', ops.get(`s_${id}`, n)))),
            ),
          ),
        );
      }),
    );
  }

  #storeScores(): string {
    const ops = this.ops;
    return text(
      ops.sync(),
      this.#rows().map(({ strip, matrix, id }) =>
        ops.each('n', this.scoreMatrices, (n) =>
          ops.store('s_tile', this.#at(strip, matrix, times(n, this.t.shape.n / 4)), ops.get(`s_${id}`, n), 'S_STRIDE'),
        ),
      ),
      ops.sync(),
    );
  }

  /** This invocation's groups of four scores of a strip, and the variable of each. */
  #taken(strip: number): { readonly j: number; readonly x: string; readonly p: string }[] {
    return this.#fours.map((j) => ({ j, x: `x_${strip}_${j}`, p: `p_${strip}_${j}` }));
  }

  /** This invocation's stored scores. */
  #takeScores(declare: boolean): string {
    return text(
      this.#strips.flatMap((s) =>
        this.#taken(s).map(
          ({ j, x }) => `${declare ? 'var ' : ''}${x} = bitcast<vec4<f32>>(s_tile[s_row_${s} + ${2 * j}u + half]);`,
        ),
      ),
    );
  }

  /**
   * Online softmax of the scores taken, of the keys from `key` on: their f16 probabilities replace the f32 scores in s_tile.
   *
   * Exponentials do not wait for the maxima: they are taken against the maxima of before, and once more if a row's maximum
   * rises by so much that this would not do, which is rare. `between`, the scores of the next keys, stands before the branch
   * for that, so that matrix units and exponentials work at the same time.
   */
  #softmax(key: string, between = ''): string {
    const over = this.#strips.map((s) => `scale * own_max_${s} > m_${s} + MAX_RISE`);
    return text(
      '// P = exp2(scale S - m)',
      '{',
      this.#mask(key),
      between,
      this.#strips.map((s) => this.#exponentials(s, true)),
      this.#strips.map((s) => `let own_max_${s} = ${this.greatest(this.#taken(s).map(({ x }) => x))};`),
      this.#storeProbabilities(),
      this.ops.any('rises', over.length > 1 ? over.map((o) => `(${o})`).join(' | ') : over.join('')),
      'if (rises) {',
      this.#strips.map((s) => `{\n${this.#rescale(s)}\n${this.#exponentials(s, false)}\n}`),
      this.#storeProbabilities(),
      '}',
      this.#strips.map((s) => `l_${s} += sum_${s};`),
      '}',
      this.ops.sync(),
    );
  }

  /** Hides the scores that rows do not see. */
  #mask(key: string): string {
    const listed = this.kernel === 'block_sparse';
    const known = listed && !this.t.staging.startsWith('overlap');
    return text(
      `if (!${this.isFull('tile', known ? 'tile_key0' : undefined)}) {`,
      listed && !known ? `let tile_key0 = ${this.firstKey('tile')};` : '',
      this.#strips.map((s) =>
        text(
          `let position_${s} = position_of(row_${s});`,
          this.#taken(s).map(({ j, x }) =>
            this.hide(x, `position_${s}`, (i) =>
              this.keyAt('tile', `${key} + ${this.keyOf(j, i)}`, listed ? 'tile_key0' : undefined),
            ),
          ),
        ),
      ),
      '}',
    );
  }

  /** Probabilities of the scores taken, and their sum. */
  #exponentials(strip: number, declare: boolean): string {
    const taken = this.#taken(strip);
    return text(
      taken.map(({ x, p }) => `${declare ? 'var ' : ''}${p} = exp2(fma(${x}, vec4<f32>(scale), vec4<f32>(-m_${strip})));`),
      `${declare ? 'var ' : ''}sum_${strip} = ${this.sum(taken.map(({ p }) => p))};`,
    );
  }

  /** Probabilities go to where scores of the same invocation were. */
  #storeProbabilities(): string {
    return text(
      this.#strips.flatMap((s) =>
        range(this.#fours.length / 2).map(
          (u) => `s_tile[s_row_${s} + ${2 * u}u + half] = pack_halves(p_${s}_${2 * u}, p_${s}_${2 * u + 1});`,
        ),
      ),
    );
  }

  /** Visits the output matrices of a strip that hold a group of columns, with their offsets in `s_tile`. */
  #eachOutput(
    strip: number,
    start: Index,
    columns: number,
    visit: (list: string, index: Index, offset: string) => string,
  ): string {
    const { n } = this.t.shape;
    return text(
      this.#rowsOf(strip).map(({ matrix, id }) =>
        this.ops.each('n', columns / n, (i) =>
          visit(`o_${id}`, plus(times(start, columns / n), i), this.#at(strip, matrix, times(i, n / 4))),
        ),
      ),
    );
  }

  /** Stores a group of output columns into s_tile, between syncs. */
  #spill(strip: number, start: Index, columns: number): string {
    const ops = this.ops;
    return text(
      ops.sync(),
      this.#eachOutput(strip, start, columns, (list, i, offset) => ops.store('s_tile', offset, ops.get(list, i), 'S_STRIDE')),
      ops.sync(),
    );
  }

  /** Moves a strip to new maxima: rescales l and, through s_tile, the output. */
  #rescale(strip: number): string {
    const ops = this.ops;
    return text(
      `let m_new = max(m_${strip}, scale * ${this.ops.pairMax(`own_max_${strip}`)});
let alpha = exp2(m_${strip} - m_new);
m_${strip} = m_new;
l_${strip} *= alpha;`,
      this.eachGroup(this.t.scoreKeys, (start, columns) =>
        text(
          this.#spill(strip, start, columns),
          `for (var i = half; i < ${columns / 4}u; i += 2u) {
s_tile[s_row_${strip} + i] = bitcast<vec4<u32>>(bitcast<vec4<f32>>(s_tile[s_row_${strip} + i]) * alpha);
}`,
          ops.sync(),
          this.#eachOutput(strip, start, columns, (list, i, offset) =>
            ops.loadInto(list, i, 'Result', 's_tile', offset, 'S_STRIDE', 'row_major'),
          ),
        ),
      ),
      ops.sync(),
    );
  }

  /** O += P V for the keys from `key` on. */
  #output(key: string): string {
    return text(
      '// O += P V',
      range(this.keyDepth).map((c) => text('{', this.#probabilitiesAt(c), this.#productsAt(key, c), '}')),
    );
  }

  /** The probabilities at step c of the keys in flight, as left_<rows>_<c>. */
  #probabilitiesAt(c: number): string {
    const word = (c * this.t.shape.k) / 8;
    return text(
      this.#rows().map(
        ({ strip, matrix, id }) =>
          `let left_${id}_${c} = ${this.ops.load('Left', 's_tile', this.#at(strip, matrix, word), 'S_STRIDE', 'row_major')};`,
      ),
    );
  }

  /** Multiplies step c's probabilities with V. */
  #productsAt(key: string, c: number): string {
    const { shape } = this.t;
    const ops = this.ops;
    return ops.each('n', this.outputMatrices, (n) =>
      text(
        `let right = ${ops.load('Right', 'v_tile', `(${key} + ${c * shape.k}u) * KV_STRIDE + ${wgsl(times(n, shape.n / 8))}`, 'KV_STRIDE', 'row_major')};`,
        this.#rows().map(({ id }) => ops.set(`o_${id}`, n, ops.multiplyAdd(`left_${id}_${c}`, 'right', ops.get(`o_${id}`, n)))),
      ),
    );
  }

  /** Eight output columns of a row, from vec4 `at` on. */
  #loadOutput(row: string, at: string): string {
    return `load_o(o_row(head_out, min(${row}, params.n_q - 1u)) + ${at})`;
  }

  /**
   * O / l to memory, and the log-sum-exp. Where the head has a band, its output and log-sum-exp are there already and are merged:
   * were the loop to begin with them, NVIDIA's driver would copy all matrices of O twice a tile.
   */
  #epilogue(): string {
    const band = (s: number, i: number): string => `o_word_${s}_${i}`;
    return text(
      this.walks ? 'let merges = has_band(entry);' : '',
      this.walks ? this.#loadRows(band, (row, at) => this.#loadOutput(row, at)) : '',
      this.#strips.map((s) =>
        text(
          '{',
          `let l = ${this.ops.pairSum(`l_${s}`)};`,
          this.walks
            ? `var m_band = M_START;
if (merges) {
m_band = LOG2E * lse[lse_row(head_out, min(row_${s}, params.n_q - 1u))];
}
let m = max(m_${s}, m_band);
let total = l * exp2(m_${s} - m) + select(0.0, exp2(m_band - m), merges);
let inv_total = select(0.0, 1.0 / total, total > 0.0);
let own = exp2(m_${s} - m) * inv_total;
let of_band = exp2(m_band - m) * inv_total;`
            : `let m = m_${s};
let total = l;
let own = select(0.0, 1.0 / l, l > 0.0);`,
          this.groupsOf(this.t.scoreKeys).map(({ start, columns }) =>
            text(
              this.#spill(s, start / columns, columns),
              `if (is_row(row_${s})) {
let to = o_row(head_out, row_${s}) + ${start / 4}u;`,
              range(columns / 16).map(
                (i) => `{
let at = s_row_${s} + 2u * (${2 * i}u + half);
var a = bitcast<vec4<f32>>(s_tile[at]) * own;
var b = bitcast<vec4<f32>>(s_tile[at + 1u]) * own;
${this.walks ? this.addBand(band(s, start / 16 + i), 'of_band') : ''}
store_o(to + 2u * (${2 * i}u + half), a, b);
}`,
              ),
              '}',
            ),
          ),
          `if (half == 0u && is_row(row_${s}) && params.write_lse != 0u) {
lse[lse_row(head_out, row_${s})] = LN2 * (m + log2(total));
}`,
          '}',
        ),
      ),
    );
  }
}
