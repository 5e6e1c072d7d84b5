import { indexBuilderCases } from '../suite/index_builders.js';
import { runSuite } from './run_suite.js';

await runSuite(indexBuilderCases);
