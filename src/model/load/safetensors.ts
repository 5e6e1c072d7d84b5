import { damaged, isRecord, type ModelSource, missingFile, readBytes, readJson, statOf } from './source.js';
import type { StoredTensor } from './weights.js';

/** Longest header that the format allows. */
const MAX_HEADER = 100_000_000;

/** Bytes per element of the types of the format that are whole bytes wide. */
const DTYPE_BYTES: Readonly<Record<string, number>> = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E5M2: 1,
  F8_E4M3: 1,
  F8_E8M0: 1,
  I16: 2,
  U16: 2,
  F16: 2,
  BF16: 2,
  I32: 4,
  U32: 4,
  F32: 4,
  I64: 8,
  U64: 8,
  F64: 8,
};

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

/** The tensors of one file, its whole header checked against the format and the size of the file. */
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
    if (tensor === '__metadata__') {
      if (isRecord(entry) && Object.values(entry).every((x) => typeof x === 'string')) continue;
      throw damaged(source, name, '__metadata__ is not an object of strings');
    }
    const { dtype, shape, data_offsets: offsets } = isRecord(entry) ? entry : {};
    if (typeof dtype !== 'string' || !isCounts(shape) || !isCounts(offsets) || offsets.length !== 2) {
      throw damaged(source, name, `tensor "${tensor}" is not described by a dtype, a shape and data_offsets`);
    }
    const bytes = Object.hasOwn(DTYPE_BYTES, dtype) ? DTYPE_BYTES[dtype] : undefined;
    if (bytes === undefined) throw damaged(source, name, `tensor "${tensor}" has the unknown dtype "${dtype}"`);
    const [from = 0, to = 0] = offsets;
    const size = shape.reduce((a, b) => a * b, bytes);
    if (to - from !== size) {
      throw damaged(source, name, `tensor "${tensor}" has ${to - from} bytes, but [${shape.join(', ')}] ${dtype} takes ${size}`);
    }
    tensors.set(tensor, { source, file: name, name: tensor, shape, dtype, begin: dataStart + from, end: dataStart + to });
  }
  // The format wants the data covered without holes and without overlap.
  let end = dataStart;
  for (const tensor of [...tensors.values()].sort((a, b) => a.begin - b.begin || a.end - b.end)) {
    if (tensor.begin !== end) {
      throw damaged(source, name, `the data of "${tensor.name}" starts at byte ${tensor.begin}, expected ${end}`);
    }
    end = tensor.end;
  }
  if (end !== info.size) {
    const why = end > info.size ? '; it is cut off' : '';
    throw damaged(source, name, `its tensors end at byte ${end}, but the file has ${info.size}${why}`);
  }
  return tensors;
}

function isCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((x) => Number.isSafeInteger(x) && x >= 0);
}
