import { type DeviceProfile, workgroupsToFill } from '../device/profile.js';
import type { Bindable, Recorder } from '../device/recorder.js';
import { blockSparseWorkspaceBytes, recordBlockSparseIndex } from '../index/block_sparse.js';
import { flexPrefillWorkspaceBytes, recordFlexPrefillIndex } from '../index/flex_prefill.js';
import type { BuiltIndex, IndexLayer } from '../index/layer.js';
import { recordSlashTiles, slashTilesBytes, slashTilesShader } from '../index/slash_tiles.js';
import { recordVerticalSlashIndex, verticalSlashWorkspaceBytes } from '../index/vertical_slash.js';
import { recordXAttentionIndex, xAttentionWorkspaceBytes } from '../index/x_attention.js';
import { type AttentionKernel, attentionGrid, attentionParams, headsFirst, INDEX_BLOCK } from '../kernels/attention.js';
import { type ChosenKernel, chooseBandKernel, chooseKernel } from '../kernels/choose.js';
import { mergeSplitsShader } from '../kernels/merge_splits.js';
import { storageFormat } from '../kernels/shader_text.js';
import { BYTES, bindWindow, type Tensor, windowBytes } from '../kernels/tensor.js';
import { packStaticIndex } from '../patterns/static.js';
import { chooseSplits, type LseWindow, recordMerge, splitResults } from './splits.js';
import type {
  BlockSparsePattern,
  FlexPrefillPattern,
  HeadPattern,
  StaticPattern,
  VerticalSlashPattern,
  XAttentionPattern,
} from './types.js';
import type { ResolvedLayer } from './validate.js';

/** What the plan needs beside the layer. */
export interface PlanOptions {
  readonly profile: DeviceProfile;
  readonly workspaceLimit: number;
  /** Aimed-at floating-point operations of one dispatch. */
  readonly dispatchFlops: number;
}

/** One query head and what it attends to. */
interface Head {
  readonly head: number;
  readonly kvHead: number;
  readonly pattern: HeadPattern;
}

/** Where a head's index lies, for reading it back. */
export interface PlannedHead extends Head {
  readonly index?: { readonly buffer: GPUBuffer; readonly offset: number; readonly args: readonly number[] };
}

/** What {@link planLayer} recorded. */
export interface LayerPlan {
  readonly heads: readonly PlannedHead[];
  readonly indexBytes: number;
}

/** Heads of a dispatch, with the per-head words that the kernel reads. */
interface IndexedGroup {
  readonly kernel: AttentionKernel;
  readonly heads: readonly Head[];
  readonly indexBuffer: Bindable | undefined;
  readonly entries: readonly { readonly indexOffset: number; readonly args: readonly number[] }[];
}

/**
 * Records everything that a layer needs: for each group of heads with one pattern, its index and then its
 * attention kernel, cut into dispatches of about `dispatchFlops`. With `keepIndices` the index buffers
 * stay acquired, so that they can be read back; otherwise later groups reuse them, and heads whose pattern
 * would keep everything are dense, without an index.
 */
export function planLayer(rec: Recorder, asked: ResolvedLayer, options: PlanOptions, keepIndices = false): LayerPlan {
  const layer = keepIndices ? asked : { ...asked, patterns: asked.patterns.map((p) => (keepsEverything(p, asked) ? DENSE : p)) };
  const planned: PlannedHead[] = [];
  let indexBytes = 0;
  for (const heads of groupHeads(rec.device, layer, options)) {
    const { group, other, built } = indexGroup(rec, layer, options, heads);
    recordAttention(rec, layer, options, group);
    if (other) recordAttention(rec, layer, options, other);
    indexBytes += built?.bytes ?? 0;
    planned.push(...plannedHeads(group, built));
    if (built && !keepIndices) rec.release(built.buffer);
  }
  planned.sort((a, b) => a.head - b.head);
  return { heads: planned, indexBytes };
}

