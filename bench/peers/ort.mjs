// The WebGPU execution provider of onnxruntime-node as a peer: GroupQueryAttention, dense, f16. A request on stdin, one
// line of JSON on stdout, as bench/peers/peers.py has them. Wants FOLDER/ort.tar.xz (scripts/fetch_peers.sh), and python3
// with the package onnx for the models (bench/peers/gqa_model.py).
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';

const IMPL = 'onnxruntime-webgpu';
/** Operators in the two models whose times are compared. */
const NODES = [1, 5];

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];

/** The f16 number with these bits. */
function fromF16(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15));
}

/** Random f16 numbers from -1 to 1, as bits. */
function randomF16(length) {
  return Uint16Array.from({ length }, () => Math.floor(Math.random() * 0x3c00) | (Math.random() < 0.5 ? 0x8000 : 0));
}

/** ||o - reference|| / ||reference|| over sampled rows of head 0. Tensors are [seqLen, heads * headDim]. */
function relativeError(o, { q, k, v }, { seqLen, heads, headDim }, rows) {
  const at = (x, row, d) => fromF16(x[row * heads * headDim + d]);
  const dims = Array.from({ length: headDim }, (_, d) => d);
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < rows; i++) {
    const row = Math.round((i * (seqLen - 1)) / Math.max(1, rows - 1));
    const weights = Array.from({ length: row + 1 }, (_, key) =>
      Math.exp(dims.reduce((sum, d) => sum + at(q, row, d) * at(k, key, d), 0) / Math.sqrt(headDim)),
    );
    const total = weights.reduce((a, b) => a + b, 0);
    for (const d of dims) {
      const expected = weights.reduce((sum, w, key) => sum + w * at(v, key, d), 0) / total;
      difference += (at(o, row, d) - expected) ** 2;
      norm += expected ** 2;
    }
  }
  return Math.sqrt(difference / norm);
}

/** Times one case. */
async function measure(ort, work, benchCase, { budgetMs, checkRows }) {
  const { seqLen, heads, headDim } = benchCase;
  const shape = [1, seqLen, heads * headDim];
  const [q, k, v] = Array.from({ length: 3 }, () => randomF16(seqLen * heads * headDim));
  const int32 = (value) => new ort.Tensor('int32', Int32Array.of(value), [1]);
  const half = (bits) => new ort.Tensor('float16', bits, shape);
  const feeds = { x0: half(q), k: half(k), v: half(v), last: int32(seqLen - 1), total: int32(seqLen) };
  const times = [];
  let relError;
  let repetitions = 0;
  for (const nodes of NODES) {
    const model = join(work, `gqa-${heads}-${headDim}-${nodes}.onnx`);
    if (!existsSync(model)) execFileSync('python3', ['bench/peers/gqa_model.py', model, `${heads}`, `${headDim}`, `${nodes}`]);
    const session = await ort.InferenceSession.create(model, { executionProviders: ['webgpu'], logSeverityLevel: 3 });
    const pass = async () => {
      const start = performance.now();
      const outputs = await session.run(feeds);
      return { ms: performance.now() - start, o: outputs[`x${nodes}`].data };
    };
    const first = await pass(); // compiles
    if (nodes === 1 && checkRows > 0) relError = relativeError(first.o, { q, k, v }, benchCase, checkRows);
    const guess = (await pass()).ms;
    repetitions = Math.min(20, Math.max(3, Math.round(budgetMs / guess)));
    const all = [];
    for (let i = 0; i < repetitions; i++) all.push((await pass()).ms);
    times.push(median(all));
    await session.release();
  }
  const ms = (times[1] - times[0]) / (NODES[1] - NODES[0]);
  const stages = { estimate: 0, topk: 0, convert: 0, kernel: ms };
  const row = { impl: IMPL, pattern: 'dense', tier: 'webgpu', seqLen, heads, headDim, dtype: 'f16', params: {} };
  return { ...row, ms, stages, density: 1, relError, repetitions };
}

const request = JSON.parse(await text(process.stdin));
const result = { software: {}, ceilings: {}, rows: [], absent: [] };
const work = mkdtempSync(join(tmpdir(), 'ort-'));
try {
  const archive = join(request.folder, 'ort.tar.xz');
  if (!existsSync(archive)) throw new Error(`${archive} is missing: run scripts/fetch_peers.sh`);
  execFileSync('tar', ['-xJf', archive, '-C', work]);
  const ort = createRequire(join(work, 'ort.cjs'))('onnxruntime-node');
  result.software['onnxruntime-node'] = ort.env.versions.node;
  const deadline = performance.now() + 1000 * request.seconds;
  for (const benchCase of request.cases) {
    try {
      if (performance.now() > deadline) throw new Error('out of time');
      result.rows.push(await measure(ort, work, benchCase, request));
    } catch (error) {
      result.absent.push({ impl: IMPL, reason: `dense at ${benchCase.seqLen}: ${error.message}` });
    }
  }
} catch (error) {
  result.absent.push({ impl: IMPL, reason: error.message });
} finally {
  rmSync(work, { recursive: true });
}
console.log(JSON.stringify(result));
