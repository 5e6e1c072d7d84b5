/**
 * Language models on WebGPU: loading (Hugging Face folders, GGUF files), long prompts with sparse attention, generation.
 *
 * @packageDocumentation
 */
export { type CapturedLayer, type CaptureOptions, captureAttention } from './capture.js';
export * from './load/index.js';
export {
  type AttentionCall,
  type GenerateOptions,
  LanguageModel,
  type LanguageModelOptions,
  type ModelMemory,
  type ModelPatterns,
  type ModelPrefillOptions,
  type ModelPrefillResult,
  type ModelProgress,
} from './runtime.js';
export type { SamplingOptions } from './sample.js';
export {
  ARCHITECTURES,
  type Architecture,
  BLOCK_LAYOUT,
  type ChatMessage,
  type LoadedModel,
  type ModelConfig,
  type RopeConfig,
  type RopeScaling,
  type Tokenizer,
  type WeightTensor,
  type WeightType,
  weightShapes,
} from './types.js';
