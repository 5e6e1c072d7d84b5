import activations from '../../shaders/model/activations.wgsl?raw';
import activationsF16Wide from '../../shaders/model/activations_f16_wide.wgsl?raw';
import nibblesF16 from '../../shaders/model/nibbles_f16.wgsl?raw';
import nibblesF32 from '../../shaders/model/nibbles_f32.wgsl?raw';
import outputF16 from '../../shaders/model/output_f16.wgsl?raw';
import outputF32 from '../../shaders/model/output_f32.wgsl?raw';
import runsNibbles from '../../shaders/model/runs_nibbles.wgsl?raw';
import runsPlain from '../../shaders/model/runs_plain.wgsl?raw';
import runsQ4_0 from '../../shaders/model/runs_q4_0.wgsl?raw';
import runsQ4_1 from '../../shaders/model/runs_q4_1.wgsl?raw';
import runsQ4K from '../../shaders/model/runs_q4_k.wgsl?raw';
import weights from '../../shaders/model/weights.wgsl?raw';
import weightsBlocks from '../../shaders/model/weights_blocks.wgsl?raw';
import weightsF16 from '../../shaders/model/weights_f16.wgsl?raw';
import weightsF32 from '../../shaders/model/weights_f32.wgsl?raw';
import weightsFifthBits from '../../shaders/model/weights_fifth_bits.wgsl?raw';
import weightsKScales from '../../shaders/model/weights_k_scales.wgsl?raw';
import weightsQ2K from '../../shaders/model/weights_q2_k.wgsl?raw';
import weightsQ3K from '../../shaders/model/weights_q3_k.wgsl?raw';
import weightsQ4_0 from '../../shaders/model/weights_q4_0.wgsl?raw';
import weightsQ4_1 from '../../shaders/model/weights_q4_1.wgsl?raw';
import weightsQ4K from '../../shaders/model/weights_q4_k.wgsl?raw';
import weightsQ5_0 from '../../shaders/model/weights_q5_0.wgsl?raw';
import weightsQ5_1 from '../../shaders/model/weights_q5_1.wgsl?raw';
import weightsQ5K from '../../shaders/model/weights_q5_k.wgsl?raw';
import weightsQ6K from '../../shaders/model/weights_q6_k.wgsl?raw';
import weightsQ8_0 from '../../shaders/model/weights_q8_0.wgsl?raw';
import weightsUnaligned from '../../shaders/model/weights_unaligned.wgsl?raw';
import weightsUnscaled from '../../shaders/model/weights_unscaled.wgsl?raw';
import type { DType } from '../kernels/tensor.js';
import type { WeightType } from './types.js';

const WEIGHTS: Readonly<Record<WeightType, readonly string[]>> = {
  f32: [weightsF32, weightsUnscaled],
  f16: [weightsF16, weightsUnscaled],
  q8_0: [weightsQ8_0, weightsBlocks, weightsUnaligned],
  q4_0: [weightsQ4_0, weightsBlocks, weightsUnaligned],
  q4_1: [weightsQ4_1, weightsBlocks],
  q5_0: [weightsQ5_0, weightsBlocks, weightsFifthBits, weightsUnaligned],
  q5_1: [weightsQ5_1, weightsBlocks, weightsFifthBits],
  q2_k: [weightsQ2K, weightsBlocks, weightsUnaligned],
  q3_k: [weightsQ3K, weightsBlocks, weightsUnaligned],
  q4_k: [weightsQ4K, weightsBlocks, weightsKScales],
  q5_k: [weightsQ5K, weightsBlocks, weightsKScales],
  q6_k: [weightsQ6K, weightsBlocks, weightsUnaligned],
};

const RUNS: Readonly<Partial<Record<WeightType, readonly string[]>>> = {
  q4_0: [runsNibbles, runsQ4_0],
  q4_1: [runsNibbles, runsQ4_1],
  q4_k: [runsQ4K],
};

/**
 * WGSL of `load_weights`, `load_quants` and `load_scale` for a type of weights; binding 1 holds them.
 *
 * @param f16Bits - whether the compiler takes bits for f16; the shader's `params` then have a `unit` of 1
 */
export function weightLibrary(type: WeightType, f16Bits = false): string {
  return [weights, f16Bits ? nibblesF16 : nibblesF32, ...WEIGHTS[type]].join('\n');
}

/** WGSL of `load_run`, `run_quants` and `run_scale`, which the matrix-vector kernel reads weights by. Behind {@link weightLibrary}. */
export function runLibrary(type: WeightType): string {
  return (RUNS[type] ?? [runsPlain]).join('\n');
}

/**
 * WGSL of `load_activations`; binding 2 holds them, stored as the alias `Activation` says. Behind {@link weightLibrary}.
 *
 * @param f16Bits - whether the compiler takes bits for f16
 */
export function activationLibrary(dtype: DType, f16Bits = false): string {
  return dtype === 'f16' && f16Bits ? activationsF16Wide : activations;
}

/** WGSL of `Output`, `to_output` and `pack_output`. */
export function outputLibrary(dtype: DType): string {
  return dtype === 'f16' ? outputF16 : outputF32;
}
