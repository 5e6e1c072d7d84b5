import aShape from '../../shaders/a_shape.wgsl?raw';
import blockSparse from '../../shaders/block_sparse.wgsl?raw';
import dense from '../../shaders/dense.wgsl?raw';
import attentionBindings from '../../shaders/lib/attention_bindings.wgsl?raw';
import packHalves from '../../shaders/lib/pack_halves.wgsl?raw';
import verticalSlashIndex from '../../shaders/lib/vertical_slash_index.wgsl?raw';
import fullTileAShape from '../../shaders/matrix/full_tile_a_shape.wgsl?raw';
import fullTileCausal from '../../shaders/matrix/full_tile_causal.wgsl?raw';
import fullTileVerticalSlash from '../../shaders/matrix/full_tile_vertical_slash.wgsl?raw';
import softmax from '../../shaders/matrix/softmax.wgsl?raw';
import storageF16 from '../../shaders/matrix/storage_f16.wgsl?raw';
import storageF16Wide from '../../shaders/matrix/storage_f16_wide.wgsl?raw';
import verticalSlash from '../../shaders/vertical_slash.wgsl?raw';
import type { ShaderSpec } from '../device/pipelines.js';
import { SUBGROUP_SIZE } from '../device/subgroup_matrix.js';
import { invalidArgument } from '../errors.js';
import { ATTENTION_BINDINGS, type AttentionKernel } from './attention.js';
import {
  keyRing,
  type MatrixTiling,
  matrixBlockM,
  probabilityStride,
  STRIP_ROWS,
  scoreStride,
  stagedStride,
  tilingProblem,
} from './matrix_config.js';
import { type Index, type MatrixOps, nativeOps, plus, times, wgsl } from './matrix_ops.js';
import { prelude } from './shader_text.js';
import type { TensorWindow } from './tensor.js';

/** How a matrix kernel reads and writes tensors: `f16-wide` moves 16 bytes at a time, so every row must start on 16 bytes. */
export type MatrixStorage = 'f16-wide' | 'f16';

/** The fastest storage format that the bound tensors, which hold f16, allow. */
export function matrixStorage(windows: readonly TensorWindow[]): MatrixStorage {
  const aligned = windows.every((w) => w.base % 2 === 0 && w.headStride % 2 === 0 && w.rowStride % 2 === 0);
  return aligned ? 'f16-wide' : 'f16';
}

const STORAGE: Readonly<Record<MatrixStorage, string>> = { 'f16-wide': storageF16Wide, f16: storageF16 };

const SOURCES: Readonly<Record<AttentionKernel, readonly string[]>> = {
  dense: [dense, fullTileCausal],
  a_shape: [aShape, fullTileAShape],
  vertical_slash: [verticalSlashIndex, verticalSlash, fullTileVerticalSlash],
  block_sparse: [blockSparse, fullTileCausal],
};

/** Lists 0, 1, ... count - 1. */
function range(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i);
}

/** Joins lines and blocks of lines. */
function text(...parts: readonly (string | readonly string[])[]): string {
  return parts
    .flat()
    .filter((part) => part !== '')
    .join('\n');
}

/** Indents by braces: the generated kernel is meant to be read. */
function indent(code: string): string {
  let depth = 0;
  return code
    .split('\n')
    .map((raw) => {
      const line = raw.trim();
      const closes = /^[})]/.test(line);
      const shown = line === '' ? '' : '  '.repeat(Math.max(0, depth - (closes ? 1 : 0))) + line;
      const code = line.replace(/\/\/.*$/, '');
      for (const c of code) depth += c === '{' ? 1 : c === '}' ? -1 : 0;
      return shown;
    })
    .join('\n');
}

/**
 * The matrix-tier attention kernel of a pattern: FlashAttention-2's loop on subgroup matrices, f16 inputs and
 * probabilities, f32 scores, softmax and output.
 *
 *   for each tile of BLOCK_N keys:   S = Q K^T;   m' = max(m, rowmax S);   P = exp2(scale S - m')
 *                                    l = l exp2(m - m') + rowsum P;   O = O exp2(m - m') + P V
 *
 * A subgroup owns `strips` strips of 16 query rows, entirely: only staging K and V needs the whole workgroup.
 * Its scores leave the matrices through workgroup memory that no other subgroup touches (`s_tile`), where two
 * invocations share a row; probabilities go back the same way, in place. m, l and the rare rescaling of O
 * (when a maximum rises by more than 2^8: FlashAttention-4's lazy rescaling) are a subgroup's own decision.
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
  kernel: AttentionKernel,
  headDim: number,
  storage: MatrixStorage,
  tiling: MatrixTiling,
  ops: MatrixOps = nativeOps(tiling.shape, tiling.sync),
): ShaderSpec {
  const problem = tilingProblem(kernel, headDim, tiling);
  if (problem) throw invalidArgument('tiling', tiling, `a tiling for ${kernel} attention: ${problem}`);
  const t = tiling;
  const main = new KernelBody(kernel, headDim, t, ops).main();
  const head = prelude({
    f16: true,
    constants: {
      HEAD_DIM: headDim,
      BLOCK_M: matrixBlockM(t),
      BLOCK_N: t.keys,
      SCORE_KEYS: t.scoreKeys,
      THREADS: t.subgroups * SUBGROUP_SIZE,
      D8: headDim / 8,
      KV_STRIDE: stagedStride(headDim),
      S_STRIDE: scoreStride(t),
      KEY_RING: keyRing(t),
      ...(t.pairs ? { P_STRIDE: probabilityStride(t), SUBGROUPS: t.subgroups } : {}),
    },
  });
  const enables = head.slice(0, head.indexOf('const '));
  const tag = [
    `${matrixBlockM(t)}x${t.keys}`,
    `r${STRIP_ROWS * t.strips}`,
    `s${t.scoreKeys}`,
    `q-${t.queries}`,
    t.staging,
    ...(t.pipelined ? ['pipelined'] : []),
    ...(t.scorePad === 1 ? [] : [`pad${t.scorePad}`]),
    ...(t.fences ? ['fences'] : []),
    ...(t.pairs ? ['pairs'] : []),
    ...(t.chains ? [`chains-${t.chains}`] : []),
    ops.name,
  ].join(' ');
  return {
    label: `${kernel} matrix D=${headDim} ${storage} ${tag}`,
    code: [
      enables + ops.directives,
      head.slice(enables.length),
      attentionBindings,
      STORAGE[storage],
      packHalves,
      softmax,
      ops.declarations(),
      ...SOURCES[kernel],
      main,
    ].join('\n'),
    bindings: [...ATTENTION_BINDINGS, ...ops.bindings],
  };
}

/** Writes the entry point of one kernel. */
class KernelBody {
  readonly #d: number;
  readonly #t: MatrixTiling;
  readonly #ops: MatrixOps;
  /** Tiles hold consecutive keys, so the first one is all that staging needs. */
  readonly #contiguous: boolean;
  readonly #strips: readonly number[];
  /** Matrices over the rows of a strip, over the keys in flight, over the head dimension (as columns, as depth), over keys as depth. */
  readonly #rowMatrices: readonly number[];
  readonly #scoreMatrices: number;
  readonly #outputMatrices: number;
  readonly #depth: number;
  readonly #keyDepth: number;
  /** Consecutive keys that one invocation handles, and how many such groups. */
  readonly #width: number;
  readonly #groups: readonly number[];

