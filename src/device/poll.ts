/** Milliseconds between looks at first, and for how long there are so many. */
const INTERVAL = 0.1;
const PATIENCE = 10;

let gentle = false;

/**
 * Makes Dawn's Node binding look for news of the GPU ten times a millisecond, and once a millisecond when it has waited for ten,
 * instead of as often as it can. Each look leaves a function for the garbage collector to finalize: by itself Dawn makes so many that
 * every half second of waiting a full collection stops the program for up to 90 ms, and a fast GPU runs out of work; and a core is
 * busy all the while, which software adapters need.
 *
 * For programs that own their process: it replaces the global `setImmediate`, for native callbacks such as Dawn's only.
 */
export function pollGently(): void {
  const immediate = globalThis.setImmediate as typeof setImmediate | undefined;
  if (gentle || typeof immediate !== 'function') return;
  gentle = true;
  let waitingSince = 0;
  let isLooking = false;
  const look = (callback: () => void): void => {
    isLooking = true;
    try {
      callback();
    } finally {
      isLooking = false;
    }
  };
  globalThis.setImmediate = ((callback: (...args: unknown[]) => void, ...args: unknown[]) => {
    if (!isNative(callback)) return immediate(callback, ...args);
    const now = performance.now();
    // A look that finds nothing asks for the next one. Who asks for one from elsewhere begins to wait.
    if (!isLooking) waitingSince = now;
    if (now - waitingSince > PATIENCE) return setTimeout(look, 1, () => callback(...args));
    const later = (): void => {
      if (performance.now() - now < INTERVAL) immediate(later);
      else look(() => callback(...args));
    };
    return immediate(later);
  }) as unknown as typeof setImmediate;
}

function isNative(callback: unknown): boolean {
  return typeof callback === 'function' && /\{ \[native code\] \}$/.test(Function.prototype.toString.call(callback));
}
