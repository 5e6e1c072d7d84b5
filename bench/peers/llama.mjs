// llama.cpp, through the package node-llama-cpp, as a peer of the whole model: prefills of given tokens, dense, and tokens after
// them. A request on stdin, one line of JSON on stdout:
//   {"folder", "weights", "backend": "vulkan" | "cpu", "seconds", "budgetMs", "warmMs", "decode", "prompts": [[token, ...], ...]}
//   {"software", "ceilings", "rows", "absent"}, rows as in bench/model.ts
// Wants FOLDER/llama.tar.xz (scripts/fetch_peers.sh). Times are wall-clock medians, from the tokens to the greedy choice of
// the next token, in the fastest of a few settings; of tokens after that, from one to the next.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { pathToFileURL } from 'node:url';

const IMPL = 'llama.cpp';
/** Tokens that run through the model at a time, and whether attention is one kernel. */
const SETTINGS = {
  vulkan: [
    { batchSize: 512, flashAttention: true },
    { batchSize: 2048, flashAttention: true },
    { batchSize: 512, flashAttention: false },
    { batchSize: 2048, flashAttention: false },
  ],
  cpu: [{ batchSize: 512, flashAttention: true }],
};

const median = (values) => {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
};

/**
 * Calls `body` with a function that prefills the prompt from scratch, whose result is milliseconds and the next token; and one for
 * the milliseconds of each of `decode` tokens after it.
 */
async function withPrompt(model, prompt, decode, setting, body) {
  const context = await model.createContext({ contextSize: prompt.length + 1 + decode, ...setting });
  try {
    const sequence = context.getSequence();
    const input = [...prompt.slice(0, -1), [prompt.at(-1), { generateNext: { token: true, options: { temperature: 0 } } }]];
    const prefill = async () => {
      await sequence.clearHistory();
      const start = performance.now();
      const output = await sequence.controlledEvaluate(input);
      return { ms: performance.now() - start, nextToken: output.at(-1).next.token };
    };
    const generate = async (first) => {
      let start = 0;
      let made = -1;
      for await (const _ of sequence.evaluate([first], { temperature: 0, yieldEogToken: true })) {
        if (++made === 0) start = performance.now();
        if (made === decode - 2) break;
      }
      return (performance.now() - start) / made;
    };
    return await body(prefill, generate);
  } finally {
    await context.dispose();
  }
}

/** Times one prompt: a pass of every setting, then the fastest one's median. */
async function measure(model, prompt, { backend, budgetMs, warmMs, decode }) {
  let best;
  const failures = [];
  for (const setting of SETTINGS[backend]) {
    try {
      const { ms } = await withPrompt(model, prompt, 0, setting, async (pass) => {
        await pass(); // compiles
        return pass();
      });
      console.error(`${IMPL} ${JSON.stringify(setting)}: ${prompt.length} tokens in ${ms.toFixed(1)} ms`);
      if (!best || ms < best.ms) best = { setting, ms };
    } catch (error) {
      failures.push(error.message);
    }
  }
  if (!best) throw new Error(failures.join('; '));
  return withPrompt(model, prompt, decode, best.setting, async (pass, generate) => {
    for (const start = performance.now(); performance.now() - start < warmMs; ) await pass();
    const repetitions = Math.min(20, Math.max(3, Math.round(budgetMs / best.ms)));
    const passes = [];
    for (let i = 0; i < repetitions; i++) passes.push(await pass());
    const params = { batchSize: best.setting.batchSize, flashAttention: Number(best.setting.flashAttention) };
    const wallMs = median(passes.map((p) => p.ms));
    const { nextToken } = passes[0];
    if (decode <= 2) return { wallMs, repetitions, params, nextToken };
    const tokens = [];
    for (let i = 0; i < 5; i++) {
      await pass();
      tokens.push(await generate(nextToken));
    }
    return { wallMs, repetitions, params, nextToken, decodeMs: median(tokens) };
  });
}

const request = JSON.parse(await text(process.stdin));
const { backend } = request;
const result = { software: {}, ceilings: {}, rows: [], absent: [] };
const work = mkdtempSync(join(tmpdir(), 'llama-'));
let llama;
try {
  const archive = join(request.folder, 'llama.tar.xz');
  if (!existsSync(archive)) throw new Error(`${archive} is missing: run scripts/fetch_peers.sh`);
  execFileSync('tar', ['-xJf', archive, '-C', work]);
  const folder = join(work, 'node_modules', 'node-llama-cpp');
  const { getLlama } = await import(pathToFileURL(join(folder, 'dist', 'index.js')).href);
  result.software['node-llama-cpp'] = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')).version;
  llama = await getLlama({ gpu: backend === 'cpu' ? false : backend, build: 'never', logLevel: 'error' });
  result.software['llama.cpp'] = `${llama.llamaCppRelease.release} on ${backend}`;
  if (backend !== 'cpu') {
    const devices = await llama.getGpuDeviceNames();
    if (devices.length === 0) throw new Error(`no ${backend} device`);
    result.software['llama.cpp'] += `, ${devices.join(' and ')}`;
  }
  const model = await llama.loadModel({ modelPath: request.weights, gpuLayers: backend === 'cpu' ? 0 : 'max' });
  const deadline = performance.now() + 1000 * request.seconds;
  for (const prompt of request.prompts) {
    try {
      if (performance.now() > deadline) throw new Error('out of time');
      const measured = await measure(model, prompt, request);
      result.rows.push({ impl: IMPL, pattern: 'dense', tier: backend, seqLen: prompt.length, ...measured });
    } catch (error) {
      result.absent.push({ impl: IMPL, reason: `dense at ${prompt.length}: ${error.message}` });
    }
  }
} catch (error) {
  result.absent.push({ impl: IMPL, reason: error.message });
} finally {
  await llama?.dispose();
  rmSync(work, { recursive: true });
}
console.log(JSON.stringify(result));
