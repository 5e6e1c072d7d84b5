// Dawn's Node binding looks for news of the GPU in one `setImmediate` after the other. That keeps a core busy that software
// adapters need for compiling and computing; once a millisecond is often enough.
if ('setImmediate' in globalThis) {
  globalThis.setImmediate = ((callback: () => void) => setTimeout(callback, 1)) as unknown as typeof setImmediate;
}
