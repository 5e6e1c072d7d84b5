import { Float16Array } from '@petamoriken/float16';
import { loadModel } from '../../src/model/load/index.js';
import { memorySource } from '../../src/model/load/source.js';
import { LanguageModel } from '../../src/model/runtime.js';
import { relativeError, worstRowError } from '../../src/reference/oracle.js';
// What transformers predicts with the same weights: test/fixtures/transformers_models.py.
import fixture from '../fixtures/transformers-models.json' with { type: 'json' };
import { assert, type SuiteCase } from './context.js';

const DTYPES = ['F16', 'BF16', 'F32'] as const;
type Dtype = (typeof DTYPES)[number];

/** Murmur3's finalizer. */
function mix(x: number): number {
  let h = x ^ (x >>> 16);
  h = Math.imul(h, 0x85ebca6b);
  h ^= h >>> 13;
  h = Math.imul(h, 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** The weights that transformers_models.py gives a tensor of this name. */
function weightOf(name: string, count: number): Float32Array<ArrayBuffer> {
  let seed = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(name)) seed = Math.imul(seed ^ byte, 0x01000193) >>> 0;
  const scale = name.includes('embed') ? 1 : 0.25;
  const norm = name.endsWith('norm.weight');
  return Float32Array.from({ length: count }, (_, i) => {
    const h = mix((seed + Math.imul(i, 0x9e3779b9)) >>> 0);
    return norm ? 1 + ((h >>> 28) - 8) / 32 : (((h >>> 24) - 128) / 128) * scale;
  });
}

function bytesOf(values: Float32Array<ArrayBuffer>, dtype: Dtype): Uint8Array<ArrayBuffer> {
  if (dtype === 'F32') return new Uint8Array(values.buffer);
  if (dtype === 'F16') return new Uint8Array(new Float16Array(values).buffer as ArrayBuffer);
  // These numbers lose nothing when their lower half is cut off.
  const words = new Uint32Array(values.buffer);
  return new Uint8Array(Uint16Array.from(words, (word) => word >>> 16).buffer);
}

/** A safetensors file of the tensors that transformers_models.py makes. */
export function safetensors(tensors: readonly (readonly [string, readonly number[]])[], dtype: Dtype): Blob {
  let offset = 0;
  const parts: Uint8Array<ArrayBuffer>[] = [];
  const entries = tensors.map(([name, shape]) => {
    const bytes = bytesOf(
      weightOf(
        name,
        shape.reduce((a, b) => a * b, 1),
      ),
      dtype,
    );
    parts.push(bytes);
    offset += bytes.length;
    return [name, { dtype, shape, data_offsets: [offset - bytes.length, offset] }] as const;
  });
  const header = new TextEncoder().encode(JSON.stringify(Object.fromEntries(entries)));
  return new Blob([BigUint64Array.of(BigInt(header.length)), header, ...parts]);
}

/** A Hugging Face folder in two shards. */
function shardedFolder(config: object, shapes: Readonly<Record<string, readonly number[]>>, dtype: Dtype) {
  const tensors = Object.entries(shapes);
  const half = tensors.length >> 1;
  const shards = [tensors.slice(0, half), tensors.slice(half)];
  const nameOf = (shard: number): string => `model-0000${shard + 1}-of-00002.safetensors`;
  const map = shards.flatMap((list, s) => list.map(([name]) => [name, nameOf(s)] as const));
  return memorySource({
    'config.json': JSON.stringify(config),
    'model.safetensors.index.json': JSON.stringify({ metadata: {}, weight_map: Object.fromEntries(map) }),
    ...Object.fromEntries(shards.map((list, s) => [nameOf(s), safetensors(list, dtype)])),
  });
}

export const modelReferenceCases: SuiteCase[] = Object.entries(fixture.models).map(([name, model], index) => ({
  name: `model: the logits of transformers, ${name}`,
  // One of each architecture everywhere; scalings of positions are computed on the CPU.
  once: !['llama', 'qwen2', 'qwen3', 'phi3'].includes(name),
  run: async (ctx) => {
    const { tokens, rows } = fixture;
    const dtype = DTYPES[index % DTYPES.length] as Dtype;
    const loaded = await loadModel(shardedFolder(model.config, model.shapes as Record<string, number[]>, dtype));
    const vocab = loaded.config.vocabSize;
    const runtime = await LanguageModel.load(ctx.device, loaded, {
      tier: ctx.profile.tier,
      contextLength: tokens.length,
      chunkSize: 64,
    });
    const found = new Map<number, Float32Array>();
    await runtime.prefill(tokens, {
      onLogits: (first, logits) => {
        for (const row of rows) {
          const at = (row - first) * vocab;
          if (at >= 0 && at < logits.length) found.set(row, logits.slice(at, at + vocab));
        }
      },
    });
    runtime.destroy();
    await loaded.close();
    assert(found.size === rows.length, `logits of ${found.size} rows instead of ${rows.length}`);
    const actual = Float32Array.from(rows.flatMap((row) => [...(found.get(row) ?? [])]));
    const expected = Float64Array.from(model.logits.flat());
    const limit = ctx.profile.tier === 'portable' ? 1e-3 : 2e-2;
    const { error, row } = worstRowError(actual, expected, vocab);
    assert(error <= limit, `${dtype}: relative error ${error} of the logits of token ${rows[row]}`);
    // The test can tell models apart: another scaling's logits are further away.
    const others = Object.entries(fixture.models).filter(([other]) => other !== name);
    const same = others.filter(([, other]) => relativeError(other.logits.flat(), expected) <= 2 * limit).map(([n]) => n);
    assert(same.length === 0, `these have the same logits: ${same}`);
  },
}));
