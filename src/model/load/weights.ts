import { getFloat16, setFloat16 } from '@petamoriken/float16';
import type { MinferenceError } from '../../errors.js';
import { BLOCK_LAYOUT, type ModelConfig, type WeightTensor, type WeightType, weightShapes } from '../types.js';
import { damaged, type ModelSource, readBytes, unsupported } from './source.js';

/** A tensor as a file has it. */
export interface StoredTensor {
  readonly source: ModelSource;
  readonly file: string;
  readonly name: string;
  /** Row-major, `[out, in]`. */
  readonly shape: readonly number[];
  /** As the format spells it, in capitals. */
  readonly dtype: string;
  readonly begin: number;
  readonly end: number;
}

/** Which part of which stored tensor a weight is. */
interface Place {
  readonly stored: string;
  /** Of a fused tensor: the first row, and how many rows the whole has. */
  readonly firstRow?: number;
  readonly allRows?: number;
}

/** Names of the tensors of a layer in Hugging Face files, by canonical name without its last word (`weight`, `bias`). */
const HF_LAYER: Readonly<Record<string, string>> = {
  attn_norm: 'input_layernorm',
  'attn.q': 'self_attn.q_proj',
  'attn.k': 'self_attn.k_proj',
  'attn.v': 'self_attn.v_proj',
  'attn.q_norm': 'self_attn.q_norm',
  'attn.k_norm': 'self_attn.k_norm',
  'attn.o': 'self_attn.o_proj',
  mlp_norm: 'post_attention_layernorm',
  'mlp.gate': 'mlp.gate_proj',
  'mlp.up': 'mlp.up_proj',
  'mlp.down': 'mlp.down_proj',
};

/** The same in GGUF files. */
const GGUF_LAYER: Readonly<Record<string, string>> = {
  attn_norm: 'attn_norm',
  'attn.q': 'attn_q',
  'attn.k': 'attn_k',
  'attn.v': 'attn_v',
  'attn.q_norm': 'attn_q_norm',
  'attn.k_norm': 'attn_k_norm',
  'attn.o': 'attn_output',
  mlp_norm: 'ffn_norm',
  'mlp.gate': 'ffn_gate',
  'mlp.up': 'ffn_up',
  'mlp.down': 'ffn_down',
};

/** Naming of a file format. */
interface Naming {
  readonly layer: Readonly<Record<string, string>>;
  readonly layerPrefix: string;
  readonly whole: Readonly<Record<string, string>>;
  /** Where phi3 has q, k, v in one tensor, and gate and up in another. */
  readonly qkv: string;
  readonly gateUp: string;
  /** Tensors that hold no weight. */
  readonly ignored: RegExp;
}

const NAMING: Readonly<Record<'hf' | 'gguf', Naming>> = {
  hf: {
    layer: HF_LAYER,
    layerPrefix: 'model.layers.',
    whole: { embed: 'model.embed_tokens', norm: 'model.norm', head: 'lm_head' },
    qkv: 'self_attn.qkv_proj',
    gateUp: 'mlp.gate_up_proj',
    ignored: /\.rotary_emb\.inv_freq$|^lm_head\.weight$/,
  },
  gguf: {
    layer: GGUF_LAYER,
    layerPrefix: 'blk.',
    whole: { embed: 'token_embd', norm: 'output_norm', head: 'output' },
    qkv: 'attn_qkv',
    gateUp: 'ffn_up',
    ignored: /^rope_(freqs|factors_long|factors_short)\.weight$|\.attn_rot_embd\.weight$/,
  },
};

