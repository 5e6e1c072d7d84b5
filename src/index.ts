/**
 * minference-webgpu: dynamic sparse attention (MInference 1.0, arXiv 2407.02490) for the prefill of
 * long-context language models, on any WebGPU.
 *
 * @packageDocumentation
 */

export { type OpenDeviceOptions, openDevice } from './device/open.js';
export type { MemoryReport } from './device/pool.js';
export { availableTiers, type DeviceProfile, profileDevice, TIERS, type Tier, type TilingOverrides } from './device/profile.js';
export { STAGES, type Stage } from './device/recorder.js';
export type { MatrixShape, MatrixSync } from './device/subgroup_matrix.js';
export { type ErrorCode, type ErrorDetails, MinferenceError } from './errors.js';
export { type AttentionKernel, type AttentionTiling, HEAD_DIMS, INDEX_BLOCK } from './kernels/attention.js';
export type { MatrixStaging, MatrixTiling } from './kernels/matrix_config.js';
export type { DType } from './kernels/tensor.js';
export { allocateDensity, type DensityChoice } from './patterns/allocate.js';
export {
  adjustPatterns,
  CONFIG_PATTERNS,
  type ConfigPattern,
  DEFAULT_PATTERN,
  type HeadConfig,
  headConfigOf,
  type LayerPatternOptions,
  type PatternConfig,
  type PatternMixEntry,
  type PatternSummary,
  parsePatternConfig,
  patternsForLayer,
  serializePatternConfig,
  summarizePatternConfig,
} from './patterns/config.js';
export { type CellGrid, indexCoverage } from './patterns/coverage.js';
export { type ConfigLoader, configForModel, findModel, MODELS, type ModelEntry } from './patterns/models.js';
export {
  type AttentionMap,
  type DenseReference,
  type HeadQuality,
  type LayerQuality,
  type MeasuredLayer,
  type MeasureOptions,
  RecallMeter,
} from './patterns/recall.js';
export {
  allocationSpace,
  type CandidateResult,
  DEFAULT_TARGET,
  type LayerResult,
  SEARCH_SPACE,
  type SearchOptions,
  type SearchPattern,
  type SearchProgress,
  type SearchResult,
  type SearchSource,
  type SearchState,
  type SearchTarget,
  searchPatterns,
} from './patterns/search.js';
export { dilated1, dilated2, reuseIndices, type StridedOptions, staticVerticalSlash, strided } from './patterns/static.js';
export { type PrepareOptions, SparsePrefill } from './scheduler/prefill.js';
export { type PassTime, StageTimer } from './scheduler/submit.js';
export type {
  AShapePattern,
  AttentionLayer,
  BlockSparsePattern,
  DensePattern,
  FlexPrefillPattern,
  HeadIndex,
  HeadPattern,
  HeadReport,
  PlanReport,
  PrefillProgress,
  RunOptions,
  RunReport,
  SparsePrefillOptions,
  StageTimes,
  StaticPattern,
  TensorBinding,
  TriShapePattern,
  VerticalSlashPattern,
  XAttentionPattern,
} from './scheduler/types.js';