const DENSE = { kind: 'dense' } as const;

/** Whether a pattern keeps every key that a row of the layer sees, whatever its index would be. */
function keepsEverything(pattern: HeadPattern, { seqLen, kvLen, queryOffset }: ResolvedLayer): boolean {
  const visible = queryOffset + seqLen;
  switch (pattern.kind) {
    case 'a_shape':
      return pattern.initSize + pattern.localSize >= visible;
    case 'tri_shape':
      return pattern.initSize + pattern.localSize >= visible || pattern.lastSize >= seqLen;
    case 'vertical_slash':
      return pattern.verticalSize >= kvLen || pattern.slashSize >= kvLen;
    case 'block_sparse':
      return pattern.topK * INDEX_BLOCK >= visible;
    default:
      return false;
  }
}

/** Records the index builders of a layer only, and keeps the index buffers acquired. */
export function planIndices(rec: Recorder, layer: ResolvedLayer, options: PlanOptions): PlannedHead[] {
  const planned = groupHeads(rec.device, layer, options).flatMap((heads) => {
    const { group, built } = indexGroup(rec, layer, options, heads);
    return plannedHeads(group, built);
  });
  return planned.sort((a, b) => a.head - b.head);
}

function plannedHeads(group: IndexedGroup, built: BuiltIndex | undefined): PlannedHead[] {
  return group.heads.map((head, i) => {
    const entry = group.entries[i];
    return built && entry ? { ...head, index: { buffer: built.buffer, offset: entry.indexOffset, args: entry.args } } : head;
  });
}

/** Groups of heads that share a pattern kind, whose tensors fit one binding and whose index fits the workspace limit. */
function groupHeads(device: GPUDevice, layer: ResolvedLayer, options: PlanOptions): Head[][] {
  const byKind = new Map<string, Head[]>();
  layer.patterns.forEach((pattern, head) => {
    const kvHead = Math.floor((head * layer.numKvHeads) / layer.numHeads);
    const list = byKind.get(pattern.kind) ?? [];
    list.push({ head, kvHead, pattern });
    byKind.set(pattern.kind, list);
  });
  const bindingLimit = device.limits.maxStorageBufferBindingSize;
  const fits = (group: readonly Head[]): boolean => {
    const span = (of: (h: Head) => number): number => of(group[group.length - 1] as Head) - of(group[0] as Head) + 1;
    const heads = span((h) => h.head);
    const kvHeads = span((h) => h.kvHead);
    const windows: [Tensor, number][] = [
      [layer.q, heads],
      [layer.o, heads],
      [layer.k, kvHeads],
      [layer.v, kvHeads],
    ];
    if (windows.some(([t, n]) => windowBytes(t, n, t.rows) > bindingLimit)) return false;
    return workspaceBytes(layer, options, group) <= Math.min(options.workspaceLimit, bindingLimit);
  };
  const groups: Head[][] = [];
  for (const list of byKind.values()) {
    let group: Head[] = [];
    for (const head of list) {
      if (group.length > 0 && !fits([...group, head])) {
        groups.push(group);
        group = [];
      }
      group.push(head);
    }
    groups.push(group);
  }
  return groups;
}

function indexLayer(layer: ResolvedLayer, options: PlanOptions): IndexLayer {
  return {
    profile: options.profile,
    storage: storageFormat(options.profile, layer.q.dtype),
    q: layer.q,
    k: layer.k,
    queryOffset: layer.queryOffset,
    scale: layer.scale,
    workspaceLimit: options.workspaceLimit,
  };
}

const verticalSlashHead = (h: Head) => {
  const { verticalSize, slashSize } = h.pattern as VerticalSlashPattern;
  return { head: h.head, kvHead: h.kvHead, verticalSize, slashSize };
};
const blockSparseHead = (h: Head) => ({ head: h.head, kvHead: h.kvHead, topK: (h.pattern as BlockSparsePattern).topK });

