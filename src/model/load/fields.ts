import { isRecord, unsupported } from './source.js';

/** Typed access to the fields of a configuration; what does not fit is refused by its name. */
export class Fields {
  readonly #where: string;
  readonly #get: (name: string) => unknown;

  /** @param where put before the names of fields in messages */
  constructor(where: string, get: (name: string) => unknown) {
    this.#where = where;
    this.#get = get;
  }

  static of(where: string, record: Record<string, unknown>): Fields {
    return new Fields(where, (name) => record[name]);
  }

  /** The value as it is; JSON's null counts as missing. */
  raw(name: string): unknown {
    return this.#get(name) ?? undefined;
  }

  has(name: string): boolean {
    return this.raw(name) !== undefined;
  }

  error(name: string, allowed: string): Error {
    return unsupported(`${this.#where}${name}`, this.raw(name), allowed);
  }

  /** A whole number from 1 (or `min`) on. */
  count(name: string, fallback?: number, min = 1): number {
    const value = this.raw(name) ?? fallback;
    if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < min)
      throw this.error(name, `an integer from ${min} on`);
    return value;
  }

  optionalCount(name: string, min = 1): number | undefined {
    return this.has(name) ? this.count(name, undefined, min) : undefined;
  }

  /** A positive number. */
  positive(name: string, fallback?: number): number {
    const value = this.raw(name) ?? fallback;
    if (typeof value !== 'number' || !Number.isFinite(value) || value <= 0) throw this.error(name, 'a positive number');
    return value;
  }

  text(name: string): string | undefined {
    const value = this.raw(name);
    if (value !== undefined && typeof value !== 'string') throw this.error(name, 'a string');
    return value;
  }

  flag(name: string, fallback: boolean): boolean {
    const value = this.raw(name) ?? fallback;
    if (typeof value !== 'boolean') throw this.error(name, 'true, false');
    return value;
  }

  /** A list of `length` positive numbers. */
  positives(name: string, length: number): number[] {
    const value = this.raw(name);
    if (!Array.isArray(value) || value.length !== length || !value.every((x) => typeof x === 'number' && x > 0)) {
      throw this.error(name, `a list of ${length} positive numbers`);
    }
    return value as number[];
  }

  /** The fields of an object, or undefined when it is missing. */
  object(name: string): Fields | undefined {
    const value = this.raw(name);
    if (value === undefined) return undefined;
    if (!isRecord(value)) throw this.error(name, 'an object');
    return Fields.of(`${this.#where}${name}.`, value);
  }

  /** Throws unless the field is missing or one of the values. */
  only(name: string, ...allowed: (string | number | boolean)[]): void {
    const value = this.raw(name);
    if (value !== undefined && !allowed.includes(value as string))
      throw this.error(name, allowed.map((x) => JSON.stringify(x)).join(', '));
  }
}
