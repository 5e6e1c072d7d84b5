import { modelCases } from '../suite/model.js';
import { runSuite } from './run_suite.js';

await runSuite(modelCases);