const xAttentionHead = (h: Head) => {
  const { stride, threshold } = h.pattern as XAttentionPattern;
  return { head: h.head, kvHead: h.kvHead, stride, threshold };
};

const flexPrefillHead = (h: Head) => {
  const { gamma = 0.9, tau = 0.1, minBudget = 1024 } = h.pattern as FlexPrefillPattern;
  return { head: h.head, kvHead: h.kvHead, gamma, tau, minBudget };
};

function workspaceBytes(layer: ResolvedLayer, options: PlanOptions, group: readonly Head[]): number {
  const kind = group[0]?.pattern.kind;
  const indexed = indexLayer(layer, options);
  if (kind === 'vertical_slash') {
    const bytes = verticalSlashWorkspaceBytes(indexed, group.map(verticalSlashHead));
    return Math.max(bytes.transient, passBytes(layer, options, group)) + bytes.index;
  }
  if (kind === 'block_sparse') return blockSparseWorkspaceBytes(indexed, group.map(blockSparseHead)).index;
  if (kind === 'x_attention') return xAttentionWorkspaceBytes(indexed, group.map(xAttentionHead)).index;
  if (kind === 'flex_prefill') {
    const bytes = flexPrefillWorkspaceBytes(indexed, group.map(flexPrefillHead));
    return Math.max(bytes.transient, passBytes(layer, options, group)) + bytes.index;
  }
  return kind === 'static_vertical_slash' ? passBytes(layer, options, group) : 0;
}

/**
 * What the passes of a vertical-slash group need in the matrix tier: the log-sum-exp of the bands, where the caller has no room for it,
 * and tiles of slashes, of 16 keys at least.
 */
function passBytes(layer: ResolvedLayer, { profile }: PlanOptions, group: readonly Head[]): number {
  if (!profile.matrix) return 0;
  const heads = (group[group.length - 1] as Head).head - (group[0] as Head).head + 1;
  const lse = !layer.lse && mayHaveBands(layer, group) ? heads * layer.seqLen * 4 : 0;
  const columns = group.map(({ pattern }) => {
    if (pattern.kind === 'vertical_slash') return pattern.verticalSize;
    return pattern.kind === 'static_vertical_slash' ? pattern.columns.length : layer.kvLen;
  });
  return lse + slashTilesBytes(columns, { rows: layer.seqLen, queryOffset: layer.queryOffset, tile: 16 });
}

/**
 * Records a group's index. FlexPrefill's heads choose their pattern on the GPU: they are in two groups, `group` and `other`, and
 * in one of them each has an empty index, for which the kernel does nothing.
 */
function indexGroup(
  rec: Recorder,
  layer: ResolvedLayer,
  options: PlanOptions,
  heads: readonly Head[],
): { group: IndexedGroup; other?: IndexedGroup; built?: BuiltIndex } {
  const { kind } = (heads[0] as Head).pattern;
  const kernel = kernelOf(kind);
  if (kind === 'static_vertical_slash') {
    const { words, entries } = packStaticIndex(heads.map((h) => h.pattern as StaticPattern));
    return { group: { kernel, heads, indexBuffer: rec.constant(words), entries } };
  }
  const indexed = indexLayer(layer, options);
  if (kind === 'flex_prefill') {
    const built = recordFlexPrefillIndex(rec, indexed, heads.map(flexPrefillHead));
    const group = { heads, indexBuffer: built.buffer };
    return {
      group: { ...group, kernel, entries: built.entries },
      other: { ...group, kernel: 'block_sparse', entries: built.blockEntries },
      built,
    };
  }
  if (kernel === 'vertical_slash' || kernel === 'block_sparse') {
    const built =
      kind === 'vertical_slash'
        ? recordVerticalSlashIndex(rec, indexed, heads.map(verticalSlashHead))
        : kind === 'x_attention'
          ? recordXAttentionIndex(rec, indexed, heads.map(xAttentionHead))
          : recordBlockSparseIndex(rec, indexed, heads.map(blockSparseHead));
    return { group: { kernel, heads, indexBuffer: built.buffer, entries: built.entries }, built };
  }
  const entries = heads.map(({ pattern }) => ({ indexOffset: 0, args: windowArgs(pattern) }));
  return { group: { kernel, heads, indexBuffer: undefined, entries } };
}

