import { describe, inject, test } from 'vitest';
import { openDevice } from '../../src/device/open.js';
import { availableTiers, profileDevice, TIERS } from '../../src/device/profile.js';
import { compileOnce } from '../suite/compile_once.js';
import { isSkipped, runCase, type SuiteCase, type SuiteContext } from '../suite/context.js';

declare module 'vitest' {
  interface ProvidedContext {
    /** All random input derives from it; set it with the environment variable SEED. */
    seed: number;
    /** What runs the suite: `dawn` in Node or `browser`. */
    runtime: 'dawn' | 'browser';
    /** Tiers to run, separated by spaces. Tiers that the device lacks are skipped by name. */
    tiers: string;
    /** A choice of sizes and shapes, see {@link SuiteContext}. */
    brief: boolean;
    /** Why this project cannot run here; empty when it can. */
    missing: string;
  }
}

/** The device of all files that one worker runs. */
const opened: { device?: Promise<GPUDevice> } = {};

async function openOnce(): Promise<GPUDevice> {
  const device =
    inject('runtime') === 'dawn' ? await (await import('../../src/device/node.js')).openNodeDevice() : await openDevice();
  return compileOnce(device);
}

/** Registers the cases for every tier of the project, on one device of the project's adapter. */
export async function runSuite(cases: readonly SuiteCase[]): Promise<void> {
  const missing = inject('missing');
  if (missing) {
    console.warn(`skipped: ${missing}`);
    describe(`skipped: ${missing}`, () => {
      for (const { name } of cases) test.skip(name);
    });
    return;
  }
  const runtime = inject('runtime');
  opened.device ??= openOnce();
  const device = await opened.device;
  const wanted = inject('tiers').split(' ');
  for (const tier of TIERS.filter((t) => wanted.includes(t))) {
    if (!availableTiers(device).includes(tier)) {
      describe(`skipped: this adapter cannot run tier ${tier}`, () => {
        for (const { name } of cases) test.skip(name);
      });
      continue;
    }
    const profile = profileDevice(device, tier);
    const name = `${runtime}, ${profile.name}, tier ${tier}`;
    const ctx: SuiteContext = { device, profile, seed: inject('seed'), name, brief: inject('brief') };
    describe(`${profile.name}, tier ${tier}`, () => {
      for (const c of cases) {
        test.skipIf(isSkipped(c, ctx))(c.name, () => runCase(c, ctx));
      }
    });
  }
}
