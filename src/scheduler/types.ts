import type { MemoryReport } from '../device/pool.js';
import type { Tier, TilingOverrides } from '../device/profile.js';
import type { Stage } from '../device/recorder.js';
import type { DType } from '../kernels/tensor.js';

/** Full causal attention. */
export interface DensePattern {
  readonly kind: 'dense';
}

/** A-shape (`stream_llm`): the first `initSize` keys and the last `localSize` keys of each row. MInference section 3.1. */
export interface AShapePattern {
  readonly kind: 'a_shape';
  /** Initial keys that every row sees (0 or more). */
  readonly initSize: number;
  /** Keys of the local window, the row's own among them (1 or more). */
  readonly localSize: number;
}

/**
 * Vertical-slash (`vertical_and_slash`): the `verticalSize` key columns and `slashSize` diagonals with the
 * most attention mass in the last 64 queries. MInference section 3.1 and algorithm 2.
 */
export interface VerticalSlashPattern {
  readonly kind: 'vertical_slash';
  /** Columns to keep (0 or more); the first 30 come first. */
  readonly verticalSize: number;
  /** Diagonals to keep; the nearest 100 come first, and diagonal 0 is always kept. */
  readonly slashSize: number;
}

/**
 * Block-sparse (`block_sparse`): for each block of 64 rows the `topK` blocks of 64 keys with the highest
 * mean-pooled score, the diagonal always among them. MInference section 3.1 and algorithm 3.
 */
export interface BlockSparsePattern {
  readonly kind: 'block_sparse';
  /** Key blocks per block of rows (1 or more). */
  readonly topK: number;
}

/**
 * Tri-shape: A-shape, and the last `lastSize` query rows of the call see everything, so that the question at the
 * end of a prompt attends to all of it. SCBench (arXiv 2412.10319), which uses 128, 3968 and 100.
 */
export interface TriShapePattern {
  readonly kind: 'tri_shape';
  /** Initial keys that every row sees (0 or more). */
  readonly initSize: number;
  /** Keys of the local window, the row's own among them (1 or more). */
  readonly localSize: number;
  /** Query rows at the end of the call that see every key (0 or more). */
  readonly lastSize: number;
}

/**
 * Vertical-slash attention over columns and diagonals that the caller gives: fixed patterns such as dilated or
 * strided windows, or an index that was built once and is used again. Nothing is estimated. Diagonal 0 is
 * always kept. See `src/patterns/static.ts` for ready-made ones.
 */
export interface StaticPattern {
  readonly kind: 'static_vertical_slash';
  /** Key positions that every row sees; at most 2^20. Those past the last key are ignored. */
  readonly columns: ArrayLike<number>;
  /** Distances between row and key, as runs `lo, hi, lo, hi, ...` with both ends kept; at most 2^20. */
  readonly runs: ArrayLike<number>;
}

/**
 * XAttention (arXiv 2503.16428): for each block of 64 rows the fewest blocks of 64 keys that hold `threshold` of
 * its estimated attention, block 0 and the diagonal always among them. The estimate sums scores along the
 * antidiagonals of `stride` x `stride` squares, so it sees every query and key, at 1/stride of the cost of dense scores.
 */
export interface XAttentionPattern {
  readonly kind: 'x_attention';
  /** 8 (finer) or 16 (cheaper to estimate). */
  readonly stride: 8 | 16;
  /** Share of the estimated attention to keep, above 0, up to 1. The paper uses 0.9. */
  readonly threshold: number;
}

/**
 * FlexPrefill (arXiv 2502.20766): each head gets its pattern and its budget from the input itself, on the GPU. The attention
 * of the last 64 queries, pooled over key blocks, is compared with what pooled queries and keys say of it. Where they
 * agree, the head keeps the blocks of 64 x 64 with the highest pooled scores; else columns and blocks of
 * diagonals, as vertical-slash does. Either way it keeps as few as hold `gamma` of the estimated attention.
 */
export interface FlexPrefillPattern {
  readonly kind: 'flex_prefill';
  /** Share of the estimated attention to keep, above 0, up to 1. The paper uses 0.9 to 0.95. Default 0.9. */
  readonly gamma?: number;
  /**
   * Jensen-Shannon distance of the pooled estimate from the true block distribution, 0 to 1, below which a head
   * keeps blocks; 0: never. The paper uses 0.1. Default 0.1.
   */
  readonly tau?: number;
  /** Columns and diagonals, or nearest keys, to keep at least (0 or more). The paper uses 1024. Default 1024. */
  readonly minBudget?: number;
}

/** What one head attends to. */
export type HeadPattern =
  | DensePattern
  | AShapePattern
  | VerticalSlashPattern
  | BlockSparsePattern
  | TriShapePattern
  | StaticPattern
  | XAttentionPattern
  | FlexPrefillPattern;

/** Where a tensor lies in a buffer, for tensors that are not simply packed. */
export interface TensorBinding {
  readonly buffer: GPUBuffer;
  /** Bytes before head 0, row 0; a multiple of four elements. Default 0. */
  readonly offset?: number;
  /** Elements from one head to the next; a multiple of 4. Default: from the layout. */
  readonly headStride?: number;
  /** Elements from one row to the next; a multiple of 4. Default: from the layout. */
  readonly rowStride?: number;
}

