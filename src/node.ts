/**
 * Opens WebGPU devices in Node, through Dawn.
 *
 * @packageDocumentation
 */
export { createNodeGpu, type OpenNodeDeviceOptions, openNodeDevice } from './device/node.js';
export { pollGently } from './device/poll.js';