/** The attention kernel that computes a kind of pattern. */
function kernelOf(kind: HeadPattern['kind']): AttentionKernel {
  if (kind === 'tri_shape') return 'a_shape';
  if (kind === 'x_attention') return 'block_sparse';
  return kind === 'static_vertical_slash' || kind === 'flex_prefill' ? 'vertical_slash' : kind;
}

/** Head entry words of the patterns that need no index. */
function windowArgs(pattern: HeadPattern): number[] {
  if (pattern.kind === 'a_shape') return [pattern.initSize, pattern.localSize];
  return pattern.kind === 'tri_shape' ? [pattern.initSize, pattern.localSize, pattern.lastSize] : [];
}

/**
 * Diagonals from which on a band has a pass of its own: a block of rows sees 64 keys more than that, and two blocks of rows that
 * share them 128 more.
 */
const BAND_DIAGONALS = 512;

/** One pass over a group's rows: a kernel, and what the passes differ in. */
interface AttentionPass extends ChosenKernel {
  readonly heads: Bindable;
  readonly index: Bindable;
  /** Entries in `heads`. */
  readonly headCount: number;
  readonly writesLse: boolean;
  /** The kernel for rows whose keys are split, if they may be. */
  readonly split?: ChosenKernel;
  /** Query heads whose rows take turns in a workgroup. */
  readonly sharing: number;
  /** Keys that a tile of rows up to `row` visits of a head's pattern, of `visible`. */
  readonly keys: (pattern: HeadPattern, visible: number, row: number) => number;
}

/**
 * Query heads whose rows take turns in a workgroup: all that share keys, where that makes fewer workgroups of a chunk that none of them
 * fills. Only dense heads see the same keys.
 */
function rowSharing(layer: ResolvedLayer, { kernel, heads }: IndexedGroup, blockM: number): number {
  const size = layer.numHeads / layer.numKvHeads;
  const [first, last] = [heads[0] as Head, heads[heads.length - 1] as Head];
  const whole = first.head % size === 0 && heads.length === (last.kvHead - first.kvHead + 1) * size;
  const fewer = layer.seqLen <= blockM && Math.ceil((layer.seqLen * size) / blockM) < size;
  return kernel === 'dense' && whole && fewer ? size : 1;
}

/** The first of every `n` groups of `width` words. */
function everyNth(words: Uint32Array, width: number, n: number): Uint32Array {
  return words.filter((_, i) => Math.floor(i / width) % n === 0);
}

/** Bytes of workspace that the results of splits may take. */
function splitRoom(rec: Recorder, layer: ResolvedLayer, options: PlanOptions, heads: readonly Head[]): number {
  const free = options.workspaceLimit - workspaceBytes(layer, options, heads) - UNUSED_LSE_BYTES;
  return Math.min(Math.max(0, free), rec.device.limits.maxStorageBufferBindingSize);
}

/** Whether heads with an index of columns and diagonals may have bands that are worth a pass of their own. */
function mayHaveBands(layer: ResolvedLayer, group: readonly Head[]): boolean {
  return layer.kvLen >= 2 * BAND_DIAGONALS && group.some(({ pattern }) => bandKeys(pattern, layer.kvLen) >= BAND_DIAGONALS);
}