/** Finds all weights of a model among the tensors of its files; refuses missing, misshapen, unreadable and surplus ones. */
export function findWeights(
  format: 'hf' | 'gguf',
  config: ModelConfig,
  stored: ReadonlyMap<string, StoredTensor>,
): Map<string, WeightTensor> {
  const used = new Set<string>();
  const weights = new Map<string, WeightTensor>();
  for (const [name, shape] of weightShapes(config)) {
    const place = placeOf(name, format, config);
    const tensor = stored.get(place.stored);
    if (!tensor) throw unsupported(`tensor ${place.stored}`, undefined, `a [${shape.join(', ')}] tensor (${name})`);
    const whole = [place.allRows ?? (shape[0] as number), ...shape.slice(1)];
    if (tensor.shape.join() !== whole.join()) {
      throw unsupported(`shape of tensor ${place.stored}`, tensor.shape, `[${whole.join(', ')}]`);
    }
    used.add(place.stored);
    // GGUF files of this architecture store q and k for the interleaved rotary layout.
    const interleaved = format === 'gguf' && config.architecture === 'llama' && /\.attn\.[qk]\.(weight|bias)$/.test(name);
    weights.set(name, makeWeight(name, shape, tensor, place.firstRow ?? 0, interleaved ? config.headDim : undefined));
  }
  for (const name of stored.keys()) {
    if (!used.has(name) && !NAMING[format].ignored.test(name)) {
      throw unsupported('tensor', name, `only those of a ${config.architecture} model`);
    }
  }
  return weights;
}

function placeOf(name: string, format: 'hf' | 'gguf', config: ModelConfig): Place {
  const naming = NAMING[format];
  const match = /^(?:layers\.(\d+)\.)?(.+)\.(weight|bias)$/.exec(name);
  const [, layer, part = '', kind = ''] = match ?? [];
  if (layer === undefined) return { stored: `${naming.whole[part]}.${kind}` };
  const prefix = `${naming.layerPrefix}${layer}.`;
  if (config.architecture === 'phi3') {
    const q = config.numHeads * config.headDim;
    const kv = config.numKvHeads * config.headDim;
    const inner = config.intermediateSize;
    const qkv = { stored: `${prefix}${naming.qkv}.${kind}`, allRows: q + 2 * kv };
    const gateUp = { stored: `${prefix}${naming.gateUp}.${kind}`, allRows: 2 * inner };
    if (part === 'attn.q') return { ...qkv, firstRow: 0 };
    if (part === 'attn.k') return { ...qkv, firstRow: q };
    if (part === 'attn.v') return { ...qkv, firstRow: q + kv };
    if (part === 'mlp.gate') return { ...gateUp, firstRow: 0 };
    if (part === 'mlp.up') return { ...gateUp, firstRow: inner };
  }
  return { stored: `${prefix}${naming.layer[part]}.${kind}` };
}

/** Bytes of a chunk, about. */
const CHUNK = 4 * 2 ** 20;

/**
 * The weight that begins at a row of a stored tensor.
 *
 * @param interleavedHead head size, when the rows of each head are in the order of the interleaved rotary layout
 */
function makeWeight(
  name: string,
  shape: readonly number[],
  stored: StoredTensor,
  firstRow: number,
  interleavedHead: number | undefined,
): WeightTensor {
  const [rows = 1, columns = 1] = shape;
  const { source, file, dtype } = stored;
  if (shape.length === 1) {
    const plain = dtype === 'F32' || dtype === 'F16' || dtype === 'BF16';
    if (!plain) throw unsupported(`type of tensor ${stored.name}`, dtype, 'F32, F16, BF16 (it is a vector)');
    const read = async function* (signal?: AbortSignal): AsyncGenerator<Uint8Array<ArrayBuffer>> {
      const bytes = await readBytes(source, file, stored.begin, stored.end, signal);
      const values = widen(bytes, dtype).subarray(firstRow, firstRow + rows);
      const ordered =
        interleavedHead === undefined ? values : values.map((_, i) => values[sourceRow(i, interleavedHead)] as number);
      yield new Uint8Array(ordered.buffer, ordered.byteOffset, ordered.byteLength);
    };
    return { name, shape, type: 'f32', byteLength: 4 * rows, read };
  }

  const type = (dtype === 'BF16' ? 'f16' : dtype.toLowerCase()) as WeightType;
  const block = Object.hasOwn(BLOCK_LAYOUT, type) ? BLOCK_LAYOUT[type] : undefined;
  if (!block)
    throw unsupported(`type of tensor ${stored.name}`, dtype, `BF16, ${Object.keys(BLOCK_LAYOUT).join(', ').toUpperCase()}`);
  if (columns % block.elements) {
    throw unsupported(`row length of tensor ${stored.name}`, columns, `a multiple of ${block.elements} (${dtype})`);
  }
  const rowBytes = (columns / block.elements) * block.bytes;
  const byteLength = rows * rowBytes;
  const begin = stored.begin + firstRow * rowBytes;
  // Chunks are whole heads where rows move within heads, else whole blocks; and a multiple of 4 bytes.
  const piece = interleavedHead === undefined ? block.bytes : interleavedHead * rowBytes;
  const unit = piece % 4 === 0 ? piece : piece % 2 === 0 ? 2 * piece : 4 * piece;
  const read = async function* (signal?: AbortSignal): AsyncGenerator<Uint8Array<ArrayBuffer>> {
    for await (const chunk of inPieces(source.stream(file, begin, begin + byteLength, signal), unit, byteLength, stored)) {
      if (dtype === 'BF16') toHalf(chunk, stored);
      yield interleavedHead === undefined ? chunk : deinterleave(chunk, interleavedHead, rowBytes);
    }
  };
  return { name, shape, type, byteLength, read };
}

