import { defineConfig } from 'vite';

/** Bundles the GPU suite into one plain module for `deno test`, WGSL and test libraries inlined. */
export default defineConfig({
  build: {
    target: 'es2022',
    outDir: '.build/deno',
    emptyOutDir: true,
    minify: false,
    lib: { entry: { 'suite.test': 'test/deno/suite.ts' }, formats: ['es'] },
  },
});
