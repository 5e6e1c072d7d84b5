import fc from 'fast-check';
import { expect, test } from 'vitest';
import { keepNucleus, Sampler } from '../../src/model/sample.js';

test('a nucleus is the greatest weights that reach the share, the first ones among equals', () => {
  // Few values, so that there are many equals; and others that are close to each other or far apart.
  const weight = fc.oneof(
    fc.constantFrom(1, 0.5, 0.25, 0),
    fc.double({ min: 0.49, max: 0.51, noNaN: true }),
    fc.integer({ min: -40, max: 0 }).map((e) => 2 ** e),
  );
  fc.assert(
    fc.property(fc.array(weight, { minLength: 1, maxLength: 200 }), fc.nat(), (values, pick) => {
      const weights = Float32Array.from([1, ...values]);
      const order = Array.from(weights, (_, i) => i)
        .filter((i) => (weights[i] as number) > 0)
        .sort((a, b) => (weights[b] as number) - (weights[a] as number) || a - b);
      const count = 1 + (pick % order.length);
      const sumOf = (n: number): number => order.slice(0, n).reduce((sum, i) => sum + (weights[i] as number), 0);
      // Half of the last one's weight is still missing without it.
      const enough = sumOf(count) - (weights[order[count - 1] as number] as number) / 2;
      const expected = weights.map((w, i) => (order.indexOf(i) < count ? w : 0));
      const sum = sumOf(count);
      const kept = keepNucleus(weights, enough);
      expect([...weights]).toEqual([...expected]);
      expect(Math.abs(kept - sum)).toBeLessThanOrEqual(1e-12 * sum);
    }),
  );
});

test('logits that are NaN or minus infinity are never drawn, and many of them cost nothing', () => {
  const logits = new Float32Array(150_000).fill(Number.NEGATIVE_INFINITY);
  logits.fill(Number.NaN, 1000, 2000);
  logits.set([2, 2, 1.5], 70_000);
  for (const options of [{ temperature: 1 }, { temperature: 1, topP: 0.99 }, { temperature: 0.01, topP: 0.5 }]) {
    const sampler = new Sampler({ ...options, seed: 3 });
    const drawn = new Set(Array.from({ length: 60 }, () => sampler.sample(logits)));
    for (const token of drawn) expect([70_000, 70_001, 70_002]).toContain(token);
    expect(drawn.has(70_000)).toBe(true);
  }
});
