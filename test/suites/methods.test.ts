import { methodCases } from '../suite/methods.js';
import { runSuite } from './run_suite.js';

await runSuite(methodCases);
