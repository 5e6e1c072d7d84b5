import { patternCases } from '../suite/patterns.js';
import { runSuite } from './run_suite.js';

await runSuite(patternCases);