/** Records a group's attention kernels in slices of rows, last rows first: for vertical-slash the bands, then the rest. */
function recordAttention(rec: Recorder, layer: ResolvedLayer, options: PlanOptions, group: IndexedGroup): void {
  const { profile } = options;
  const first = group.heads[0] as Head;
  const last = group.heads[group.heads.length - 1] as Head;
  const q = bindWindow(rec.device, 'q', layer.q, first.head, last.head + 1);
  const k = bindWindow(rec.device, 'k', layer.k, first.kvHead, last.kvHead + 1);
  const v = bindWindow(rec.device, 'v', layer.v, first.kvHead, last.kvHead + 1);
  const o = bindWindow(rec.device, 'o', layer.o, first.head, last.head + 1);
  const windows = [q, k, v, o] as const;
  const kernel = chooseKernel(profile, group.kernel, layer.headDim, layer.q.dtype, windows);
  const sharing = rowSharing(layer, group, kernel.blockM);
  const split = chooseKernel(profile, group.kernel, layer.headDim, layer.q.dtype, windows, { group: sharing });
  // One of FlexPrefill's two kernels does nothing for a head, so that there would be nothing to join.
  const maySplit = split.splits && group.heads.every(({ pattern }) => pattern.kind !== 'flex_prefill');
  const band =
    group.kernel === 'vertical_slash' && mayHaveBands(layer, group.heads)
      ? chooseBandKernel(profile, layer.headDim, layer.q.dtype, windows)
      : undefined;
  const entries = new Uint32Array(group.heads.length * 8);
  group.heads.forEach((h, i) => {
    const { indexOffset = 0, args = [] } = group.entries[i] ?? {};
    // FlexPrefill's entries say more than a vertical-slash kernel reads.
    const own = group.kernel === 'vertical_slash' ? [...args.slice(0, 2), band ? BAND_DIAGONALS : 0] : args;
    entries.set([h.head, h.kvHead, indexOffset, ...own], i * 8);
  });
  const heads = rec.constant(entries);
  const indexed = { heads, index: group.indexBuffer ?? heads };
  const tiles =
    kernel.slashTile === undefined
      ? undefined
      : recordSlashTiles(rec, indexed.index, entries, {
          rows: layer.seqLen,
          queryOffset: layer.queryOffset,
          tile: kernel.slashTile,
        });
  const lse = bindLse(rec, layer, first.head, last.head + 1, band !== undefined);

  const passes: AttentionPass[] = [
    ...(band ? [{ ...band, ...indexed, headCount: group.heads.length, sharing: 1, writesLse: true, keys: bandKeys }] : []),
    {
      ...(sharing > 1 ? split : kernel),
      ...(tiles ? { heads: tiles.heads, index: tiles.buffer } : indexed),
      ...(sharing > 1 ? { heads: rec.constant(everyNth(entries, 8, sharing)) } : {}),
      headCount: group.heads.length / sharing,
      sharing,
      writesLse: layer.lse !== undefined,
      ...(maySplit ? { split } : {}),
      keys: (p, visible, row) => Math.max(64, estimateKeys(p, visible, layer, row) - (band ? bandKeys(p, visible) : 0)),
    },
  ];
  const keyBytes = 2 * (last.kvHead + 1 - first.kvHead) * layer.kvLen * layer.headDim * BYTES[layer.k.dtype];
  const least = profile.matrix ? Math.ceil(workgroupsToFill(profile) / group.heads.length) : 1;
  for (const pass of passes) {
    const { blockM, writesLse, keys, headCount, index } = pass;
    for (const rowSlice of sliceRows(layer, blockM, group, options.dispatchFlops, least, keys)) {
      // Rows that take turns are few: one slice, with the rows of all heads that share keys.
      const slice = pass.sharing > 1 ? { ...rowSlice, tileEnd: Math.ceil((layer.seqLen * pass.sharing) / blockM) } : rowSlice;
      const count = slice.tileEnd - slice.tileStart;
      const rows = {
        headStart: first.head,
        headEnd: last.head + 1,
        rowStart: slice.tileStart * blockM,
        rowEnd: Math.min(slice.tileEnd * blockM, layer.seqLen),
        headDim: layer.headDim,
        dtype: layer.o.dtype,
      };
      const wanted = pass.fills / (count * headCount);
      const splits =
        pass.split && wanted >= 2 ? chooseSplits(rows, wanted, slice.keys, splitRoom(rec, layer, options, group.heads)) : 1;
      const results = splits > 1 ? splitResults(rec, rows, splits) : undefined;
      const { shader } = (results && pass.split) || pass;
      const byHeads = headsFirst(count * headCount, pass.fills, keyBytes);
      const to = results ?? { o, lse };
      const params = attentionParams({
        queries: layer.seqLen,
        keys: layer.kvLen,
        queryOffset: layer.queryOffset,
        scale: layer.scale,
        rowTileEnd: slice.tileEnd,
        headsFirst: byHeads,
        writesLse: writesLse || results !== undefined,
        windows: [q, k, v, to.o],
        lse: to.lse,
        ...(results ? { split: results } : {}),
      });
      rec.dispatch({
        stage: 'kernel',
        shader,
        bindings: [rec.constant(params), q.range, k.range, v.range, to.o.range, to.lse.range, pass.heads, index],
        workgroups: attentionGrid(count, headCount, byHeads, splits),
        flops: slice.flops,
      });
      if (!results) continue;
      const storage = storageFormat(profile, layer.o.dtype);
      recordMerge(rec, rows, results, { o, lse, writesLse, heads, headCount: group.heads.length, storage });
      results.release();
    }
  }
  if (tiles) rec.release(tiles.buffer);
  if (lse.workspace) rec.release(lse.workspace);
}

