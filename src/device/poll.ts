/**
 * Makes Dawn's Node binding look for news of the GPU once a millisecond instead of in one `setImmediate` after the other, which
 * keeps a core busy: software adapters need it for compiling and computing. For programs that own their process: it replaces the
 * global `setImmediate`.
 */
export function pollGently(): void {
  if (!('setImmediate' in globalThis)) return;
  globalThis.setImmediate = ((callback: (...args: unknown[]) => void, ...args: unknown[]) =>
    setTimeout(callback, 1, ...args)) as unknown as typeof setImmediate;
}
