import type { Bindable, BufferRange, Recorder } from '../device/recorder.js';
import { MERGE_ITEMS, mergeSplitsShader } from '../kernels/merge_splits.js';
import type { StorageFormat } from '../kernels/shader_text.js';
import { BYTES, type DType, type TensorWindow } from '../kernels/tensor.js';

/** Least keys of a split: fewer take no longer than what a workgroup does before and behind them. */
const SPLIT_KEYS = 512;

/** Rows of a span of heads whose keys several workgroups share. */
export interface SplitRows {
  readonly headStart: number;
  readonly headEnd: number;
  readonly rowStart: number;
  readonly rowEnd: number;
  readonly headDim: number;
  readonly dtype: DType;
}

/** The log-sum-exp in a binding: where that of head 0, row 0 lies, modulo 2^32, and elements between heads. */
export interface LseWindow {
  readonly range: BufferRange;
  readonly base: number;
  readonly headStride: number;
}

/** Where splits put their results: o `[splits, heads, rows, D]` and the log-sum-exp `[splits, heads, rows]`. */
export interface SplitResults {
  readonly count: number;
  /** Heads from one split's results to the next one's. */
  readonly heads: number;
  readonly o: TensorWindow;
  readonly lse: LseWindow;
  readonly release: () => void;
}

const headsOf = ({ headStart, headEnd }: SplitRows): number => headEnd - headStart;
const rowsOf = ({ rowStart, rowEnd }: SplitRows): number => rowEnd - rowStart;
const outputBytes = (rows: SplitRows): number => headsOf(rows) * rowsOf(rows) * rows.headDim * BYTES[rows.dtype];

/**
 * Among how many workgroups to deal out the keys of rows.
 *
 * @param wanted what would fill the device
 * @param keys that a row visits at most
 * @param room bytes of workspace that the results may take
 */
export function chooseSplits(rows: SplitRows, wanted: number, keys: number, room: number): number {
  const each = outputBytes(rows) + headsOf(rows) * rowsOf(rows) * 4;
  return Math.max(1, Math.floor(Math.min(wanted, keys / SPLIT_KEYS, room / each)));
}

/** Workspace for the results of splits. */
export function splitResults(rec: Recorder, rows: SplitRows, count: number): SplitResults {
  const { headStart, rowStart, headDim } = rows;
  const [heads, n] = [headsOf(rows), rowsOf(rows)];
  const range = (label: string, size: number): BufferRange => ({ buffer: rec.workspace(label, size), offset: 0, size });
  const o = range('o of splits', count * outputBytes(rows));
  const lse = range('lse of splits', count * heads * n * 4);
  const first = headStart * n + rowStart;
  return {
    count,
    heads,
    o: { range: o, base: (-first * headDim) / 4, headStride: (n * headDim) / 4, rowStride: headDim / 4 },
    lse: { range: lse, base: -first, headStride: n },
    release: () => rec.release(o.buffer, lse.buffer),
  };
}

/** Where the results of splits end up. */
export interface MergeTarget {
  readonly o: TensorWindow;
  readonly lse: LseWindow;
  readonly writesLse: boolean;
  /** The entries of the heads that were split, and how many. */
  readonly heads: Bindable;
  readonly headCount: number;
  readonly storage: StorageFormat;
}

/** Records the joining of splits, see shaders/merge_splits.wgsl. */
export function recordMerge(rec: Recorder, rows: SplitRows, results: SplitResults, target: MergeTarget): void {
  const { o, lse } = target;
  const n = rowsOf(rows);
  const items = (n * rows.headDim) / 4;
  const params = rec.constant([
    rows.rowStart,
    n,
    results.count,
    results.heads,
    target.writesLse ? 1 : 0,
    results.o.base,
    results.lse.base,
    o.base,
    o.headStride,
    o.rowStride,
    lse.base,
    lse.headStride,
  ]);
  rec.dispatch({
    stage: 'kernel',
    shader: mergeSplitsShader(rows.headDim, target.storage),
    bindings: [params, target.heads, results.o.range, results.lse.range, o.range, lse.range],
    workgroups: [Math.ceil(items / MERGE_ITEMS), target.headCount],
  });
}