/** A binding that nothing reads or writes still needs a buffer. */
const UNUSED_LSE_BYTES = 16;

/** The caller's log-sum-exp; without one, workspace, whose content matters if the kernels need it among themselves. */
function bindLse(
  rec: Recorder,
  layer: ResolvedLayer,
  headStart: number,
  headEnd: number,
  needed: boolean,
): LseWindow & { readonly workspace?: GPUBuffer } {
  const headStride = layer.seqLen;
  if (!layer.lse) {
    const size = needed ? (headEnd - headStart) * layer.seqLen * 4 : UNUSED_LSE_BYTES;
    const buffer = rec.workspace(needed ? 'lse of the bands' : 'unused lse', size);
    return {
      range: { buffer, offset: 0, size },
      base: needed ? -headStart * headStride : 0,
      headStride,
      workspace: buffer,
    };
  }
  const { buffer, offset } = layer.lse;
  const first = offset + headStart * layer.seqLen * 4;
  const aligned = Math.floor(first / 256) * 256;
  return {
    range: { buffer, offset: aligned, size: offset + headEnd * layer.seqLen * 4 - aligned },
    base: (offset - aligned) / 4,
    headStride,
  };
}

interface RowSlice {
  readonly tileStart: number;
  readonly tileEnd: number;
  readonly flops: number;
  /** Keys that its last tile visits of the head that visits most. */
  readonly keys: number;
}

/**
 * Cuts the tiles of rows into slices of about `budget` floating-point operations, but at least `least` tiles, last rows first. Rows
 * that see far more keys than those before them (tri-shape) are a slice of their own.
 */