/** Regroups a stream of `total` bytes into chunks of a multiple of `unit` bytes, the last one excepted. The chunks share memory. */
async function* inPieces(
  stream: AsyncIterable<Uint8Array>,
  unit: number,
  total: number,
  stored: StoredTensor,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const buffer = new Uint8Array(Math.min(total, unit * Math.max(1, Math.floor(CHUNK / unit))));
  let filled = 0;
  let seen = 0;
  for await (const chunk of stream) {
    seen += chunk.length;
    for (let at = 0; at < chunk.length; ) {
      const count = Math.min(chunk.length - at, buffer.length - filled);
      buffer.set(chunk.subarray(at, at + count), filled);
      filled += count;
      at += count;
      if (filled === buffer.length) {
        yield buffer;
        filled = 0;
      }
    }
  }
  if (seen < total) throw damaged(stored.source, stored.file, `tensor ${stored.name} ends ${total - seen} bytes early`);
  if (filled > 0) yield buffer.subarray(0, filled);
}

/** Where row i of the half-split layout is in the interleaved one: elements d and d + size / 2 of a head come from 2 d and 2 d + 1. */
function sourceRow(i: number, headDim: number): number {
  const within = i % headDim;
  return i - within + 2 * (within % (headDim / 2)) + (within < headDim / 2 ? 0 : 1);
}

function deinterleave(chunk: Uint8Array<ArrayBuffer>, headDim: number, rowBytes: number): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(chunk.length);
  for (let row = 0; row * rowBytes < chunk.length; row++) {
    const from = sourceRow(row, headDim) * rowBytes;
    out.set(chunk.subarray(from, from + rowBytes), row * rowBytes);
  }
  return out;
}

/** Numbers of a vector as f32. */
function widen(bytes: Uint8Array<ArrayBuffer>, dtype: 'F32' | 'F16' | 'BF16'): Float32Array<ArrayBuffer> {
  const view = new DataView(bytes.buffer);
  if (dtype === 'F32') return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
  if (dtype === 'F16') return Float32Array.from({ length: bytes.length / 2 }, (_, i) => getFloat16(view, 2 * i, true));
  const out = new Uint32Array(bytes.length / 2).map((_, i) => view.getUint16(2 * i, true) << 16);
  return new Float32Array(out.buffer);
}

let halves: Uint16Array | undefined;

/** The f16 of every bf16. */
function halfTable(): Uint16Array {
  if (!halves) {
    const view = new DataView(new ArrayBuffer(4));
    halves = new Uint16Array(2 ** 16);
    for (let x = 0; x < 2 ** 16; x++) {
      view.setUint32(0, x * 2 ** 16);
      setFloat16(view, 0, view.getFloat32(0));
      halves[x] = view.getUint16(0);
    }
  }
  return halves;
}

/** Turns bf16 into f16, in place. Every bf16 from 2^-14 to 65280 is an f16; smaller ones are rounded, larger ones refused. */
function toHalf(bytes: Uint8Array<ArrayBuffer>, stored: StoredTensor): void {
  const table = halfTable();
  const numbers = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2);
  for (let i = 0; i < numbers.length; i++) {
    const x = numbers[i] as number;
    if ((x & 0x7fff) >= 0x4780) throw outsideHalf(stored);
    numbers[i] = table[x] as number;
  }
}

function outsideHalf(stored: StoredTensor): MinferenceError {
  return damaged(
    stored.source,
    stored.file,
    `BF16 tensor ${stored.name} holds a number that F16 cannot (65536 or more, or not finite)`,
  );
}
