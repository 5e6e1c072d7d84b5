import { matrixGemmCases } from '../suite/matrix_gemm.js';
import { runSuite } from '../suites/run_suite.js';

await runSuite(matrixGemmCases);
