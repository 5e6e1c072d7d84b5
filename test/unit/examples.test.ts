import { execFile } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';

const EXPECTED: Readonly<Record<string, RegExp>> = {
  'answer.mjs':
    /^\d+ tokens\nWhat is the pass key\? The pass key is 48213\.\nWhat is the code of blue-otter-512\? The code of blue-otter-512 is 90417\.\n$/,
  'own_encoder.mjs':
    /^\d+ dispatches, \d+ bytes of workspace and index\nfirst row of head 0 is v's first row: (-?[\d.e-]+(, |\n)){4}$/,
};

// They import the package as its users do, so it must have been built.
const built = existsSync('dist/index.js') && existsSync('dist/node.js');

test.skipIf(!built)('every example runs and prints what it should', async () => {
  // browser.html has a test of its own, in Chromium.
  expect(readdirSync('examples').sort()).toEqual([...Object.keys(EXPECTED), 'browser.html'].sort());
  for (const [file, output] of Object.entries(EXPECTED)) {
    const { stdout } = await promisify(execFile)(process.execPath, [`examples/${file}`]);
    expect(stdout).toMatch(output);
  }
});
