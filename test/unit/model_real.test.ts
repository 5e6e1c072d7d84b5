import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { openNodeDevice } from '../../src/device/node.js';
import { openNodeModel } from '../../src/model/load/node.js';
import { LanguageModel } from '../../src/model/runtime.js';
import { argmax } from '../../src/model/sample.js';
// What transformers predicts with the same weights: scripts/reference_logits.py.
import fixture from '../fixtures/smollm2-135m-logits.json' with { type: 'json' };

const path = (name: string): string => fileURLToPath(new URL(`../../${name}`, import.meta.url));
const file = path(`.build/models/${fixture.model}`);

// Three windows of 128 tokens take a minute or two on a software adapter; WINDOWS=16 compares all 2,048 positions, and
// REPORT=file.json keeps what was found.
const windows = fixture.windows.slice(0, Number(process.env['WINDOWS'] ?? 3));
const positions = windows.reduce((sum, w) => sum + w.top.length, 0);

const missing = existsSync(file) ? '' : `skipped: no ${fixture.model} in .build/models (run scripts/fetch_smollm2.sh): `;
if (missing) console.warn(missing.slice(0, -2));

test.skipIf(missing !== '')(`${missing}SmolLM2-135M predicts as transformers does: ${positions} positions`, async () => {
  const loaded = await openNodeModel(file);
  const device = await openNodeDevice();
  const model = await LanguageModel.load(device, loaded, { contextLength: 128 });
  try {
    const ids = loaded.tokenizer?.encode(readFileSync(path(`assets/text/${fixture.text}`), 'utf8'), false) ?? [];
    expect(ids).toHaveLength(fixture.textTokens);
    let same = 0;
    let [own, theirs, apart, predicted] = [0, 0, 0, 0];
    for (const { start, tokens, top, log } of windows) {
      expect(ids.slice(start, start + tokens.length)).toEqual(tokens);
      model.reset();
      const { logProbs = new Float32Array() } = await model.prefill(tokens, {
        logProbs: true,
        onLogits: (first, logits) => {
          const size = loaded.config.vocabSize;
          for (let i = 0; i < logits.length / size; i++) {
            same += Number(argmax(logits.subarray(i * size, (i + 1) * size)) === top[first + i]);
          }
        },
      });
      expect(logProbs).toHaveLength(log.length);
      own += logProbs.reduce((sum, p) => sum + p, 0);
      theirs += log.reduce((sum, p) => sum + p, 0);
      apart += log.reduce((sum, p, i) => sum + Math.abs(p - (logProbs[i] ?? Number.NaN)), 0);
      predicted += log.length;
    }
    const perplexity = Math.exp(-own / predicted);
    const ratio = perplexity / Math.exp(-theirs / predicted);
    const mean = apart / predicted;
    const report = {
      model: fixture.model,
      device: `${device.adapterInfo.vendor} ${device.adapterInfo.description}`,
      tier: model.profile.tier,
      positions,
      top1: same,
      perplexity,
      referencePerplexity: Math.exp(-theirs / predicted),
      meanLogProbDifference: mean,
    };
    if (process.env['REPORT']) writeFileSync(process.env['REPORT'], `${JSON.stringify(report, null, 2)}\n`);
    console.info(
      `${model.profile.tier}: top-1 ${same} of ${positions}, perplexity ${perplexity.toFixed(3)} (${ratio.toFixed(5)} of theirs), ` +
        `log-probabilities ${mean.toFixed(5)} apart on average`,
    );
    expect(same / positions).toBeGreaterThanOrEqual(0.99);
    expect(Math.abs(ratio - 1)).toBeLessThan(0.005);
    expect(mean).toBeLessThan(0.01);
  } finally {
    model.destroy();
    await loaded.close();
    device.destroy();
  }
});
