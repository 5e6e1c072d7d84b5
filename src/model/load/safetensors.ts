import { damaged, isRecord, type ModelSource, missingFile, readBytes, readJson, statOf } from './source.js';
import type { StoredTensor } from './weights.js';

/** Longest header that the format allows. */
const MAX_HEADER = 100_000_000;

/** Bytes per element of the types that are used for weights. */
const DTYPE_BYTES: Readonly<Record<string, number>> = { F32: 4, F16: 2, BF16: 2 };

/** The tensors of `model.safetensors`, or of all files that `model.safetensors.index.json` names. */
export async function readSafetensorsModel(source: ModelSource, signal?: AbortSignal): Promise<Map<string, StoredTensor>> {
  const indexName = 'model.safetensors.index.json';
  const index = await readJson(source, indexName, signal);
  if (index === undefined) return readSafetensors(source, 'model.safetensors', signal);
  const places = isRecord(index) ? index['weight_map'] : undefined;
  if (!isRecord(places) || !Object.values(places).every((file) => typeof file === 'string')) {
    throw damaged(source, indexName, 'its weight_map is not an object of file names');
  }
  const tensors = new Map<string, StoredTensor>();
  for (const file of new Set(Object.values(places) as string[])) {
    for (const [name, tensor] of await readSafetensors(source, file, signal)) {
      if (places[name] === file) tensors.set(name, tensor);
    }
  }
  const missing = Object.keys(places).find((name) => !tensors.has(name));
  if (missing !== undefined)
    throw damaged(source, places[missing] as string, `it lacks the tensor "${missing}" that ${indexName} names`);
  return tensors;
}

/** The tensors of one file, each checked against the size of the file. */
export async function readSafetensors(
  source: ModelSource,
  name: string,
  signal?: AbortSignal,
): Promise<Map<string, StoredTensor>> {
  const info = await statOf(source, name, signal);
  if (!info) throw missingFile(source, name);
  if (info.size < 8) throw damaged(source, name, `it has ${info.size} bytes, too few for a safetensors file`);
  const length = new DataView((await readBytes(source, name, 0, 8, signal)).buffer).getBigUint64(0, true);
  if (length > BigInt(MAX_HEADER) || length > BigInt(info.size - 8)) {
    throw damaged(
      source,
      name,
      `its header claims ${length} bytes, but the file has ${info.size}; it is not a safetensors file, or is cut off`,
    );
  }
  const dataStart = 8 + Number(length);
  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(await readBytes(source, name, 8, dataStart, signal)));
  } catch (cause) {
    throw cause instanceof SyntaxError || cause instanceof TypeError
      ? damaged(source, name, 'its header is not JSON', cause)
      : cause;
  }
  if (!isRecord(header)) throw damaged(source, name, 'its header is not a JSON object');
  const tensors = new Map<string, StoredTensor>();
  for (const [tensor, entry] of Object.entries(header)) {
    if (tensor === '__metadata__') continue;
    const { dtype, shape, data_offsets: offsets } = isRecord(entry) ? entry : {};
    if (typeof dtype !== 'string' || !isCounts(shape) || !isCounts(offsets) || offsets.length !== 2) {
      throw damaged(source, name, `tensor "${tensor}" is not described by a dtype, a shape and data_offsets`);
    }
    const [from = 0, to = 0] = offsets;
    const size = shape.reduce((a, b) => a * b, DTYPE_BYTES[dtype] ?? 0);
    if (to < from || (size > 0 && to - from !== size)) {
      throw damaged(source, name, `tensor "${tensor}" has ${to - from} bytes, but [${shape.join(', ')}] ${dtype} takes ${size}`);
    }
    if (dataStart + to > info.size) {
      throw damaged(
        source,
        name,
        `tensor "${tensor}" ends at byte ${dataStart + to}, but the file has ${info.size}; it is cut off`,
      );
    }
    tensors.set(tensor, { source, file: name, name: tensor, shape, dtype, begin: dataStart + from, end: dataStart + to });
  }
  return tensors;
}

function isCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((x) => Number.isSafeInteger(x) && x >= 0);
}
