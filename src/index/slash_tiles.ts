import slashTiles from '../../shaders/index/slash_tiles.wgsl?raw';
import headEntry from '../../shaders/lib/head_entry.wgsl?raw';
import verticalSlashIndex from '../../shaders/lib/vertical_slash_index.wgsl?raw';
import { lazyShader, type ShaderSpec } from '../device/pipelines.js';
import type { Bindable, BufferRange, Recorder } from '../device/recorder.js';
import { INDEX_BLOCK } from '../kernels/attention.js';
import { prelude } from '../kernels/shader_text.js';
import { divCeil } from './layer.js';

/** Words of a head entry (shaders/lib/head_entry.wgsl), and where its index offset and arguments are. */
const ENTRY = { words: 8, indexOffset: 2, columnRoom: 3, tilesOffset: 6 } as const;

/** Rows and keys that the tiles are for. */
export interface SlashTilesSizes {
  /** Query rows. */
  readonly rows: number;
  /** Absolute position of row 0. */
  readonly queryOffset: number;
  /** Keys of a tile (BLOCK_N of the kernel that reads them). */
  readonly tile: number;
}

/** How many things shaders/index/slash_tiles.wgsl writes for a head with room for `columns`, and the words that they take. */
function counts(
  columns: number,
  { rows, queryOffset, tile }: SlashTilesSizes,
): { readonly things: number; readonly words: number } {
  const blocks = divCeil(rows, INDEX_BLOCK);
  const positions = queryOffset + blocks * INDEX_BLOCK;
  const bits = divCeil(positions, 32);
  const listed = (divCeil(columns, tile) + divCeil(positions, tile)) * tile;
  return { things: blocks + listed + bits, words: 1 + 2 * blocks + listed + bits };
}

/** Bytes of the tiles of heads with room for so many columns each. */
export function slashTilesBytes(columns: readonly number[], sizes: SlashTilesSizes): number {
  return 4 * columns.reduce((sum, n) => sum + counts(n, sizes).words, 0);
}

/** Writes the tiles of vertical-slash heads (shaders/index/slash_tiles.wgsl). */
export function slashTilesShader(tile: number): ShaderSpec {
  return lazyShader({ label: `slash tiles of ${tile}`, bindings: ['uniform', 'read', 'read', 'write'] }, () =>
    [prelude({ constants: { TILE: tile } }), headEntry, verticalSlashIndex, slashTiles].join('\n'),
  );
}

/** Tiles in GPU memory, and the head entries of the kernel that reads them. */
export interface SlashTiles {
  /** Workspace of the recorder; release it after the kernels that read it are recorded. */
  readonly buffer: GPUBuffer;
  /** First u32 of each head in `buffer`. */
  readonly offsets: readonly number[];
  /** The head entries, with these as their index offsets. */
  readonly heads: BufferRange;
}

/**
 * Records the conversion of a vertical-slash index to what the matrix tier's kernel walks over.
 *
 * @param entries head entries of the index, 8 words each
 */
export function recordSlashTiles(
  rec: Recorder,
  index: Bindable,
  entries: Uint32Array<ArrayBuffer>,
  sizes: SlashTilesSizes,
): SlashTiles {
  const from = new Uint32Array(entries);
  const to = new Uint32Array(entries);
  const offsets: number[] = [];
  let words = 0;
  let most = 0;
  for (let i = 0; i < entries.length; i += ENTRY.words) {
    const head = counts(entries[i + ENTRY.columnRoom] ?? 0, sizes);
    from[i + ENTRY.tilesOffset] = words;
    to[i + ENTRY.indexOffset] = words;
    offsets.push(words);
    words += head.words;
    most = Math.max(most, head.things);
  }
  const buffer = rec.workspace('slash tiles', words * 4);
  rec.dispatch({
    stage: 'convert',
    shader: slashTilesShader(sizes.tile),
    bindings: [rec.constant([sizes.rows, sizes.queryOffset]), rec.constant(from), index, buffer],
    workgroups: [divCeil(most, 64), offsets.length],
  });
  return { buffer, offsets, heads: rec.constant(to) };
}