function sliceRows(
  layer: ResolvedLayer,
  blockM: number,
  group: IndexedGroup,
  budget: number,
  least: number,
  keysOf: AttentionPass['keys'],
): RowSlice[] {
  const slices: RowSlice[] = [];
  const tiles = Math.ceil(layer.seqLen / blockM);
  let slice = { tileStart: tiles, tileEnd: tiles, flops: 0, keys: 0 };
  let next = 0;
  for (let tile = tiles - 1; tile >= 0; tile--) {
    const rows = Math.min(blockM, layer.seqLen - tile * blockM);
    const visible = layer.queryOffset + tile * blockM + rows;
    const keys = group.heads.map(({ pattern }) => keysOf(pattern, visible, tile * blockM + rows - 1));
    const cost = 4 * layer.headDim * rows * keys.reduce((sum, n) => sum + n, 0);
    const most = Math.max(...keys);
    const count = slice.tileEnd - slice.tileStart;
    if (count > 0 && ((slice.flops + cost > budget && count >= least) || count >= 65535 || most * 4 < next)) {
      slices.push(slice);
      slice = { tileStart: slice.tileStart, tileEnd: slice.tileStart, flops: 0, keys: 0 };
    }
    slice = { ...slice, tileStart: tile, flops: slice.flops + cost, keys: Math.max(slice.keys, most) };
    next = most;
  }
  return [...slices, slice];
}

/** Keys that a tile of rows up to `row` visits, of `visible`; a guess for vertical-slash, whose index is only known on the GPU. */
function estimateKeys(pattern: HeadPattern, visible: number, layer: ResolvedLayer, row: number): number {
  switch (pattern.kind) {
    case 'dense':
      return visible;
    case 'a_shape':
      return Math.min(visible, pattern.initSize + pattern.localSize + 64);
    case 'tri_shape':
      return row >= layer.seqLen - pattern.lastSize ? visible : Math.min(visible, pattern.initSize + pattern.localSize + 64);
    case 'static_vertical_slash': {
      let keys = pattern.columns.length;
      for (let i = 0; i < pattern.runs.length; i += 2) keys += (pattern.runs[i + 1] ?? 0) - (pattern.runs[i] ?? 0) + INDEX_BLOCK;
      return Math.min(visible, keys);
    }
    case 'vertical_slash':
      return Math.min(visible, pattern.verticalSize + 2 * pattern.slashSize + 64);
    case 'x_attention':
      return visible;
    case 'flex_prefill':
      return visible / 2; // Once for each of its two kernels, of which one does nothing.
    case 'block_sparse':
      return Math.min(visible, pattern.topK * 64);
  }
}

/** Keys that a tile of rows visits of a head's band, of `visible`: at most, where the index is only known on the GPU. */
function bandKeys(pattern: HeadPattern, visible: number): number {
  switch (pattern.kind) {
    case 'static_vertical_slash':
      return Math.min(visible, (pattern.runs[1] ?? 0) + 1);
    case 'vertical_slash':
      return Math.min(visible, pattern.slashSize);
    default:
      return visible / 4;
  }
}

/** All attention shaders that these kinds of patterns may need, for preparing pipelines ahead of time. */
export function attentionShaders(
  profile: DeviceProfile,
  headDim: number,
  dtype: Tensor['dtype'],
  kinds: readonly HeadPattern['kind'][],
  groupSize = 1,
) {
  // As for tensors without padding.
  const kernels = kinds.flatMap((kind): AttentionKernel[] => {
    if (kind === 'flex_prefill') return ['vertical_slash', 'block_sparse'];
    // Others are dense where they keep everything of a short prompt.
    return kind === 'x_attention' || kind === 'static_vertical_slash' ? [kernelOf(kind)] : ['dense', kernelOf(kind)];
  });
  const band = kernels.includes('vertical_slash') ? chooseBandKernel(profile, headDim, dtype, []) : undefined;
  const chosen = [...new Set(kernels)].flatMap((kernel) =>
    [undefined, { group: 1 }, { group: groupSize }].map((few) => chooseKernel(profile, kernel, headDim, dtype, [], few)),
  );
  const merge = mergeSplitsShader(headDim, storageFormat(profile, dtype));
  const shaders = [...chosen, ...(band ? [band] : [])].flatMap(({ shader, slashTile }) =>
    slashTile === undefined ? [shader] : [slashTilesShader(slashTile), shader],
  );
  return [...shaders, merge];
}
