// llama.cpp, through the package node-llama-cpp, as a peer of the whole model: prefills of given tokens, dense. A request on
// stdin, one line of JSON on stdout:
//   {"folder", "weights", "backend": "vulkan" | "cpu", "seconds", "budgetMs", "warmMs", "prompts": [[token, ...], ...]}
//   {"software", "ceilings", "rows", "absent"}, rows as in bench/model.ts
// Wants FOLDER/llama.tar.xz (scripts/fetch_peers.sh). Times are wall-clock medians, from the tokens to the greedy choice of
// the next token, in the fastest of a few settings.
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

/** Calls `body` with a function that prefills the prompt from scratch; its result is milliseconds and the next token. */
async function withPrompt(model, prompt, setting, body) {
  const context = await model.createContext({ contextSize: prompt.length + 1, ...setting });
  try {
    const sequence = context.getSequence();
    const input = [...prompt.slice(0, -1), [prompt.at(-1), { generateNext: { token: true, options: { temperature: 0 } } }]];
    return await body(async () => {
      await sequence.clearHistory();
      const start = performance.now();
      const output = await sequence.controlledEvaluate(input);
      return { ms: performance.now() - start, nextToken: output.at(-1).next.token };
    });
  } finally {
    await context.dispose();
  }
}

/** Times one prompt: a pass of every setting, then the fastest one's median. */
async function measure(model, prompt, { backend, budgetMs, warmMs }) {
  let best;
  const failures = [];
  for (const setting of SETTINGS[backend]) {
    try {
      const { ms } = await withPrompt(model, prompt, setting, async (pass) => {
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
  return withPrompt(model, prompt, best.setting, async (pass) => {
    for (const start = performance.now(); performance.now() - start < warmMs; ) await pass();
    const repetitions = Math.min(20, Math.max(3, Math.round(budgetMs / best.ms)));
    const passes = [];
    for (let i = 0; i < repetitions; i++) passes.push(await pass());
    const params = { batchSize: best.setting.batchSize, flashAttention: Number(best.setting.flashAttention) };
    const wallMs = median(passes.map((p) => p.ms));
    return { wallMs, repetitions, params, nextToken: passes[0].nextToken };
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
