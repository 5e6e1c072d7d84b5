import { Option } from 'commander';
import { verifyDevice } from '../reference/verify.js';
import type { RegisterCommand } from './app.js';
import { addDeviceOptions, type DeviceOptions, integer, withDevice } from './device.js';
import { formatTable, shorten } from './format.js';

interface VerifyCommandOptions extends DeviceOptions {
  readonly quick?: boolean;
  readonly seed?: number;
}

const MAX_FAILURES = 20;

/** Adds `minference verify`: every kernel and index builder against the float64 reference. */
export const registerVerify: RegisterCommand = (program, action) => {
  addDeviceOptions(
    program
      .command('verify')
      .description('compare every pattern, tier and head size with a float64 reference')
      .option('--quick', 'a few cases only')
      .addOption(new Option('--seed <n>', 'of the random input (default: a new one)').argParser(integer(0, 2 ** 32 - 1))),
  ).action(
    action<VerifyCommandOptions>((context, options) =>
      withDevice(context, options, async (device) => {
        const progress = context.progress('verify');
        try {
          const { tier, quick, seed } = options;
          const start = performance.now();
          const report = await verifyDevice(device, {
            signal: context.signal,
            onProgress: ({ fraction, detail }) => progress.update(fraction, shorten(detail, 40)),
            ...(tier === 'auto' ? {} : { tiers: [tier] }),
            ...(quick === undefined ? {} : { quick }),
            ...(seed === undefined ? {} : { seed }),
          });
          const seconds = (performance.now() - start) / 1000;
          const failures = report.rows.flatMap((r) => r.failures.map((f) => `FAIL ${r.tier} ${r.pattern}: ${f}\n`));
          const table = formatTable(
            [
              ['tier', 'pattern', 'type', 'cases', 'worst error', 'allowed', ''],
              ...report.rows.map((r) => [
                r.tier,
                r.pattern,
                r.dtype,
                String(r.cases),
                Number.isFinite(r.worstError) ? r.worstError.toExponential(1) : 'not finite',
                r.tolerance.toExponential(0),
                r.failures.length === 0 ? 'PASS' : 'FAIL',
              ]),
            ],
            [3, 4, 5],
          );
          const more = failures.length > MAX_FAILURES ? `... and ${failures.length - MAX_FAILURES} more\n` : '';
          const verdict = report.passed ? 'All passed' : `${failures.length} failed`;
          return {
            text: [
              `device  ${shorten(report.device, 72)}\nseed    ${report.seed}\n`,
              table,
              ...(failures.length > 0 ? [`${failures.slice(0, MAX_FAILURES).join('')}${more}`] : []),
              `${verdict}, ${seconds.toFixed(1)} s${report.passed ? '' : `; again with --seed ${report.seed}`}\n`,
            ].join('\n'),
            json: { ...report, quick: quick === true, seconds },
            failed: !report.passed,
          };
        } finally {
          progress.stop();
        }
      }),
    ),
  );
};
