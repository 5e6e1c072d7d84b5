import { schedulerCases } from '../suite/scheduler.js';
import { runSuite } from './run_suite.js';

await runSuite(schedulerCases);