/** One attention layer of a causal prefill. q and k already carry RoPE. */
export interface AttentionLayer {
  /** Queries `[numHeads, seqLen, headDim]`. */
  readonly q: GPUBuffer | TensorBinding;
  /** Keys `[numKvHeads, kvLen, headDim]`. */
  readonly k: GPUBuffer | TensorBinding;
  /** Values `[numKvHeads, kvLen, headDim]`. */
  readonly v: GPUBuffer | TensorBinding;
  /** Receives the output `[numHeads, seqLen, headDim]`. A buffer of its own. */
  readonly o: GPUBuffer | TensorBinding;
  /** Receives the natural log-sum-exp of each row's scaled scores, `[numHeads, seqLen]` f32, if given. */
  readonly lse?: GPUBuffer | { readonly buffer: GPUBuffer; readonly offset?: number };
  /** Query heads; a multiple of `numKvHeads`. */
  readonly numHeads: number;
  /** Key/value heads. Query head `h` reads kv head `floor(h * numKvHeads / numHeads)`. Default `numHeads`. */
  readonly numKvHeads?: number;
  /** 32, 64, 80, 96, 128 or 256. */
  readonly headDim: number;
  /** Query rows in this call (1 or more). */
  readonly seqLen: number;
  /** Keys. Default `queryOffset + seqLen`. */
  readonly kvLen?: number;
  /**
   * Absolute position of query row 0: row `i` attends to keys `j <= queryOffset + i`. For chunked prefill
   * and later turns of a conversation. Default `kvLen - seqLen`, or 0.
   */
  readonly queryOffset?: number;
  /** Element type of q, k, v and o. */
  readonly dtype: DType;
  /** `HND` (heads outermost, default) or `NHD` (rows outermost). */
  readonly layout?: 'HND' | 'NHD';
  /** Softmax scale. Default `1 / sqrt(headDim)`. */
  readonly scale?: number;
  /** One pattern for all heads, or one for each query head. */
  readonly patterns: HeadPattern | readonly HeadPattern[];
}

/** Options of `new SparsePrefill(device, options)`. */
export interface SparsePrefillOptions {
  /** Kernel family; the best that the device can run unless given. */
  readonly tier?: Tier | 'auto';
  /** Transient workspace to aim for, in bytes; heads are processed in groups to stay near it. Default 512 MiB. */
  readonly workspaceLimit?: number;
  /**
   * Aimed-at longest GPU time of one dispatch, in milliseconds, to stay clear of the browser's or driver's
   * watchdog and keep the page smooth. Default 100. Servers may raise it.
   */
  readonly dispatchMs?: number;
  /**
   * `info` of the adapter that the device came from. The matrix tier needs it, since devices do not tell their matrix
   * shapes; not needed for devices of `openDevice()`.
   */
  readonly adapterInfo?: GPUAdapterInfo;
  /** Tilings to use instead of the chosen ones: for benchmarks. */
  readonly tilings?: TilingOverrides;
  /**
   * Keep the bind groups of {@link SparsePrefill.record}, for layers whose buffers return with every chunk and prompt. They hold the
   * caller's buffers until `trim()` or `destroy()`, so destroy what is no longer needed. Default false.
   */
  readonly reuseBindGroups?: boolean;
}

/** Progress of a running layer. */
export interface PrefillProgress {
  /** Share of the estimated work that the GPU has finished, 0 to 1. */
  readonly fraction: number;
  readonly completedFlops: number;
  readonly totalFlops: number;
}

/** Options of `SparsePrefill.run`. */
export interface RunOptions {
  /** Stops submitting more work; the promise then rejects with the signal's reason once the GPU is idle. */
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: PrefillProgress) => void;
  /** Measure GPU time per stage (needs `timestamp-query`; silently absent from the result otherwise). */
  readonly timestamps?: boolean;
  /** Read each head's index back afterwards, to report what was kept. For diagnostics: costs a readback. */
  readonly inspect?: boolean;
}

/** GPU milliseconds of each stage. */
export type StageTimes = Readonly<Record<Stage, number>>;

/** The index that a head used. A `flex_prefill` head has the one of the pattern that was chosen for it. */
export type HeadIndex =
  | { readonly kind: 'dense' | 'a_shape' | 'tri_shape' }
  | {
      readonly kind: 'vertical_slash';
      /** Kept key columns, ascending. */
      readonly columns: Uint32Array;
      /** Runs of kept diagonals as (lo, hi) pairs, ascending. */
      readonly runs: Uint32Array;
    }
  | {
      readonly kind: 'block_sparse';
      /** Kept key blocks of each row block, ascending. */
      readonly blocks: readonly Uint32Array[];
    };

/** What one head computed. */
export interface HeadReport {
  readonly head: number;
  readonly pattern: HeadPattern;
  readonly index: HeadIndex;
  /** Query-key pairs that the head computed over the causal total, 0 to 1. */
  readonly density: number;
}

/** What a plan costs, known before it runs. */
export interface PlanReport {
  readonly tier: Tier;
  readonly dispatches: number;
  /** Estimated floating-point operations. */
  readonly flops: number;
  /** Bytes of the sparse indices of all heads. */
  readonly indexBytes: number;
  /** Workspace of this layer; the caller's tensors are not in it. */
  readonly memory: MemoryReport;
}

/** Result of `SparsePrefill.run`. */
export interface RunReport extends PlanReport {
  readonly submits: number;
  /** GPU time per stage, when timestamps were asked for and the device has them. */
  readonly stages?: StageTimes;
  /** Sum of `stages`. */
  readonly gpuMs?: number;
  /** Per head, when `inspect` was asked for. */
  readonly heads?: readonly HeadReport[];
}
