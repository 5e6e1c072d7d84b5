import { openDevice } from '../../src/device/open.js';
import { availableTiers, profileDevice, TIERS } from '../../src/device/profile.js';
import { SUITES } from '../suite/all.js';
import { compileOnce } from '../suite/compile_once.js';
import { isSkipped, runCase, type SuiteContext } from '../suite/context.js';

/** The part of Deno that the runner needs. */
declare const Deno: {
  readonly env: { get(name: string): string | undefined };
  test(options: {
    name: string;
    ignore: boolean;
    sanitizeOps: boolean;
    sanitizeResources: boolean;
    fn: () => Promise<void>;
  }): void;
};

const seed = Number(Deno.env.get('SEED') ?? Date.now() % 2 ** 31);
const device = compileOnce(await openDevice());
const available = availableTiers(device);
// Tiers that this adapter lacks are listed as ignored, but for the matrix tier, which no wgpu offers.
for (const tier of TIERS.filter((t) => t !== 'matrix' || available.includes(t))) {
  const ignored = !available.includes(tier);
  const profile = profileDevice(device, ignored ? 'auto' : tier);
  const ctx: SuiteContext = { device, profile, seed, name: `Deno, ${profile.name}, tier ${tier}`, brief: true };
  for (const [suite, cases] of Object.entries(SUITES)) {
    for (const c of cases) {
      Deno.test({
        name: `${tier}: ${suite}: ${c.name}`,
        ignore: ignored || isSkipped(c, ctx),
        // The device outlives each test on purpose.
        sanitizeOps: false,
        sanitizeResources: false,
        fn: () => runCase(c, ctx),
      });
    }
  }
}
