/**
 * Makes a device compile each pipeline once, however many caches ask for it: compiling takes most of the time on
 * software adapters. What a shader binds follows from its code, so code, entry point and constants tell pipelines apart.
 */
export function compileOnce(device: GPUDevice): GPUDevice {
  const codes = new WeakMap<GPUShaderModule, string>();
  const ready = new Map<string, GPUComputePipeline>();
  const coming = new Map<string, Promise<GPUComputePipeline>>();
  const keyOf = ({ compute }: GPUComputePipelineDescriptor): string =>
    JSON.stringify([codes.get(compute.module), compute.entryPoint, compute.constants]);

  const createShaderModule = device.createShaderModule.bind(device);
  device.createShaderModule = (descriptor) => {
    const module = createShaderModule(descriptor);
    codes.set(module, descriptor.code);
    return module;
  };
  const createComputePipeline = device.createComputePipeline.bind(device);
  device.createComputePipeline = (descriptor) => {
    const key = keyOf(descriptor);
    const pipeline = ready.get(key) ?? createComputePipeline(descriptor);
    ready.set(key, pipeline);
    return pipeline;
  };
  const createComputePipelineAsync = device.createComputePipelineAsync.bind(device);
  device.createComputePipelineAsync = async (descriptor) => {
    const key = keyOf(descriptor);
    const pipeline = ready.get(key);
    if (pipeline) return pipeline;
    const promise = coming.get(key) ?? createComputePipelineAsync(descriptor);
    coming.set(key, promise);
    ready.set(key, await promise);
    return promise;
  };
  return device;
}
