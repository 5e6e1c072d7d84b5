import type { Bindable, Recorder } from '../../src/device/recorder.js';
import { attentionParams } from '../../src/kernels/attention.js';
import type { StorageFormat } from '../../src/kernels/shader_text.js';
import { bindWindow, type DType, type Tensor } from '../../src/kernels/tensor.js';
import { type AttentionInput, queryOffsetOf, scaleOf } from '../../src/reference/oracle.js';
import { recordMerge, splitResults } from '../../src/scheduler/splits.js';
import { type Layout, makeTensor, PLAIN, readTensor } from './tensors.js';

/** What differs between the dispatches of a call. */
interface DispatchPart {
  readonly rowTileEnd: number;
  readonly headsFirst: boolean;
  readonly writesLse: boolean;
}

/** The tensors of an attention call on the GPU, as kernels bind them. */
export interface AttentionCall {
  /** Workgroups along z. */
  readonly splits: number;
  /** Bindings 0 to 5 of a dispatch. */
  readonly bindings: (part: DispatchPart) => Bindable[];
  /** Joins the results of splits, if there are several; `heads` are the entries of all heads. */
  readonly merge: (heads: Bindable, writesLse: boolean, storage: StorageFormat) => void;
  /** Reads o `[heads, rows, headDim]` and the log-sum-exp `[heads, rows]`, and frees all tensors. */
  readonly read: () => Promise<{ readonly o: Float32Array; readonly lse: Float32Array }>;
}

/** Uploads q, k and v; o and the log-sum-exp are poisoned. The keys of a row are dealt out among `splits` workgroups. */
export function attentionCall(
  rec: Recorder,
  input: AttentionInput,
  { dtype, layout = PLAIN, splits = 1 }: { readonly dtype: DType; readonly layout?: Layout; readonly splits?: number },
): AttentionCall {
  const { device } = rec;
  const { heads, kvHeads, queries, keys, headDim } = input;
  const queryOffset = queryOffsetOf(input);
  // Keys after the last row's position are visible to nobody: NaN shows whoever reads them.
  const hidden = (x: AttentionInput['k']): Float32Array => {
    const copy = new Float32Array(x);
    for (let head = 0; head < kvHeads; head++)
      copy.fill(Number.NaN, (head * keys + queryOffset + queries) * headDim, (head + 1) * keys * headDim);
    return copy;
  };
  const querySize = { heads, rows: queries, headDim };
  const keySize = { heads: kvHeads, rows: keys, headDim };
  const q = makeTensor(device, querySize, dtype, layout, input.q);
  const k = makeTensor(device, keySize, dtype, layout, hidden(input.k));
  const v = makeTensor(device, keySize, dtype, layout, hidden(input.v));
  const o = makeTensor(device, querySize, dtype, layout);
  const lse = makeTensor(device, { heads: 1, rows: 1, headDim: heads * queries }, 'f32', { ...PLAIN, offset: 8 });
  const window = (name: string, tensor: Tensor) => bindWindow(device, name, tensor, 0, tensor.heads);
  const bound = [window('q', q), window('k', k), window('v', v)] as const;
  const lseRange = { buffer: lse.buffer, offset: 0, size: lse.buffer.size };
  const target = { o: window('o', o), lse: { range: lseRange, base: lse.offset, headStride: queries } };
  const rows = { headStart: 0, headEnd: heads, rowStart: 0, rowEnd: queries, headDim, dtype };
  const results = splits > 1 ? splitResults(rec, rows, splits) : undefined;
  const to = results ?? target;
  return {
    splits,
    bindings: (part) => {
      const params = attentionParams({
        ...part,
        queries,
        keys,
        queryOffset,
        scale: scaleOf(input),
        writesLse: part.writesLse || results !== undefined,
        windows: [...bound, to.o],
        lse: to.lse,
        ...(results ? { split: results } : {}),
      });
      return [rec.constant(params), ...bound.map((w) => w.range), to.o.range, to.lse.range];
    },
    merge: (entries, writesLse, storage) => {
      if (results) recordMerge(rec, rows, results, { ...target, writesLse, heads: entries, headCount: heads, storage });
    },
    read: async () => {
      const result = { o: await readTensor(device, o, 'o'), lse: await readTensor(device, lse, 'lse') };
      for (const { buffer } of [q, k, v, o, lse]) buffer.destroy();
      return result;
    },
  };
}
