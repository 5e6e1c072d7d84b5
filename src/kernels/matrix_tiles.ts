import { SUBGROUP_SIZE } from '../device/subgroup_matrix.js';
import { type MatrixKernel, type MatrixTiling, scoreWords } from './matrix_config.js';
import { entryPoint, type Index, type MatrixOps } from './matrix_ops.js';

/** Lists 0, 1, ... count - 1. */
export function range(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i);
}

/** Joins lines and blocks of lines. */
export function text(...parts: readonly (string | readonly string[])[]): string {
  return parts
    .flat()
    .filter((part) => part !== '')
    .join('\n');
}

/** Indents by braces: the generated kernel is meant to be read. */
export function indent(code: string): string {
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

/** A constant to add, or nothing. */
export function plusConstant(constant: number): string {
  return constant > 0 ? ` + ${constant}u` : '';
}

/** `slot_of` of shaders/matrix/softmax.wgsl. */
export function slotOf(key: number): number {
  return (key & ~12) | ((key & 4) << 1) | ((key & 8) >> 1);
}

/** What the loops of all matrix kernels of attention share: which keys a tile holds, and how K and V reach workgroup memory. */
export class TileWriter {
  protected readonly kernel: MatrixKernel;
  protected readonly d: number;
  protected readonly t: MatrixTiling;
  protected readonly ops: MatrixOps;
  /** The keys of a tile are any, worked out ahead (shaders/matrix/vertical_slash.wgsl). Other tiles hold neighbours, whose first one will do. */
  protected readonly walks: boolean;

  /** Matrices over the rows, keys and columns of the head dimension of `share`, and over the head dimension and the keys in flight as depth. */
  protected readonly rowMatrices: readonly number[];
  protected readonly scoreMatrices: number;
  protected readonly outputMatrices: number;
  protected readonly depth: number;
  protected readonly keyDepth: number;

  /** @param share what a subgroup computes at a time: rows, and of these scores of so many keys and output of so many columns */
  constructor(
    kernel: MatrixKernel,
    headDim: number,
    tiling: MatrixTiling,
    ops: MatrixOps,
    share: { readonly rows: number; readonly keys: number; readonly columns: number },
  ) {
    const { m, n, k } = tiling.shape;
    this.rowMatrices = range(share.rows / m);
    this.scoreMatrices = share.keys / n;
    this.outputMatrices = share.columns / n;
    this.depth = headDim / k;
    this.keyDepth = tiling.scoreKeys / k;
    this.kernel = kernel;
    this.d = headDim;
    this.t = tiling;
    this.ops = ops;
    this.walks = kernel === 'vertical_slash';
  }

  // ---- keys and staging

  /** Calls `visit` for each 16-byte word that an invocation stages of a tile. */
  protected eachWord(visit: (i: number, guardStart: string, guardEnd: string) => string): string {
    const words = (this.t.keys * this.d) / 8;
    const threads = this.t.subgroups * SUBGROUP_SIZE;
    return text(
      range(Math.ceil(words / threads)).map((i) => {
        const partial = (i + 1) * threads > words;
        return visit(i, partial ? `if (thread + ${i * threads}u < BLOCK_N * D8) {` : '', partial ? '}' : '');
      }),
    );
  }

  /** Word i of an invocation: its key's slot in the tile, its word in the row, and the row of `k_tile` or `v_tile` where it goes. */
  protected slot(tensor: 'k' | 'v', i: number): { readonly slot: string; readonly d: string; readonly row: string } {
    const threads = this.t.subgroups * SUBGROUP_SIZE;
    const d8 = this.d / 8;
    const rows = threads / d8;
    const ofV = tensor === 'v';
    if (Number.isInteger(rows)) {
      const slot = `(thread / D8${plusConstant(i * rows)})`;
      // Bits of the constant and of the variable part go their own ways.
      const rowOfV = Number.isInteger(Math.log2(rows))
        ? `(slot_of(thread / D8)${plusConstant(slotOf(i * rows))})`
        : `slot_of(${slot})`;
      return { slot, d: '(thread % D8)', row: ofV ? rowOfV : slot };
    }
    const word = i > 0 ? `(thread + ${i * threads}u)` : 'thread';
    return { slot: `(${word} / D8)`, d: `(${word} % D8)`, row: ofV ? `slot_of(${word} / D8)` : `(${word} / D8)` };
  }

  /** The first key of a tile of neighbouring keys. */
  protected firstKey(tile: string): string {
    return `key_at(entry, row0, ${this.visited(tile)}, 0u)`;
  }

  /** Loads this invocation's words of a tile of k or v into variables `${tensor}_next_${i}`; `key0` is its first key, if that is known. */
  protected fetch(tensor: 'k' | 'v', tile: string, key0 = this.firstKey(tile)): string {
    return text(
      '{',
      this.walks ? '' : `let ${tensor}_key0 = ${key0};`,
      this.eachWord((i, start, end) => {
        const { slot, d } = this.slot(tensor, i);
        return text(
          start,
          `${tensor}_next_${i} = load_${tensor}(${tensor}_head, min(${this.walks ? this.keyAt(tile, slot) : `${tensor}_key0 + ${slot}`}, last_key), ${d});`,
          end,
        );
      }),
      '}',
    );
  }

  protected declareFetched(tensor: 'k' | 'v'): string {
    return this.eachWord((i) => `var ${tensor}_next_${i} = vec4<u32>();`);
  }

  /** Stores the words that {@link fetch} loaded. */
  protected stage(tensor: 'k' | 'v'): string {
    return this.eachWord((i, start, end) => {
      const { row, d } = this.slot(tensor, i);
      return text(start, `${tensor}_tile[${row} * KV_STRIDE + ${d}] = ${tensor}_next_${i};`, end);
    });
  }

  /**
   * The key of element `i` of four scores `j` of an invocation. Two invocations take the fours of a row in turn: so neither they nor
   * those of three rows beside them meet in a bank, provided that a row of scores takes an odd number of 32 bytes, which suits stores
   * of matrices. As eight probabilities are one word, those of 16 keys are in another order: `slot_of` puts rows of V into the same.
   */
  protected keyOf(j: number, i: number): string {
    return `${8 * j + i}u + 4u * half`;
  }

  /** Whether every row sees every key of a tile. */
  protected isFull(tile: string, key0?: string): string {
    if (this.walks) return `tile_is_full(row0, ${tile}, ${this.keyAt(tile, 'BLOCK_N - 1u')})`;
    if (key0 !== undefined) return `tile_is_full(entry, row0, ${this.visited(tile)}, ${key0})`;
    const full = `tile_is_full(entry, row0, ${this.visited(tile)}, ${this.keyAt(tile, '0u')})`;
    // Blocks are listed in ascending order, and only the last two can reach past the diagonal.
    return this.kernel === 'block_sparse' ? `(${this.visited(tile)} + ${(2 * 64) / this.t.keys}u < tiles || ${full})` : full;
  }

  /** The key in a slot of a tile. */
  protected keyAt(tile: string, slot: string, key0?: string): string {
    if (key0 !== undefined) return `${key0} + ${slot}`;
    return this.walks
      ? `tile_keys[${tile} % (2u * BATCH) * BLOCK_N + ${slot}]`
      : `key_at(entry, row0, ${this.visited(tile)}, ${slot})`;
  }

  /** The tile of neighbouring keys that step `tile` of the loop visits. */
  protected visited(tile: string): string {
    return this.t.split ? `visited(first_step + ${tile}, all_tiles)` : `visited(${tile}, tiles)`;
  }

  /** Hands on the first batch of keys of a walk, in front of all else. */
  protected beginWalk(): string {
    return `let walk = walk_of(entry, row0);
// The word of the next batch to hand on, what covers it, and the word of the batch behind.
var word = walk_word(walk, 0u, thread);
hand_on(walk, 0u, thread, word, covered_word(walk, word));
word = walk_word(walk, 1u, thread);
var covered = covered_word(walk, word);
var next_word = walk_word(walk, 2u, thread);
workgroupBarrier();`;
  }

  /** Hands on the next batch of keys, in front of the barrier behind which they are needed. */
  protected handOnWalk(): string {
    return `if (tile % BATCH == 0u) {
hand_on(walk, tile / BATCH + 1u, thread, word, covered);
word = next_word;
covered = covered_word(walk, word);
next_word = walk_word(walk, tile / BATCH + 3u, thread);
}`;
  }

  /** Adds eight output columns of the band, a word of them times `factor`, to `a` and `b`. */
  protected addBand(word: string, factor: string): string {
    return `if (merges) {
a = fma(vec4<f32>(unpack2x16float(${word}.x), unpack2x16float(${word}.y)), vec4<f32>(${factor}), a);
b = fma(vec4<f32>(unpack2x16float(${word}.z), unpack2x16float(${word}.w)), vec4<f32>(${factor}), b);
}`;
  }

  /** Hides those of four scores whose key a position does not see. */
  protected hide(x: string, position: string, key: (i: number) => string): string {
    const seen = range(4).map((i) => `is_visible(entry, ${position}, ${key(i)})`);
    return `${x} = select(vec4<f32>(MASKED), ${x}, vec4<bool>(${seen.join(', ')}));`;
  }

  /** The greatest element of some vec4, and the sum of all elements. */
  protected greatest(terms: readonly string[]): string {
    return `max_of(${this.#tree(terms, (a, b) => `max(${a}, ${b})`)})`;
  }

  protected sum(terms: readonly string[]): string {
    return `sum_of(${this.#tree(terms, (a, b) => `(${a} + ${b})`)})`;
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
  protected eachGroup(width: number, visit: (start: Index, columns: number) => string, dimensions = this.d): string {
    const whole = Math.floor(dimensions / width);
    let rest = dimensions - whole * width;
    const parts = [whole > 0 ? this.ops.each('g', whole, (g) => visit(g, width)) : ''];
    // The rest in groups that its start is a multiple of.
    for (let columns = width / 2; rest > 0; columns /= 2) {
      if (rest < columns) continue;
      parts.push(`{\n${visit((dimensions - rest) / columns, columns)}\n}`);
      rest -= columns;
    }
    return text(parts);
  }

  /** Parts of the head dimension, of at most `width` columns each. */
  protected groupsOf(width: number): { readonly start: number; readonly columns: number }[] {
    return range(Math.ceil(this.d / width)).map((g) => ({ start: g * width, columns: Math.min(width, this.d - g * width) }));
  }

  // ---- the kernel's frame

  /** Arrays that all loops share, without the padding behind their last rows; `scores` says what s_tile holds, if there is one. */
  protected arrays(scores?: string): string {
    return text(
      'var<workgroup> k_tile: array<vec4<u32>, BLOCK_N * KV_STRIDE - 1u>;',
      'var<workgroup> v_tile: array<vec4<u32>, BLOCK_N * KV_STRIDE - 1u>;',
      scores ? `// ${scores}\nvar<workgroup> s_tile: array<vec4<u32>, ${scoreWords(this.t)}u>;` : '',
    );
  }

  /** The entry point's signature, and what it works on. */
  protected opening(): string {
    const all = this.t.split ? 'all_tiles' : 'tiles';
    return text(
      entryPoint(this.ops),
      `let entry = heads[entry_of(workgroup)];
let row0 = (params.row_tile_end - 1u - tile_of(workgroup)) * BLOCK_M;
let last_key = last_position(row0, BLOCK_M);
let q_head = params.q_base + entry.head * params.q_head_stride;
let k_head = params.k_base + entry.kv_head * params.k_head_stride;
let v_head = params.v_base + entry.kv_head * params.v_head_stride;
let scale = max(abs(params.scale_log2), SCALE_MIN);
let sign_flip = select(0u, 0x80008000u, params.scale_log2 < 0.0);
let ${all} = tile_count(entry, row0);
if (${all} == 0u) {
  return;
}`, // Another kernel writes this head's rows, or has written them.
      this.t.split
        ? `let share = div_ceil(all_tiles, params.splits);
let first_step = min(workgroup.z * share, all_tiles);
let tiles = min(share, all_tiles - first_step);
let head_out = output_head(entry.head, workgroup.z);`
        : 'let head_out = entry.head;',
    );
  }

  /**
   * The head of the loop over tiles. With a step that compilers do not know NVIDIA's does not unroll it; with one that they know, and a
   * bound, it does so twice or eightfold, and WGSL's own counter, which ends endless loops, goes away.
   */
  protected tileLoop(): string {
    return this.t.unrolled
      ? 'for (var tile = 0u; tile < MOST_TILES; tile++) {\nif (tile >= tiles) {\nbreak;\n}'
      : 'for (var tile = 0u; tile < tiles; tile += params.unit) {';
  }

  /**
   * A fetch that stays where it stands, a tile ahead: compilers would move loads to where their words are used, past any
   * barrier, but not out of a branch that holds nothing else.
   */
  protected early(tile: string, fetch: string): string {
    return `if (${tile} < tiles) {\n${fetch}\n}`;
  }
}
