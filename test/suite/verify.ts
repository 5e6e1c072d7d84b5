import { verifyDevice } from '../../src/reference/verify.js';
import { assert, type SuiteCase } from './context.js';

/** What users run to check their adapter. */
export const verifyCases: SuiteCase[] = [
  {
    name: 'verify: every pattern passes on this adapter',
    run: async (ctx) => {
      const fractions: number[] = [];
      const report = await verifyDevice(ctx.device, {
        tiers: [ctx.profile.tier],
        quick: true,
        seed: ctx.seed,
        onProgress: (p) => fractions.push(p.fraction),
      });
      assert(report.rows.length >= 8 && report.rows.every((r) => r.cases > 0), 'every pattern and element type is a row');
      const failures = report.rows.flatMap((r) => r.failures);
      assert(report.passed && failures.length === 0, failures.join('\n'));
      assert(
        report.rows.every((r) => r.worstError > 0 && r.worstError <= r.tolerance),
        'errors are measured',
      );
      assert(
        fractions.every((f, i) => i === 0 || f >= (fractions[i - 1] ?? 0)),
        'progress rises',
      );
      const reason = new Error('enough');
      const error: unknown = await verifyDevice(ctx.device, { quick: true, signal: AbortSignal.abort(reason) }).catch((e) => e);
      assert(error === reason, 'an abort rejects with its reason');
    },
  },
];
