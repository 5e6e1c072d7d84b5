import { setImmediate as untouched } from 'node:timers';
import { expect, test } from 'vitest';
import { pollGently } from '../../src/device/poll.js';

pollGently();

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Asks for one look after the other as Dawn does, with a native callback, until `until` ms have passed; when they came. */
async function looks(until: number): Promise<number[]> {
  const start = performance.now();
  const times: number[] = [];
  await new Promise<void>((resolve) => {
    const look = (): void => {
      times.push(performance.now() - start);
      if (performance.now() - start < until) setImmediate(look.bind(undefined));
      else resolve();
    };
    setImmediate(look.bind(undefined));
  });
  return times;
}

/** Milliseconds between looks that were asked for after `from` ms and by `to` ms. */
function gaps(times: readonly number[], from: number, to: number): number[] {
  return times.slice(1).flatMap((t, i) => ((times[i] ?? 0) >= from && (times[i] ?? 0) < to ? [t - (times[i] ?? 0)] : []));
}

test('looks for news of the GPU come soon at first, and once a millisecond when they were in vain', async () => {
  const times = await looks(60);
  expect(Math.min(...gaps(times, 0, 9))).toBeLessThan(0.9);
  expect(Math.min(...gaps(times, 0, 9))).toBeGreaterThanOrEqual(0.1);
  // Timers of a busy process are late, and the next one the sooner.
  expect(gaps(times, 11, 60).length).toBeLessThanOrEqual(60);
});

test('a new wait begins with many looks again', async () => {
  await looks(30);
  await pause(5);
  expect(Math.min(...gaps(await looks(9), 0, 9))).toBeLessThan(0.9);
});

test('other callbacks are called as they always were, with their arguments', async () => {
  const order: string[] = [];
  await new Promise<void>((resolve) => {
    setImmediate((a: string, b: string) => order.push(a + b), 'a', 'b');
    untouched(() => order.push('untouched'));
    setImmediate(() => {
      order.push('last');
      resolve();
    });
  });
  expect(order).toEqual(['ab', 'untouched', 'last']);
  const cancelled = setImmediate(() => order.push('never'));
  clearImmediate(cancelled);
  await pause(5);
  expect(order).not.toContain('never');
});
