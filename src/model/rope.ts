import type { RopeConfig } from './types.js';

/** Rotary frequencies of a model at a length. */
export interface RopeFrequencies {
  /** Radians per position of each pair, `[rotaryDim / 2]`. */
  readonly frequencies: Float64Array;
  /** What cos and sin are multiplied by. */
  readonly factor: number;
}

/**
 * The rotary frequencies of a sequence of `length` tokens. Only `dynamic` and `longrope` scaling depend on the length;
 * keys in a cache keep the frequencies that they were written with, so a sequence must keep one length's.
 */
export function ropeFrequencies(rope: RopeConfig, length: number): RopeFrequencies {
  const { theta, rotaryDim, scaling } = rope;
  const pairs = rotaryDim / 2;
  const plain = (base: number): Float64Array => Float64Array.from({ length: pairs }, (_, d) => base ** (-d / pairs));
  const own = plain(theta);
  switch (scaling?.type) {
    case undefined:
      return { frequencies: own, factor: 1 };
    case 'linear':
      return { frequencies: own.map((f) => f / scaling.factor), factor: 1 };
    case 'factors':
      return { frequencies: own.map((f, d) => f / (scaling.factors[d] ?? 1)), factor: 1 };
    case 'dynamic': {
      const { factor, originalContextLength } = scaling;
      if (length <= originalContextLength) return { frequencies: own, factor: 1 };
      const growth = (factor * length) / originalContextLength - (factor - 1);
      return { frequencies: plain(theta * growth ** (rotaryDim / (rotaryDim - 2))), factor: 1 };
    }
    case 'llama3': {
      const { factor, lowFreqFactor, highFreqFactor, originalContextLength } = scaling;
      const blend = (f: number): number => {
        const turns = (originalContextLength * f) / (2 * Math.PI);
        if (turns < lowFreqFactor) return f / factor;
        if (turns > highFreqFactor) return f;
        const smooth = (turns - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
        return ((1 - smooth) * f) / factor + smooth * f;
      };
      return { frequencies: own.map(blend), factor: 1 };
    }
    case 'yarn': {
      const { factor, betaFast, betaSlow, originalContextLength, attentionFactor, truncate } = scaling;
      // The pair that turns this often over the original context.
      const pairOf = (turns: number): number =>
        (pairs * Math.log(originalContextLength / (turns * 2 * Math.PI))) / Math.log(theta);
      const ends = [pairOf(betaFast), pairOf(betaSlow)] as const;
      const low = Math.max(0, truncate ? Math.floor(ends[0]) : ends[0]);
      const high = Math.min(rotaryDim - 1, truncate ? Math.ceil(ends[1]) : ends[1]);
      const ramp = (d: number): number => Math.min(1, Math.max(0, (d - low) / Math.max(high - low, 1e-3)));
      return { frequencies: own.map((f, d) => (f / factor) * ramp(d) + f * (1 - ramp(d))), factor: attentionFactor };
    }
    case 'longrope': {
      const { shortFactor, longFactor, originalContextLength, attentionFactor } = scaling;
      const factors = length > originalContextLength ? longFactor : shortFactor;
      return { frequencies: own.map((f, d) => f / (factors[d] ?? 1)), factor: attentionFactor };
    }
  }
}

/** Frequencies as shaders/model/rope.wgsl reads them: turns per position, as a u32 fraction and the f32 rest. */
export function ropeTable(frequencies: Float64Array): Uint32Array<ArrayBuffer> {
  const table = new Uint32Array(2 * frequencies.length);
  const rests = new Float32Array(table.buffer);
  frequencies.forEach((f, d) => {
    const turns = f / (2 * Math.PI);
    const fraction = Math.round(turns * 2 ** 32);
    table[2 * d] = fraction % 2 ** 32;
    rests[2 * d + 1] = turns - fraction / 2 ** 32;
  });
  return table;
}