  constructor(kernel: AttentionKernel, headDim: number, tiling: MatrixTiling, ops: MatrixOps) {
    const { shape, scoreKeys } = tiling;
    this.#d = headDim;
    this.#t = tiling;
    this.#ops = ops;
    this.#contiguous = kernel !== 'vertical_slash';
    this.#strips = range(tiling.strips);
    const shares = tiling.pairs ? 2 : 1;
    this.#rowMatrices = range((shares * STRIP_ROWS) / shape.m);
    this.#scoreMatrices = scoreKeys / shares / shape.n;
    this.#outputMatrices = headDim / shares / shape.n;
    this.#depth = headDim / shape.k;
    this.#keyDepth = scoreKeys / shape.k;
    this.#width = Math.min(16, scoreKeys / 2);
    this.#groups = range(scoreKeys / 2 / this.#width);
  }

  /** Every (strip, row matrix) of a subgroup, with its name. */
  #rows(): { readonly strip: number; readonly matrix: number; readonly id: string }[] {
    return this.#strips.flatMap((strip) =>
      this.#rowMatrices.map((matrix) => ({ strip, matrix, id: `${strip}${this.#rowMatrices.length > 1 ? `_${matrix}` : ''}` })),
    );
  }

  #rowsOf(strip: number): { readonly matrix: number; readonly id: string }[] {
    return this.#rows().filter((r) => r.strip === strip);
  }

  /** Offset in `s_tile` of a matrix of a strip whose first column lies `words` into the row. */
  #at(strip: number, matrix: number, words: Index): string {
    const rows = matrix * this.#t.shape.m;
    return `strip_${strip}${rows > 0 ? ` + ${rows}u * S_STRIDE` : ''}${words === 0 ? '' : ` + ${wgsl(words)}`}`;
  }

  /** Where this subgroup's scores go: as {@link #at}, or this side's columns of the pair's rows. */
  #scoresAt(strip: number, matrix: number, words: Index): string {
    return this.#t.pairs
      ? `own_scores + ${matrix * this.#t.shape.m}u * S_STRIDE + ${wgsl(words)}`
      : this.#at(strip, matrix, words);
  }

  main(): string {
    const t = this.#t;
    const buffers = t.staging === 'double' ? 2 : 1;
    const registers = t.queries === 'registers';
    const body = text(
      `var<workgroup> k_tile: array<vec4<u32>, ${buffers}u * BLOCK_N * KV_STRIDE>;`,
      `var<workgroup> v_tile: array<vec4<u32>, ${buffers}u * BLOCK_N * KV_STRIDE>;`,
      '// Scores (f32), probabilities (f16) and, in passing, queries and output of each subgroup.',
      'var<workgroup> s_tile: array<vec4<u32>, BLOCK_M * S_STRIDE>;',
      registers ? '' : 'var<workgroup> q_tile: array<vec4<u32>, BLOCK_M * KV_STRIDE>;',
      t.pairs
        ? `// Probabilities (f16) of each pair of subgroups; what each row of output is multiplied by; whose maxima rose.
var<workgroup> p_tile: array<vec4<u32>, BLOCK_M * P_STRIDE>;
var<workgroup> row_scale: array<f32, BLOCK_M>;
var<workgroup> rises: array<u32, SUBGROUPS>;`
        : '',
      this.#contiguous ? '' : '// Keys of the last few tiles.\nvar<workgroup> tile_keys: array<u32, KEY_RING * BLOCK_N>;',
      '',
      '@compute @workgroup_size(THREADS)',
      `fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32${this.#ops.builtins ? `, ${this.#ops.builtins}` : ''}) {`,
      this.#ops.prologue,
      `let entry = heads[params.head_start + workgroup.y];
let row0 = (params.row_tile_end - 1u - workgroup.x) * BLOCK_M;
let last_key = last_position(row0, BLOCK_M);
let q_head = params.q_base + entry.head * params.q_head_stride;
let k_head = params.k_base + entry.kv_head * params.k_head_stride;
let v_head = params.v_base + entry.kv_head * params.v_head_stride;
let scale = max(abs(params.scale_log2), SCALE_MIN);
let sign_flip = select(0u, 0x80008000u, params.scale_log2 < 0.0);`,
      '// This invocation works on half `lane % 2` of row `lane / 2` of each strip.',
      `let strip_row = lane / 2u;
let half = lane % 2u;`,
      this.#strips.map(
        (s) => `let strip_${s} = (subgroup * ${t.strips}u + ${s}u) * ${STRIP_ROWS}u * S_STRIDE;
let row_${s} = row0 + (subgroup * ${t.strips}u + ${s}u) * ${STRIP_ROWS}u + strip_row;
let s_row_${s} = strip_${s} + strip_row * S_STRIDE;
var m_${s} = M_START;
var l_${s} = 0.0;`,
      ),
      t.pairs
        ? `// This subgroup and its neighbour share the 32 rows from pair_row on; this one has the keys and columns of its side.
let side = subgroup % 2u;
let pair_row = subgroup / 2u * ${2 * STRIP_ROWS}u;
let pair_strip = pair_row * S_STRIDE;
let own_scores = pair_strip + side * ${t.keys / 8}u;`
        : '',
      t.pairs ? this.#pairQueries() : registers ? this.#queriesToRegisters() : this.#queriesToWorkgroup(),
      this.#rows().map(({ id }) => this.#ops.declare(`o_${id}`, 'Result', this.#outputMatrices)),
      'let tiles = tile_count(entry, row0);',
      'if (tiles == 0u) {\n  return;\n}', // FlexPrefill: another kernel writes this head's rows.
      t.pairs ? this.#pairLoop() : this.#loop(),
      t.pairs ? this.#pairEpilogue() : this.#epilogue(),
      '}',
    );
    return indent(body);
  }

  // ---- queries

  #queriesToRegisters(): string {
    const ops = this.#ops;
    const { k } = this.#t.shape;
    return text(
      '// Queries pass through s_tile into registers.',
      this.#rows().map(({ id }) => ops.declare(`q_${id}`, 'Left', this.#depth)),
      this.#strips.map((s) =>
        // A row of s_tile holds twice as many halves as scores.
        this.#eachGroup(2 * this.#t.scoreKeys, (start, columns) =>
          text(
            ops.sync(),
            `for (var i = half; i < ${columns / 8}u; i += 2u) {
var x = vec4<u32>();
if (row_${s} < params.n_q) {
x = load_q(q_head + row_${s} * params.q_row_stride + ${wgsl(times(start, columns / 4))} + 2u * i) ^ vec4<u32>(sign_flip);
}
s_tile[s_row_${s} + i] = x;
}`,
            ops.sync(),
            this.#rowsOf(s).map(({ id, matrix }) =>
              ops.each('c', columns / k, (c) => {
                const left = ops.load('Left', 's_tile', this.#at(s, matrix, times(c, k / 8)), 'S_STRIDE', 'row_major');
                return ops.set(`q_${id}`, plus(times(start, columns / k), c), left);
              }),
            ),
          ),
        ),
      ),
    );
  }

  #queriesToWorkgroup(): string {
    return `for (var i = thread; i < BLOCK_M * D8; i += THREADS) {
let row = i / D8;
let d = i % D8;
var x = vec4<u32>();
if (row0 + row < params.n_q) {
x = load_q(q_head + (row0 + row) * params.q_row_stride + 2u * d) ^ vec4<u32>(sign_flip);
}
q_tile[row * KV_STRIDE + d] = x;
}`;
  }

  // ---- keys and staging

  /** Statement that computes and publishes the keys of a tile, for patterns that gather. */
  #publishKeys(tile: string): string {
    if (this.#contiguous) return '';
    return `if (thread < BLOCK_N) {
tile_keys[(${tile} % KEY_RING) * BLOCK_N + thread] = key_at(entry, row0, ${tile}, thread);
}`;
  }

  #publishKeysIf(tile: string): string {
    if (this.#contiguous) return '';
    return `if (${tile} < tiles) {\n${this.#publishKeys(tile)}\n}`;
  }

  /** Calls `visit` for each 16-byte word that an invocation stages of a tile. */
  #eachWord(visit: (i: number, guardStart: string, guardEnd: string) => string): string {
    const words = (this.#t.keys * this.#d) / 8;
    const threads = this.#t.subgroups * SUBGROUP_SIZE;
    return text(
      range(Math.ceil(words / threads)).map((i) => {
        const partial = (i + 1) * threads > words;
        return visit(i, partial ? `if (thread + ${i * threads}u < BLOCK_N * D8) {` : '', partial ? '}' : '');
      }),
    );
  }

  #slot(i: number): { readonly slot: string; readonly d: string } {
    const threads = this.#t.subgroups * SUBGROUP_SIZE;
    const d8 = this.#d / 8;
    if (threads % d8 === 0) return { slot: `(thread / D8${i > 0 ? ` + ${(i * threads) / d8}u` : ''})`, d: '(thread % D8)' };
    const word = i > 0 ? `(thread + ${i * threads}u)` : 'thread';
    return { slot: `(${word} / D8)`, d: `(${word} % D8)` };
  }

  /** Loads this invocation's words of a tile of k or v into variables `${tensor}_next_${i}`. */
  #fetch(tensor: 'k' | 'v', tile: string): string {
    return text(
      this.#contiguous
        ? `let ${tensor}_key0 = key_at(entry, row0, ${tile}, 0u);`
        : `let ${tensor}_keys = (${tile} % KEY_RING) * BLOCK_N;`,
      this.#eachWord((i, start, end) => {
        const { slot, d } = this.#slot(i);
        return text(
          `${tensor}_next_${i} = vec4<u32>();`,
          start,
          `{
let key = ${this.#contiguous ? `${tensor}_key0 + ${slot}` : `tile_keys[${tensor}_keys + ${slot}]`};
if (key <= last_key) {
${tensor}_next_${i} = load_${tensor}(${tensor}_head + key * params.${tensor}_row_stride + 2u * ${d});
}
}`,
          end,
        );
      }),
    );
  }

  #declareFetched(tensor: 'k' | 'v'): string {
    return this.#eachWord((i) => `var ${tensor}_next_${i} = vec4<u32>();`);
  }

  /** Stores the words that {@link #fetch} loaded. */
  #stage(tensor: 'k' | 'v', buffer = ''): string {
    return this.#eachWord((i, start, end) => {
      const { slot, d } = this.#slot(i);
      return text(start, `${tensor}_tile[${buffer}${slot} * KV_STRIDE + ${d}] = ${tensor}_next_${i};`, end);
    });
  }

  // ---- the loop

  #loop(): string {
    const t = this.#t;
    const fetchBoth = (tile: string): string => text(this.#fetch('k', tile), this.#fetch('v', tile));
    const declareBoth = text(this.#declareFetched('k'), this.#declareFetched('v'));
    const barrier = 'workgroupBarrier();';
    const tileLoop = (...parts: string[]): string => text('for (var tile = 0u; tile < tiles; tile++) {', ...parts, '}');
    switch (t.staging) {
      case 'single':
        return text(
          this.#publishKeys('0u'),
          tileLoop(
            barrier,
            `{\n${declareBoth}\n${fetchBoth('tile')}\n${this.#stage('k')}\n${this.#stage('v')}\n}`,
            this.#publishKeysIf('(tile + 1u)'),
            barrier,
            this.#compute(''),
          ),
        );
      case 'prefetch':
        return text(
          this.#publishKeys('0u'),
          this.#contiguous ? '' : barrier,
          declareBoth,
          `{\n${fetchBoth('0u')}\n}`,
          this.#publishKeysIf('1u'),
          tileLoop(
            barrier,
            this.#stage('k'),
            this.#stage('v'),
            barrier,
            `if (tile + 1u < tiles) {\n${fetchBoth('(tile + 1u)')}\n}`,
            this.#publishKeysIf('(tile + 2u)'),
            this.#compute(''),
          ),
        );
      case 'double':
        return text(
          this.#publishKeys('0u'),
          this.#contiguous ? '' : barrier,
          declareBoth,
          `{\n${fetchBoth('0u')}\n${this.#stage('k')}\n${this.#stage('v')}\n}`,
          this.#publishKeysIf('1u'),
          tileLoop(
            barrier,
            'let buffer = (tile % 2u) * BLOCK_N * KV_STRIDE;\nlet next_buffer = BLOCK_N * KV_STRIDE - buffer;',
            `if (tile + 1u < tiles) {\n${fetchBoth('(tile + 1u)')}\n}`,
            this.#publishKeysIf('(tile + 2u)'),
            this.#compute('buffer + '),
            `if (tile + 1u < tiles) {\n${this.#stage('k', 'next_buffer + ')}\n${this.#stage('v', 'next_buffer + ')}\n}`,
          ),
        );
      case 'alternate':
        return text(
          this.#publishKeys('0u'),
          this.#contiguous ? '' : barrier,
          `{\n${this.#declareFetched('k')}\n${this.#fetch('k', '0u')}\n${this.#stage('k')}\n}`,
          this.#publishKeysIf('1u'),
          tileLoop(
            barrier,
            this.#declareFetched('v'),
            `{\n${this.#fetch('v', 'tile')}\n}`,
            this.#scores('', '0u'),
            this.#storeScores(),
            this.#softmax('0u'),
            this.#stage('v'),
            barrier,
            this.#declareFetched('k'),
            `if (tile + 1u < tiles) {\n${this.#fetch('k', '(tile + 1u)')}\n}`,
            this.#publishKeysIf('(tile + 2u)'),
            this.#output('', '0u'),
            `if (tile + 1u < tiles) {\n${this.#stage('k')}\n}`,
          ),
        );
      case 'overlap': {
        const chained = t.chains === 'keys';
        return text(
          this.#publishKeys('0u'),
          this.#publishKeysIf('1u'),
          this.#publishKeysIf('2u'),
          this.#contiguous ? '' : barrier,
          declareBoth,
          `{\n${this.#fetch('k', '0u')}\n}`,
          this.#stage('k'),
          barrier,
          this.#scores('', '0u'),
          `{\n${this.#fetch('k', '1u')}\n${this.#fetch('v', '0u')}\n}`,
          this.#storeScores(),
          chained ? this.#firstMaxima('0u', true) : '',
          tileLoop(
            barrier,
            this.#stage('k'),
            this.#stage('v'),
            barrier,
            `if (tile + 1u < tiles) {\n${this.#fetch('v', '(tile + 1u)')}\n}`,
            `if (tile + 2u < tiles) {\n${this.#fetch('k', '(tile + 2u)')}\n}`,
            this.#publishKeysIf('(tile + 3u)'),
            // After the last tile these are products of a stale K, which nobody uses.
            chained
              ? this.#chainedStep('', '0u', { key: '0u', tile: '(tile + 1u)', exists: 'tile + 1u < tiles' })
              : text(this.#softmax('0u', this.#scores('', '0u', false)), this.#output('', '0u'), this.#storeScores()),
          ),
        );
      }
    }
  }

  /** Scores, softmax and output of a staged tile, `scoreKeys` keys at a time. `buffer` is an offset's first term. */
  #compute(buffer: string): string {
    const t = this.#t;
    const parts = t.keys / t.scoreKeys;
    if (t.pipelined && t.chains === 'keys') {
      return text(
        this.#scores(buffer, '0u'),
        this.#storeScores(),
        this.#firstMaxima('tile', false),
        range(parts).map((part) => {
          const next = { key: `${(part + 1) * t.scoreKeys}u`, tile: 'tile' };
          return this.#chainedStep(buffer, `${part * t.scoreKeys}u`, part + 1 < parts ? next : undefined);
        }),
      );
    }
    if (t.pipelined) {
      return text(
        this.#scores(buffer, '0u'),
        range(parts).map((part) => {
          const key = `${part * t.scoreKeys}u`;
          return text(
            this.#storeScores(),
            part + 1 < parts ? this.#scores(buffer, `${(part + 1) * t.scoreKeys}u`, false) : '',
            this.#softmax(key),
            this.#output(buffer, key),
          );
        }),
      );
    }
    const fence = t.fences ? 'workgroupBarrier();' : '';
    const step = (key: string): string =>
      text(this.#scores(buffer, key), this.#storeScores(), this.#softmax(key), fence, this.#output(buffer, key));
    if (parts === 1) return step('0u');
    return text('for (var key = 0u; key < BLOCK_N; key += SCORE_KEYS) {', step('key'), '}');
  }

  /** S = Q K^T for the keys from `key` on, into s_<rows>. `between` stands half-way. */
  #scores(buffer: string, key: string, declare = true, between = ''): string {
    const { shape, queries, strips, pairs, keys } = this.#t;
    const firstKey = pairs ? `side * ${keys / 2}u` : key;
    const ops = this.#ops;
    const rows = this.#rows();
    const rowOf = (strip: number, matrix: number): string =>
      `((subgroup * ${strips}u + ${strip}u) * ${STRIP_ROWS}u + ${matrix * shape.m}u)`;
    return text(
      '// S = Q K^T',
      rows.map(({ id }) =>
        declare
          ? ops.declare(`s_${id}`, 'Result', this.#scoreMatrices)
          : ops.each('n', this.#scoreMatrices, (n) => ops.set(`s_${id}`, n, ops.zero())),
      ),
      this.#eachDepth(between, (c) => {
        const word = times(c, shape.k / 8);
        return text(
          rows.map(({ strip, matrix, id }) => {
            const offset = `${rowOf(strip, matrix)} * KV_STRIDE + ${wgsl(word)}`;
            const left =
              queries === 'registers' ? ops.get(`q_${id}`, c) : ops.load('Left', 'q_tile', offset, 'KV_STRIDE', 'row_major');
            return `let left_${id} = ${left};`;
          }),
          ops.each('n', this.#scoreMatrices, (n) =>
            text(
              `let right = ${ops.load('Right', 'k_tile', `${buffer}(${firstKey} + ${wgsl(times(n, shape.n))}) * KV_STRIDE + ${wgsl(word)}`, 'KV_STRIDE', 'col_major')};`,
              rows.map(({ id }) => ops.set(`s_${id}`, n, ops.multiplyAdd(`left_${id}`, 'right', ops.get(`s_${id}`, n)))),
            ),
          ),
        );
      }),
    );
  }

  /** Visits the head dimension in steps of a matrix's depth, with `between` after half of them. */
  #eachDepth(between: string, visit: (c: Index) => string): string {
    if (!between) return this.#ops.each('c', this.#depth, visit);
    const half = Math.floor(this.#depth / 2);
    return text(
      this.#ops.each('c', half, visit),
      between,
      this.#ops.each('c', this.#depth - half, (c) => visit(plus(c, half))),
    );
  }

  #storeScores(): string {
    const ops = this.#ops;
    return text(
      ops.sync(),
      this.#rows().map(({ strip, matrix, id }) =>
        ops.each('n', this.#scoreMatrices, (n) =>
          ops.store('s_tile', this.#scoresAt(strip, matrix, times(n, this.#t.shape.n / 4)), ops.get(`s_${id}`, n), 'S_STRIDE'),
        ),
      ),
      ops.sync(),
    );
  }

  /** Offset from a row's start of the vec4 j of this invocation's group g of scores. */
  #scoreWord(g: number, j: number): string {
    return `${this.#width / 4}u * (${2 * g}u + half) + ${j}u`;
  }

  /**
   * Online softmax of the scores of the keys from `key` on: s_tile's f32 scores become f16 probabilities, in place.
   * `between` stands between the maxima and the exponentials.
   */
  #softmax(key: string, between = ''): string {
    const full = `full_${key.replace(/\W/g, '')}`;
    const exponentials = (strips: readonly number[]): string =>
      text(this.#exponentials(strips), this.#storeProbabilities(strips));
    const maxima = (strips: readonly number[]): string =>
      text(this.#takeScores(strips, key, 'tile', full, true), this.#maxima(strips), this.#raise(strips));
    // Strips that are chains of their own share every branch, so that no block of code ends between their steps.
    const together = this.#t.chains ? [this.#strips] : this.#strips.map((s) => [s]);
    return text(
      '// P = exp2(scale S - m)',
      `let ${full} = ${this.#isFull('tile')};`,
      between
        ? text(together.map(maxima), between, together.map(exponentials))
        : together.map((strips) => text('{', maxima(strips), exponentials(strips), '}')),
      this.#t.pairs ? '' : this.#ops.sync(),
    );
  }

  /** Whether every row sees every key of a tile. */
  #isFull(tile: string): string {
    return `tile_is_full(entry, row0, ${tile}, ${this.#keyAt(tile, '0u')})`;
  }

  /** This invocation's groups of four scores of a strip, and the variable of each. */
  #taken(strip: number): { readonly g: number; readonly j: number; readonly x: string }[] {
    return this.#groups.flatMap((g) => range(this.#width / 4).map((j) => ({ g, j, x: `x_${strip}_${g}_${j}` })));
  }

  /** This invocation's scores of the keys from `key` on, masked unless the tile is `full`. */
  #takeScores(strips: readonly number[], key: string, tile: string, full: string, declare = false): string {
    return text(
      strips.flatMap((s) =>
        this.#taken(s).map(
          ({ g, j, x }) => `${declare ? 'var ' : ''}${x} = bitcast<vec4<f32>>(s_tile[s_row_${s} + ${this.#scoreWord(g, j)}]);`,
        ),
      ),
      `if (!${full}) {`,
      strips.flatMap((s) =>
        text(
          `let position_${s} = params.q_offset + row_${s};`,
          this.#taken(s).map(({ g, j, x }) => {
            const slot = `${key} + ${this.#width}u * (${2 * g}u + half) + ${4 * j}u`;
            const one = (i: number): string => `is_visible(entry, position_${s}, ${this.#keyAt(tile, `${slot} + ${i}u`)})`;
            return `${x} = select(vec4<f32>(MASKED), ${x}, vec4<bool>(${range(4).map(one).join(', ')}));`;
          }),
        ),
      ),
      '}',
    );
  }

  /** The maxima that the scores taken call for, as m_new_<strip>; those of before unless the keys exist. */
  #maxima(strips: readonly number[], exists = ''): string {
    return text(
      strips.map(
        (s) =>
          `let own_max_${s} = max_of(${this.#tree(
            this.#taken(s).map(({ x }) => x),
            (a, b) => `max(${a}, ${b})`,
          )});`,
      ),
      strips.map((s) => {
        const max = `scale * ${this.#ops.pairMax(`own_max_${s}`)}`;
        return `let m_new_${s} = max(m_${s}, ${exists ? `select(M_START, ${max}, ${exists})` : max});`;
      }),
    );
  }

  /** Moves strips to m_new_<strip>, if a row's maximum rises by much. */
  #raise(strips: readonly number[]): string {
    const name = `rises_${strips[0]}`;
    const over = strips.map((s) => `m_new_${s} > m_${s} + MAX_RISE`);
    const rises = over.length > 1 ? over.map((o) => `(${o})`).join(' | ') : over.join('');
    return text(
      this.#ops.any(name, rises),
      this.#t.pairs
        ? this.#announceRescale()
        : text(
            `if (${name}) {`,
            strips.length > 1 ? strips.map((s) => `{\n${this.#rescale(s)}\n}`) : this.#rescale(strips[0] as number),
            '}',
          ),
    );
  }

  /** Scores taken become probabilities, whose sums l takes in. */
  #exponentials(strips: readonly number[]): string {
    return text(
      strips.flatMap((s) => this.#taken(s).map(({ x }) => `${x} = exp2(fma(${x}, vec4<f32>(scale), vec4<f32>(-m_${s})));`)),
      strips.map(
        (s) =>
          `l_${s} += sum_of(${this.#tree(
            this.#taken(s).map(({ x }) => x),
            (a, b) => `(${a} + ${b})`,
          )});`,
      ),
    );
  }

  /** Probabilities go to where the scores were: each invocation's own, unless rows are short. */
  #storeProbabilities(strips: readonly number[]): string {
    const inPlace = this.#width === 16;
    return text(
      inPlace || this.#t.pairs ? '' : this.#ops.sync(),
      strips.flatMap((s) =>
        this.#groups.flatMap((g) =>
          range(this.#width / 8).map((u) => {
            const at = inPlace ? this.#scoreWord(g, u) : 'half';
            const to = this.#t.pairs ? `p_tile[p_row + ${this.#probabilityWord(g, u)}]` : `s_tile[s_row_${s} + ${at}]`;
            return `${to} = pack_halves(x_${s}_${g}_${2 * u}, x_${s}_${g}_${2 * u + 1});`;
          }),
        ),
      ),
    );
  }

  // ---- two chains of keys

  /** Takes the stored scores of a tile's first keys, and their maxima: where {@link #chainedStep} starts. */
  #firstMaxima(tile: string, outputIsZero: boolean): string {
    return text(
      `let full_first = ${this.#isFull(tile)};`,
      this.#takeScores(this.#strips, '0u', tile, 'full_first', true),
      '{',
      this.#maxima(this.#strips),
      outputIsZero ? this.#strips.map((s) => `m_${s} = m_new_${s};`) : this.#raise(this.#strips),
      '}',
    );
  }

  /**
   * One step of `chains: 'keys'`. Two groups of keys are under way, neither of which waits for the other:
   *
   *   these, from `key` on, whose maxima are known:   exponentials, P stored, P loaded, O += P V
   *   the next:                                       S = Q K^T, S stored, S loaded, mask, maxima
   *
   * The exponentials stand amid the products with K, the maxima amid those with V, and no branch lies in between but
   * the next group's mask. Probabilities are loaded before the next scores are stored, as both use the same memory.
   */
  #chainedStep(
    buffer: string,
    key: string,
    next: { readonly key: string; readonly tile: string; readonly exists?: string } | undefined,
  ): string {
    const strips = this.#strips;
    const ops = this.#ops;
    const exponentials = text('// P = exp2(scale S - m)', this.#exponentials(strips), this.#storeProbabilities(strips));
    if (!next) return text('{', exponentials, ops.sync(), this.#output(buffer, key), '}');
    const steps = range(this.#keyDepth);
    const half = Math.floor(this.#keyDepth / 2);
    const products = (part: readonly number[]): string => text(part.map((c) => this.#productsAt(buffer, key, c)));
    const { exists } = next;
    return text(
      '{',
      exists ? `let exists = ${exists};` : '',
      `let full = ${exists ? '!exists || ' : ''}${this.#isFull(next.tile)};`,
      this.#scores(buffer, next.key, false, exponentials),
      ops.sync(),
      steps.map((c) => this.#probabilitiesAt(c)),
      this.#storeScores(),
      this.#takeScores(strips, next.key, next.tile, 'full'),
      '// O += P V',
      products(steps.slice(0, half)),
      this.#maxima(strips, exists ? 'exists' : ''),
      products(steps.slice(half)),
      this.#raise(strips),
      '}',
    );
  }

  /** The key in a slot of a tile. */
  #keyAt(tile: string, slot: string): string {
    return this.#contiguous ? `key_at(entry, row0, ${tile}, ${slot})` : `tile_keys[(${tile} % KEY_RING) * BLOCK_N + ${slot}]`;
  }

  /** Combines terms pairwise. */
  #tree(terms: readonly string[], combine: (a: string, b: string) => string): string {
    if (terms.length === 1) return terms[0] as string;
    const middle = Math.ceil(terms.length / 2);
    return combine(this.#tree(terms.slice(0, middle), combine), this.#tree(terms.slice(middle), combine));
  }

  /**
   * Visits the head dimension `width` columns at a time, and what remains at the end. `start` counts groups of
   * `columns`.
   */
  #eachGroup(width: number, visit: (start: Index, columns: number) => string): string {
    const whole = Math.floor(this.#d / width);
    let rest = this.#d - whole * width;
    const parts = [whole > 0 ? this.#ops.each('g', whole, (g) => visit(g, width)) : ''];
    // The rest in groups that its start is a multiple of.
    for (let columns = width / 2; rest > 0; columns /= 2) {
      if (rest < columns) continue;
      parts.push(`{\n${visit((this.#d - rest) / columns, columns)}\n}`);
      rest -= columns;
    }
    return text(parts);
  }

  /** Visits the output matrices of a strip that hold a group of columns, with their offsets in `s_tile`. */
  #eachOutput(
    strip: number,
    start: Index,
    columns: number,
    visit: (list: string, index: Index, offset: string) => string,
  ): string {
    const { n } = this.#t.shape;
    return text(
      this.#rowsOf(strip).map(({ matrix, id }) =>
        this.#ops.each('n', columns / n, (i) =>
          visit(`o_${id}`, plus(times(start, columns / n), i), this.#at(strip, matrix, times(i, n / 4))),
        ),
      ),
    );
  }

  /** Stores a group of output columns into s_tile, between syncs. */
  #spill(strip: number, start: Index, columns: number): string {
    const ops = this.#ops;
    return text(
      ops.sync(),
      this.#eachOutput(strip, start, columns, (list, i, offset) => ops.store('s_tile', offset, ops.get(list, i), 'S_STRIDE')),
      ops.sync(),
    );
  }

  /** Moves a strip to new maxima: rescales l and, through s_tile, the output. */
  #rescale(strip: number): string {
    const ops = this.#ops;
    return text(
      `let alpha = exp2(m_${strip} - m_new_${strip});
m_${strip} = m_new_${strip};
l_${strip} *= alpha;`,
      this.#eachGroup(this.#t.scoreKeys, (start, columns) =>
        text(
          this.#spill(strip, start, columns),
          `for (var i = half; i < ${columns / 4}u; i += 2u) {
s_tile[s_row_${strip} + i] = bitcast<vec4<u32>>(bitcast<vec4<f32>>(s_tile[s_row_${strip} + i]) * alpha);
}`,
          ops.sync(),
          this.#eachOutput(strip, start, columns, (list, i, offset) =>
            ops.set(list, i, ops.load('Result', 's_tile', offset, 'S_STRIDE', 'row_major')),
          ),
        ),
      ),
      ops.sync(),
    );
  }

  /** O += P V for the keys from `key` on. */
  #output(buffer: string, key: string): string {
    return text(
      '// O += P V',
      range(this.#keyDepth).map((c) => text('{', this.#probabilitiesAt(c), this.#productsAt(buffer, key, c), '}')),
    );
  }

  /** The probabilities at step c of the keys in flight, as left_<rows>_<c>. */
  #probabilitiesAt(c: number): string {
    const { shape, pairs } = this.#t;
    const first = c * shape.k;
    // Probabilities lie at the start of the scores they came from, in groups of 16 keys.
    const word = this.#width === 16 ? Math.floor(first / 16) * 4 + (first % 16) / 8 : first / 8;
    const shared = (matrix: number): string => `(pair_row + ${matrix * shape.m}u) * P_STRIDE + ${first / 8}u`;
    return text(
      this.#rows().map(({ strip, matrix, id }) => {
        const left = pairs
          ? this.#ops.load('Left', 'p_tile', shared(matrix), 'P_STRIDE', 'row_major')
          : this.#ops.load('Left', 's_tile', this.#at(strip, matrix, word), 'S_STRIDE', 'row_major');
        return `let left_${id}_${c} = ${left};`;
      }),
    );
  }

  /** Multiplies step c's probabilities with V. */
  #productsAt(buffer: string, key: string, c: number): string {
    const { shape, pairs } = this.#t;
    const firstColumn = pairs ? `side * ${this.#d / 16}u + ` : '';
    const ops = this.#ops;
    return ops.each('n', this.#outputMatrices, (n) =>
      text(
        `let right = ${ops.load('Right', 'v_tile', `${buffer}(${key} + ${c * shape.k}u) * KV_STRIDE + ${firstColumn}${wgsl(times(n, shape.n / 8))}`, 'KV_STRIDE', 'row_major')};`,
        this.#rows().map(({ id }) => ops.set(`o_${id}`, n, ops.multiplyAdd(`left_${id}_${c}`, 'right', ops.get(`o_${id}`, n)))),
      ),
    );
  }

  // ---- two subgroups that share 32 rows

  #pairQueries(): string {
    const ops = this.#ops;
    const { k, m } = this.#t.shape;
    return text(
      '// Queries pass through s_tile into registers: both subgroups of a pair need all of its rows.',
      this.#rows().map(({ id }) => ops.declare(`q_${id}`, 'Left', this.#depth)),
      this.#eachGroup(2 * this.#t.scoreKeys, (start, columns) =>
        text(
          'workgroupBarrier();',
          `for (var i = half; i < ${columns / 8}u; i += 2u) {
var x = vec4<u32>();
if (row_0 < params.n_q) {
x = load_q(q_head + row_0 * params.q_row_stride + ${wgsl(times(start, columns / 4))} + 2u * i) ^ vec4<u32>(sign_flip);
}
s_tile[s_row_0 + i] = x;
}`,
          'workgroupBarrier();',
          this.#rows().map(({ id, matrix }) =>
            ops.each('c', columns / k, (c) => {
              const at = `pair_strip + ${matrix * m}u * S_STRIDE + ${wgsl(times(c, k / 8))}`;
              return ops.set(
                `q_${id}`,
                plus(times(start, columns / k), c),
                ops.load('Left', 's_tile', at, 'S_STRIDE', 'row_major'),
              );
            }),
          ),
        ),
      ),
      'workgroupBarrier();',
    );
  }

  /** Word of a row of p_tile for the 8 keys u of this invocation's group g. */
  #probabilityWord(g: number, u: number): string {
    return `${this.#width / 8}u * (${2 * g}u + half) + ${u}u`;
  }

  /** Tells both subgroups of the pair what the rows of this one are multiplied by. */
  #announceRescale(): string {
    return `var alpha = 1.0;
if (rises_0) {
alpha = exp2(m_0 - m_new_0);
m_0 = m_new_0;
l_0 *= alpha;
}
if (half == 0u) {
row_scale[subgroup * ${STRIP_ROWS}u + strip_row] = alpha;
}
if (lane == 0u) {
rises[subgroup] = select(0u, 1u, rises_0);
}
let p_row = (subgroup * ${STRIP_ROWS}u + strip_row) * P_STRIDE;`;
  }

  /** Visits the output matrices with each in turn in this subgroup's part of s_tile, as f32 rows of `shape.n`. */
  #pairOutputs(visit: (scratch: string, matrix: number, name: string, index: Index) => string): string {
    const ops = this.#ops;
    const { m } = this.#t.shape;
    return text(
      this.#rows().map(({ id, matrix }) =>
        ops.each('n', this.#outputMatrices, (n) => {
          const scratch = `(own_scores + ${matrix * m}u * S_STRIDE)`;
          return text(
            ops.store('s_tile', scratch, ops.get(`o_${id}`, n), 'S_STRIDE'),
            ops.sync(),
            visit(scratch, matrix, `o_${id}`, n),
          );
        }),
      ),
    );
  }

  #pairRescale(): string {
    const ops = this.#ops;
    const { m, n } = this.#t.shape;
    return text(
      ops.anyOfWorkgroup ? 'if (rises_0) {' : 'if ((rises[subgroup] | rises[subgroup ^ 1u]) != 0u) {',
      this.#pairOutputs((scratch, matrix, name, index) =>
        text(
          `for (var i = lane; i < ${(m * n) / 4}u; i += ${SUBGROUP_SIZE}u) {
let at = ${scratch} + i / ${n / 4}u * S_STRIDE + i % ${n / 4}u;
s_tile[at] = bitcast<vec4<u32>>(bitcast<vec4<f32>>(s_tile[at]) * row_scale[pair_row + ${matrix * m}u + i / ${n / 4}u]);
}`,
          ops.sync(),
          ops.set(name, index, ops.load('Result', 's_tile', scratch, 'S_STRIDE', 'row_major')),
          ops.sync(),
        ),
      ),
      '}',
    );
  }

  #pairLoop(): string {
    const barrier = 'workgroupBarrier();';
    const fetchBoth = (k: string, v: string): string => text(this.#fetch('k', k), this.#fetch('v', v));
    return text(
      this.#publishKeys('0u'),
      this.#publishKeysIf('1u'),
      this.#publishKeysIf('2u'),
      this.#contiguous ? '' : barrier,
      text(this.#declareFetched('k'), this.#declareFetched('v')),
      `{\n${this.#fetch('k', '0u')}\n}`,
      this.#stage('k'),
      `{\n${fetchBoth('1u', '0u')}\n}`,
      barrier,
      'for (var tile = 0u; tile < tiles; tile++) {',
      this.#scores('', '0u'),
      this.#rows().map(({ matrix, id }) =>
        this.#ops.each('n', this.#scoreMatrices, (n) =>
          this.#ops.store(
            's_tile',
            this.#scoresAt(0, matrix, times(n, this.#t.shape.n / 4)),
            this.#ops.get(`s_${id}`, n),
            'S_STRIDE',
          ),
        ),
      ),
      '// All have read this K and the V before.',
      barrier,
      this.#stage('k'),
      this.#stage('v'),
      this.#softmaxOfPair(),
      barrier,
      `if (tile + 1u < tiles) {\n${this.#fetch('v', '(tile + 1u)')}\n}`,
      `if (tile + 2u < tiles) {\n${this.#fetch('k', '(tile + 2u)')}\n}`,
      this.#publishKeysIf('(tile + 3u)'),
      this.#pairRescale(),
      this.#output('', '0u'),
      '}',
    );
  }

  /** The softmax of this subgroup's 16 rows, with `rises_0` left in scope. */
  #softmaxOfPair(): string {
    return this.#softmax('0u', '// The rows of each pair are rescaled once both subgroups have spoken.');
  }

  #pairEpilogue(): string {
    const { m, n } = this.#t.shape;
    return text(
      `let l = ${this.#ops.pairSum('l_0')};
if (half == 0u) {
row_scale[subgroup * ${STRIP_ROWS}u + strip_row] = select(0.0, 1.0 / l, l > 0.0);
}
workgroupBarrier();`,
      this.#pairOutputs((scratch, matrix, _, index) =>
        text(
          `for (var i = lane; i < ${(m * n) / 8}u; i += ${SUBGROUP_SIZE}u) {
let row = pair_row + ${matrix * m}u + i / ${n / 8}u;
if (row0 + row < params.n_q) {
let at = ${scratch} + i / ${n / 8}u * S_STRIDE + 2u * (i % ${n / 8}u);
let a = bitcast<vec4<f32>>(s_tile[at]) * row_scale[row];
let b = bitcast<vec4<f32>>(s_tile[at + 1u]) * row_scale[row];
let column = side * ${this.#d / 2}u + ${wgsl(times(index, n))} + 8u * (i % ${n / 8}u);
store_o(params.o_base + entry.head * params.o_head_stride + (row0 + row) * params.o_row_stride + column / 4u, a, b);
}
}`,
          this.#ops.sync(),
        ),
      ),
      `if (half == 0u && row_0 < params.n_q && params.write_lse != 0u) {
lse[params.lse_base + entry.head * params.n_q + row_0] = LN2 * (m_0 + log2(l));
}`,
    );
  }

  /** O / l to memory, and the log-sum-exp. */
  #epilogue(): string {
    return text(
      this.#strips.map((s) =>
        text(
          '{',
          `let l = ${this.#ops.pairSum(`l_${s}`)};
let inv_l = select(0.0, 1.0 / l, l > 0.0);`,
          this.#eachGroup(this.#t.scoreKeys, (start, columns) =>
            text(
              this.#spill(s, start, columns),
              `if (row_${s} < params.n_q) {
let to = params.o_base + entry.head * params.o_head_stride + row_${s} * params.o_row_stride + ${wgsl(times(start, columns / 4))};
for (var i = half; i < ${columns / 8}u; i += 2u) {
let a = bitcast<vec4<f32>>(s_tile[s_row_${s} + 2u * i]) * inv_l;
let b = bitcast<vec4<f32>>(s_tile[s_row_${s} + 2u * i + 1u]) * inv_l;
store_o(to + 2u * i, a, b);
}
}`,
            ),
          ),
          `if (half == 0u && row_${s} < params.n_q && params.write_lse != 0u) {
lse[params.lse_base + entry.head * params.n_q + row_${s}] = LN2 * (m_${s} + log2(l));
}`,
          '}',
        ),
      ),
    );
  }
}
