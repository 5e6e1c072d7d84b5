import {
  type AttentionLayer,
  type AttentionMap,
  type HeadPattern,
  indexCoverage,
  type LayerQuality,
  type RecallMeter,
} from '../src/index.js';
import type { AttentionCall } from '../src/model/index.js';

/** Cells along a side of a picture, at most. */
const CELLS = 128;

/** One head in a whole document: where its attention goes, and what its sparse index keeps of it. */
export interface HeadView {
  readonly pattern: HeadPattern;
  /** Share of the dense attention that the index keeps, mean over the rows. */
  readonly recall: number;
  /** Share of the query-key pairs that it computes. */
  readonly density: number;
  readonly map: AttentionMap;
  /** Share of each cell's pairs that the index keeps, in the grid of `map`. */
  readonly coverage: Float32Array;
}

interface HeadSum {
  pattern: HeadPattern;
  recall: number;
  pairs: number;
  readonly values: Float32Array;
  readonly coverage: Float32Array;
}

/** Puts together what a layer's heads do in the chunks that a document is read in. */
export class LayerWatch {
  readonly #meter: RecallMeter;
  readonly #seqLen: number;
  readonly #cell: number;
  readonly #side: number;
  readonly #heads: HeadSum[] = [];

  constructor(meter: RecallMeter, seqLen: number) {
    this.#meter = meter;
    this.#seqLen = seqLen;
    let cell = 8;
    while (seqLen > cell * CELLS) cell *= 2;
    this.#cell = cell;
    this.#side = Math.ceil(seqLen / cell);
  }

  /** Measures some heads in one chunk, on the queries and keys of the model itself. */
  async add({ firstHead, attention }: AttentionCall, signal: AbortSignal): Promise<void> {
    const { o, lse, patterns, ...layer } = attention;
    const { seqLen, queryOffset = 0 } = attention;
    const dense = await this.#meter.reference(layer, { signal });
    try {
      const { heads } = await this.#meter.measure(dense, patterns, { signal });
      for (const quality of heads) {
        signal.throwIfAborted();
        // As many cells as give all chunks cells of one size.
        const map = await this.#meter.attentionMap(dense, quality.head, Math.ceil((queryOffset + seqLen) / this.#cell));
        this.#addHead(firstHead + quality.head, quality, map, attention);
      }
    } finally {
      dense.destroy();
    }
  }

  #addHead(head: number, quality: LayerQuality['heads'][number], map: AttentionMap, attention: AttentionLayer): void {
    const { seqLen, queryOffset = 0, kvLen = seqLen } = attention;
    const { pattern, index, recall, density } = quality;
    const cells = this.#side ** 2;
    this.#heads[head] ??= { pattern, recall: 0, pairs: 0, values: new Float32Array(cells), coverage: new Float32Array(cells) };
    const sum = this.#heads[head];
    sum.pattern = pattern;
    sum.recall += recall * seqLen;
    sum.pairs += density * (seqLen * queryOffset + (seqLen * (seqLen + 1)) / 2);
    this.#stack(sum.values, map.values, map, queryOffset, seqLen);
    this.#stack(sum.coverage, indexCoverage(pattern, index, { seqLen, kvLen, queryOffset }, map), map, queryOffset, seqLen);
  }

  /** Adds the rows of a chunk's cells to those that they lie in, weighted by the queries they stand for. */
  #stack(to: Float32Array, from: Float32Array, map: AttentionMap, offset: number, seqLen: number): void {
    const cell = this.#cell;
    for (let row = 0; row < map.rows; row++) {
      const first = offset + row * cell;
      const end = Math.min(offset + seqLen, first + cell);
      for (let own = Math.floor(first / cell); own * cell < end; own++) {
        const shared = Math.min(end, (own + 1) * cell) - Math.max(first, own * cell);
        const weight = shared / (Math.min(this.#seqLen, (own + 1) * cell) - own * cell);
        for (let key = 0; key < map.keys; key++) {
          const at = own * this.#side + key;
          to[at] = (to[at] ?? 0) + weight * (from[row * map.keys + key] ?? 0);
        }
      }
    }
  }

  /** The heads, once all chunks have been added. */
  heads(): HeadView[] {
    const pairs = (this.#seqLen * (this.#seqLen + 1)) / 2;
    return this.#heads.map((sum, head) => ({
      pattern: sum.pattern,
      recall: sum.recall / this.#seqLen,
      density: sum.pairs / pairs,
      map: { head, cell: this.#cell, rows: this.#side, keys: this.#side, values: sum.values },
      coverage: sum.coverage,
    }));
  }
}
