/** The float64 CPU reference and random test inputs: package export `minference-webgpu/reference`. */
export * from './methods.js';
export * from './oracle.js';
export * from './quant.js';
export * from './random.js';
