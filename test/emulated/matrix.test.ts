import { matrixCases } from '../suite/matrix.js';
import { runSuite } from '../suites/run_suite.js';

await runSuite(matrixCases);
