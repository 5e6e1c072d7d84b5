/**
 * What went wrong, as a stable machine-readable word:
 *
 * - `invalid-argument`: an argument has a wrong type, shape or value.
 * - `unsupported`: the adapter or device lacks a feature that was asked for.
 * - `limit`: the request is valid but exceeds a limit of this device.
 * - `device-lost`: the `GPUDevice` is gone; make a new one and start again.
 * - `out-of-memory`: the device could not allocate what the plan needs.
 * - `gpu`: the GPU reported a validation or internal error.
 * - `file`: a file is missing, damaged or of an unknown format.
 */
export type ErrorCode = 'invalid-argument' | 'unsupported' | 'limit' | 'device-lost' | 'out-of-memory' | 'gpu' | 'file';

/** Details that every {@link MinferenceError} about an argument carries. */
export interface ErrorDetails {
  /** Name of the offending argument, for example `patterns[3].topK`. */
  readonly argument?: string;
  /** The value that was given. */
  readonly value?: unknown;
  /** What would have been accepted, in words. */
  readonly allowed?: string;
  /** The underlying error, when there is one. */
  readonly cause?: unknown;
}

/**
 * The one error class of this library. Everything that can be checked is checked before anything is
 * submitted to the GPU, so after such an error the device and the caller's buffers are as they were.
 * (An aborted call rejects with the `AbortSignal`'s own reason instead, as the platform's APIs do.)
 */
export class MinferenceError extends Error {
  override readonly name = 'MinferenceError';
  readonly code: ErrorCode;
  readonly argument: string | undefined;
  readonly value: unknown;
  readonly allowed: string | undefined;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.argument = details.argument;
    this.value = details.value;
    this.allowed = details.allowed;
  }
}

/** Formats a value for an error message: short, and never throwing. */
export function show(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}...` : value);
  if (typeof value === 'number' || typeof value === 'boolean' || value === undefined || value === null) return String(value);
  if (typeof value === 'bigint') return `${value}n`;
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (typeof value === 'function') return 'a function';
  if (typeof value === 'symbol') return 'a symbol';
  return `a ${Object.prototype.toString.call(value).slice(8, -1)}`;
}

/** An `invalid-argument` error that names the argument, its value and what is allowed. */
export function invalidArgument(argument: string, value: unknown, allowed: string): MinferenceError {
  return new MinferenceError('invalid-argument', `${argument} is ${show(value)}; allowed: ${allowed}`, {
    argument,
    value,
    allowed,
  });
}

/** A `limit` error that names the argument, its value and the device limit it exceeds. */
export function limitExceeded(argument: string, value: number, limitName: string, limit: number): MinferenceError {
  return new MinferenceError('limit', `${argument} needs ${value}, but this device's ${limitName} is ${limit}`, {
    argument,
    value,
    allowed: `at most ${limit} (${limitName})`,
  });
}

/** Throws unless `value` is an integer in `[min, max]`. */
export function checkInteger(argument: string, value: unknown, min: number, max: number): asserts value is number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > max) {
    throw invalidArgument(argument, value, `an integer from ${min} to ${max}`);
  }
}

/** Throws unless `value` is one of `options`. */
export function checkOneOf<T extends string>(argument: string, value: unknown, options: readonly T[]): asserts value is T {
  if (!options.includes(value as T)) {
    throw invalidArgument(argument, value, options.map((o) => JSON.stringify(o)).join(', '));
  }
}
