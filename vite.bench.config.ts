import { builtinModules } from 'node:module';
import { defineConfig } from 'vite';

/** Bundles the benchmarks into one plain module, WGSL inlined, that runs wherever Node and Dawn do. */
export default defineConfig({
  build: {
    target: 'es2022',
    outDir: process.env['BENCH_DIR'] ?? '.build/bench',
    emptyOutDir: true,
    minify: false,
    lib: { entry: { bench: 'bench/main.ts', minference: 'src/cli/main.ts' }, formats: ['es'] },
    // Only Dawn stays outside: it is a native module.
    rollupOptions: {
      external: [/^node:/, ...builtinModules, 'webgpu'],
      // Bundled CommonJS packages ask for Node's modules by require.
      output: { banner: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);" },
    },
  },
});
