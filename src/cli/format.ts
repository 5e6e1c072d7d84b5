/** One JSON object on one line; numbers that JSON cannot hold become null, values that it cannot show become text. */
export function jsonText(value: unknown): string {
  const replace = (_key: string, x: unknown): unknown => {
    if (typeof x === 'bigint' || typeof x === 'function' || typeof x === 'symbol') return String(x);
    if (ArrayBuffer.isView(x)) return Array.from(x as unknown as ArrayLike<number>);
    return x;
  };
  return `${JSON.stringify(value, replace)}\n`;
}

/** Milliseconds with three or so significant digits. */
export function formatMs(ms: number): string {
  const digits = ms < 1 ? 3 : ms < 10 ? 2 : ms < 100 ? 1 : 0;
  return `${ms.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits })} ms`;
}

/** Bytes in binary units. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit + 1 < units.length) {
    value /= 1024;
    unit++;
  }
  return `${value.toLocaleString('en-US', { maximumFractionDigits: unit === 0 || value >= 100 ? 0 : 1 })} ${units[unit]}`;
}

/** A relative error: three decimals, or scientific when it is small. */
export function formatError(error: number): string {
  if (!Number.isFinite(error)) return 'not finite';
  return error === 0 ? '0' : error >= 0.001 ? error.toFixed(4) : error.toExponential(1);
}

/** A share of one in percent. */
export function formatPercent(share: number): string {
  return `${(100 * share).toFixed(1)} %`;
}

/** An integer with thousands separators. */
export function formatCount(n: number): string {
  return n.toLocaleString('en-US');
}

/** Cuts text that is longer than `width`. */
export function shorten(text: string, width: number): string {
  return text.length <= width ? text : `${text.slice(0, width - 3)}...`;
}

/**
 * Lines of a table whose columns are padded to their widest cell, two spaces apart.
 *
 * @param right columns (by number) that are aligned right
 */
export function formatTable(rows: readonly (readonly string[])[], right: readonly number[] = []): string {
  const widths: number[] = [];
  for (const row of rows)
    row.forEach((cell, i) => {
      widths[i] = Math.max(widths[i] ?? 0, cell.length);
    });
  const lines = rows.map((row) =>
    row
      .map((cell, i) => (right.includes(i) ? cell.padStart(widths[i] ?? 0) : cell.padEnd(widths[i] ?? 0)))
      .join('  ')
      .trimEnd(),
  );
  return `${lines.join('\n')}\n`;
}
