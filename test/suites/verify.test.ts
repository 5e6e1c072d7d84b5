import { verifyCases } from '../suite/verify.js';
import { runSuite } from './run_suite.js';

await runSuite(verifyCases);
