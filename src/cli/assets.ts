import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { MinferenceError } from '../errors.js';

/**
 * A file or folder that ships with the package, found from this module: next to `dist/` in the package, next to `src/` in a checkout.
 *
 * @param option what to give instead when it is not installed
 * @throws {@link MinferenceError} `file`
 */
export function assetPath(name: string, option: string): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  for (let up = 0; up < 4; up++) {
    const path = join(folder, 'assets', name);
    if (existsSync(path)) return path;
    folder = dirname(folder);
  }
  throw new MinferenceError('file', `${name} is not installed with this package; give ${option}`, { argument: option });
}
