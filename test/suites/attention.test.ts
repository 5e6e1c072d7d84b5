import { attentionCases } from '../suite/attention.js';
import { runSuite } from './run_suite.js';

await runSuite(attentionCases);
