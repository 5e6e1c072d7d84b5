import { defineConfig } from 'vite';

/** Bundles the tuner into one plain module, WGSL inlined: `vite build -c bench/tune/vite.config.ts`. */
export default defineConfig({
  build: {
    target: 'es2022',
    outDir: process.env['TUNE_DIR'] ?? '.build/tune',
    emptyOutDir: true,
    minify: false,
    lib: { entry: { matrix_tune: 'bench/tune/matrix_tune.ts' }, formats: ['es'] },
    rollupOptions: {
      external: [/^node:/, 'webgpu'],
      output: { banner: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);" },
    },
  },
});
