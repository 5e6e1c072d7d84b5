import { existsSync } from 'node:fs';
import { playwright } from '@vitest/browser-playwright';
import { configDefaults, defineConfig } from 'vitest/config';

// SEED=123 npm test repeats the run that printed 123.
const seed = Number(process.env['SEED'] ?? Date.now() % 2 ** 31);
const chromium = process.env['CHROMIUM'] ?? '/usr/bin/chromium';
const swiftshader = process.env['SWIFTSHADER_ICD'] ?? '/usr/lib/chromium/vk_swiftshader_icd.json';

const absent = (path: string, what: string, variable: string): string =>
  existsSync(path) ? '' : `no ${what} at ${path} (set ${variable}, or run scripts/setup.sh --tests)`;

const chromiumMissing = absent(chromium, 'Chromium', 'CHROMIUM');

// Chromium's own software adapter, so that the result does not depend on the machine's GPU.
const chromiumArgs = [
  '--enable-unsafe-webgpu',
  '--use-webgpu-adapter=swiftshader',
  '--enable-features=Vulkan',
  '--use-vulkan=swiftshader',
  '--no-sandbox',
];
const headlessChromium = {
  enabled: true,
  headless: true,
  screenshotFailures: false,
  provider: playwright({
    launchOptions: {
      executablePath: chromium,
      args: chromiumArgs,
    },
  }),
  instances: [{ browser: 'chromium' as const }],
};

const suites = ['test/suites/*.test.ts'];
// Files of a suite share a device and with it the compiled pipelines, which take most of the time on software adapters.
const shared = { include: suites, isolate: false };
// Other adapters than the first run in one worker, after the rest, so that there is one device.
const alone = { ...shared, maxWorkers: 1, sequence: { groupOrder: 1 } };

export default defineConfig({
  build: {
    target: 'es2022',
    sourcemap: true,
    lib: {
      entry: {
        index: 'src/index.ts',
        node: 'src/node.ts',
        reference: 'src/reference/index.ts',
        model: 'src/model/index.ts',
        'model-node': 'src/model/load/node.ts',
        cli: 'src/cli/main.ts',
      },
      formats: ['es'],
    },
    rollupOptions: {
      external: [
        /^node:/,
        '@huggingface/jinja',
        '@huggingface/tokenizers',
        /^@noble\/hashes/,
        '@petamoriken/float16',
        'cli-progress',
        'commander',
        'webgpu',
      ],
    },
  },
  test: {
    exclude: [...configDefaults.exclude, 'dist'],
    // A software adapter compiles and runs everything on the CPU.
    testTimeout: 900_000,
    hookTimeout: 900_000,
    maxWorkers: 2,
    setupFiles: ['test/setup.ts'],
    provide: { seed, runtime: 'dawn', tiers: 'portable f16', brief: false, missing: '' },
    projects: [
      { extends: true, test: { name: 'unit', include: ['test/unit/*.test.ts'] } },
      { extends: true, test: { name: 'null', include: ['test/null/*.test.ts'], pool: 'forks' } },
      { extends: true, test: { ...shared, name: 'gpu', pool: 'forks' } },
      // Matrix kernels, emulated on devices without subgroup matrices; of products only the smallest blocks.
      {
        extends: true,
        test: {
          name: 'emulated',
          include: ['matrix', 'matrix_index', 'matrix_gemm_small', 'tune'].map((s) => `test/emulated/${s}.test.ts`),
          pool: 'forks',
          provide: { tiers: 'f16' },
        },
      },
      // Products in all blocks take six minutes, so `npm run test:matrix` runs them alone.
      {
        extends: true,
        test: { name: 'matrix', include: ['test/emulated/matrix_gemm.test.ts'], pool: 'forks', provide: { tiers: 'f16' } },
      },
      {
        extends: true,
        test: {
          ...alone,
          name: 'swiftshader',
          // Chromium has the same driver and runs all files; `verify` is about every attention kernel.
          include: ['bad_input', 'index_builders', 'methods', 'patterns', 'scheduler', 'verify'].map(
            (s) => `test/suites/${s}.test.ts`,
          ),
          pool: 'forks',
          env: { VK_DRIVER_FILES: swiftshader },
          provide: { tiers: 'portable', brief: true, missing: absent(swiftshader, 'SwiftShader', 'SWIFTSHADER_ICD') },
        },
      },
      {
        extends: true,
        // The demo page, built and opened in a Chromium of its own.
        test: {
          name: 'demo',
          include: ['test/demo/*.test.ts'],
          provide: { chromium, chromiumArgs, missing: chromiumMissing },
        },
      },
      {
        extends: true,
        // Node-only modules are imported only in Node by the wrappers that all projects share.
        optimizeDeps: { include: ['fast-check', '@petamoriken/float16'], exclude: ['webgpu'] },
        test: {
          ...alone,
          name: 'browser',
          provide: { runtime: 'browser', brief: true, missing: chromiumMissing },
          ...(chromiumMissing ? {} : { browser: headlessChromium }),
        },
      },
    ],
  },
});
