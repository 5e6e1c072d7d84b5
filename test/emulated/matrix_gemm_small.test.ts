import { matrixGemmCases } from '../suite/matrix_gemm.js';
import { runSuite } from '../suites/run_suite.js';

// Emulating a block takes as many seconds as it has thousands of elements.
await runSuite(matrixGemmCases.filter(({ name }) => /64x64 sg|groups|shares.*: (32|64) rows/.test(name)));
