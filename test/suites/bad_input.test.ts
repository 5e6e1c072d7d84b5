import { badInputCases } from '../suite/bad_input.js';
import { runSuite } from './run_suite.js';

await runSuite(badInputCases);
