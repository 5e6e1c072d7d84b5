// Adds up the results of all test runners: node scripts/summary.mjs FAILED_STEPS DENO_LOG VITEST_JSON...
// (FAILED_STEPS: failed commands that report no tests, such as the linter; each counts as one failure).
import { readFileSync } from 'node:fs';
import { stripVTControlCharacters } from 'node:util';

const [failedSteps, denoFile, ...vitestFiles] = process.argv.slice(2);
const total = { passed: 0, failed: Number(failedSteps), skipped: 0 };
for (const file of vitestFiles) {
  try {
    const vitest = JSON.parse(readFileSync(file, 'utf8'));
    total.passed += vitest.numPassedTests;
    total.failed += vitest.numFailedTests;
    total.skipped += vitest.numPendingTests + (vitest.numTodoTests ?? 0);
    // A file that could not be loaded has no test to fail.
    total.failed += vitest.testResults.filter((f) => f.status === 'failed' && f.assertionResults.length === 0).length;
    // A crashed worker or an error outside of any test.
    if (!vitest.success && vitest.numFailedTests === 0 && vitest.numFailedTestSuites === 0) total.failed++;
  } catch (error) {
    console.error(`no vitest results: ${error.message}`);
    total.failed++;
  }
}
const deno = /(\d+) passed[^|]*\| (\d+) failed(?: \| (\d+) ignored)?/.exec(
  stripVTControlCharacters(readFileSync(denoFile, 'utf8')),
);
if (deno) {
  total.passed += Number(deno[1]);
  total.failed += Number(deno[2]);
  total.skipped += Number(deno[3] ?? 0);
} else {
  console.error('no deno results');
  total.failed++;
}
console.log(`\n${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`);
process.exit(total.failed === 0 && total.passed > 0 ? 0 : 1);
