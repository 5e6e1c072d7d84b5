// Sparse prefill inside of your own command encoder: one layer, a pattern for each head, nothing read back in between.
// node examples/own_encoder.mjs
import { SparsePrefill } from 'minference-webgpu';
import { openNodeDevice, pollGently } from 'minference-webgpu/node';

const [numHeads, numKvHeads, headDim, seqLen] = [4, 2, 64, 700];
pollGently(); // this program is nobody else's
const device = await openNodeDevice(); // yours, if you have one

/** A tensor of random numbers, or an empty one. */
function tensor(heads, fill) {
  const size = heads * seqLen * headDim * 4;
  const buffer = device.createBuffer({ size, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC });
  if (fill)
    device.queue.writeBuffer(
      buffer,
      0,
      Float32Array.from({ length: size / 4 }, () => Math.random() - 0.5),
    );
  return buffer;
}
const [q, k, v, o] = [tensor(numHeads, true), tensor(numKvHeads, true), tensor(numKvHeads, true), tensor(numHeads, false)];

const prefill = new SparsePrefill(device);
const patterns = [
  { kind: 'dense' },
  { kind: 'a_shape', initSize: 16, localSize: 128 },
  { kind: 'vertical_slash', verticalSize: 60, slashSize: 120 },
  { kind: 'block_sparse', topK: 4 },
];
await prefill.prepare({ headDim, dtype: 'f32' }); // compiles ahead of time; optional

const readback = device.createBuffer({ size: o.size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
const encoder = device.createCommandEncoder();
// ... your own passes that make q, k and v ...
const plan = prefill.record(encoder, { q, k, v, o, numHeads, numKvHeads, headDim, seqLen, dtype: 'f32', patterns });
// ... your own passes that use o ...
encoder.copyBufferToBuffer(o, 0, readback, 0, o.size);
device.queue.submit([encoder.finish()]);

await readback.mapAsync(GPUMapMode.READ);
const output = new Float32Array(readback.getMappedRange());
console.log(`${plan.dispatches} dispatches, ${plan.memory.peakBytes} bytes of workspace and index`);
console.log(`first row of head 0 is v's first row: ${output.slice(0, 4).join(', ')}`);
prefill.destroy();
device.destroy();
