import places from '../../shaders/lib/index_score_part_places.wgsl?raw';
import plainParts from '../../shaders/lib/index_score_parts.wgsl?raw';
import matrixParts from '../../shaders/lib/index_score_parts_matrix.wgsl?raw';
import matrixSquares from '../../shaders/lib/index_score_squares_matrix.wgsl?raw';
import plain from '../../shaders/lib/index_score_tile.wgsl?raw';
import matrix from '../../shaders/lib/index_score_tile_matrix.wgsl?raw';
import tiles from '../../shaders/lib/index_score_tiles.wgsl?raw';
import stagePatch from '../../shaders/lib/stage_patch.wgsl?raw';
import type { DeviceProfile } from '../device/profile.js';
import type { MatrixShape } from '../device/subgroup_matrix.js';
import { type MatrixOps, nativeOps } from '../kernels/matrix_ops.js';
import { type StorageFormat, withUnit } from '../kernels/shader_text.js';
import { ScoreTileWriter, SUBGROUP_KEYS, stagingWithin } from './score_tile_matrix.js';

/** The inner loop of an index estimator: `rows` x 128 dot products. */
export interface ScoreTile {
  /** For labels. */
  readonly tag: string;
  /** `enable` and `diagnostic` directives that must stand before everything else. */
  readonly directives: string;
  /** Rows of a tile. */
  readonly rows: number;
  /** How the kernel reads its tensors. */
  readonly storage: StorageFormat;
  /** Constants of its text. */
  readonly constants: Readonly<Record<string, number>>;
  /** In how many parts `score_parts` hands the scores over. */
  readonly parts: number;
  /** WGSL of `score_tile`, `score_parts` or `score_tiles`, and its constants, written when it is asked for. */
  readonly code: string;
  /** Whether it runs on subgroup matrices. */
  readonly onMatrices: boolean;
  /** Whether `score_tiles` keeps the rows from one tile to the next. */
  readonly keepsRows: boolean;
}

/** What a kernel wants of the tile, mostly of the matrix form. The plain form has 64 rows and 960 elements. */
export interface MatrixTileSize {
  /** Rows of a tile. */
  readonly rows: 64 | 128;
  /**
   * A square of scores for each thread, or parts of all scores one after the other: shaders/lib/index_score_parts.wgsl; or those of
   * several tiles with the same rows: shaders/lib/index_score_tiles.wgsl.
   */
  readonly scores: 'squares' | 'parts' | 'tiles';
  /** Elements of `stage` that the kernel uses. */
  readonly stage: number;
  /** Bytes of workgroup memory to stay below where a staging does, for several workgroups a multiprocessor. */
  readonly memory?: number;
}

/** Writes the matrix operations of a shape. */
type OpsOf = (shape: MatrixShape) => MatrixOps;

/** PARTS of shaders/lib/index_score_parts.wgsl. */
const PLAIN_PARTS = 4;
/** Workgroup memory that kernels may use beside the tile. */
const KERNEL_BYTES = 512;
/** Most dimensions of rows that are kept in registers, with as many of the next tile's keys beside them. */
const MOST_KEPT = 128;

/** WGSL of shaders/lib/index_score_tile.wgsl. Software adapters take long to compile what is unrolled. */
export function plainScoreTile({ software }: Pick<DeviceProfile, 'software'>): string {
  return [stagePatch, withUnit(plain, software ? 'min(1u, D4 - d0)' : undefined)].join('\n');
}

/**
 * shaders/lib/index_score_tile_matrix.wgsl for f16 tensors in the matrix tier, shaders/lib/index_score_tile.wgsl otherwise.
 *
 * @param headDim - dimensions of a dot product.
 */
export function scoreTile(
  profile: DeviceProfile,
  headDim: number,
  storage: StorageFormat,
  size: MatrixTileSize,
  opsOf: OpsOf = (shape) => nativeOps(shape, 'subgroup'),
): ScoreTile {
  const shapes = profile.matrix?.shapes ?? [];
  const shape = shapes.find((s) => s.n === 16) ?? shapes[0];
  const room = profile.limits.maxComputeWorkgroupStorageSize - KERNEL_BYTES;
  const keepsRows = size.scores === 'tiles' && headDim <= MOST_KEPT;
  const staging = stagingWithin(size, headDim, keepsRows, size.memory ?? room, room);
  if (shape && storage === 'f16' && staging) {
    const { m, n, k } = shape;
    return {
      tag: `${size.rows} ${m}x${n}x${k} d${staging.chunk}${keepsRows ? ' rows kept' : ''}`,
      directives: `enable f16;\n${opsOf(shape).directives}\n`,
      rows: size.rows,
      storage: 'f16-packed',
      constants: { D_CHUNK: staging.chunk },
      parts: SUBGROUP_KEYS / staging.part,
      get code() {
        const writer = new ScoreTileWriter(shape, size, staging, keepsRows, opsOf(shape));
        const library = [matrix, places, size.scores === 'squares' ? matrixSquares : matrixParts];
        if (keepsRows) return [...library, writer.tiles(headDim)].join('\n');
        return [...library, writer.tile(), ...(size.scores === 'tiles' ? [tiles] : [])].join('\n');
      },
      onMatrices: true,
      keepsRows,
    };
  }
  const more = { squares: [], parts: [places, plainParts], tiles: [places, plainParts, tiles] }[size.scores];
  return {
    tag: 'plain',
    directives: '',
    rows: 64,
    storage,
    constants: {},
    parts: PLAIN_PARTS,
    code: [plainScoreTile(profile), ...more].join('\n'),
    onMatrices: false,
    keepsRows: false,
  };
}
