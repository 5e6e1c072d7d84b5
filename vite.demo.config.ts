import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vite';

const here = (path: string): string => fileURLToPath(new URL(path, import.meta.url));

/** The demo page: `npm run demo` serves it, `npm run build:demo` makes a folder that any web server can serve. */
export default defineConfig({
  root: here('demo'),
  // Relative addresses: the page works in any folder of a site.
  base: './',
  server: { fs: { allow: [here('.')] } },
  build: {
    target: 'es2022',
    outDir: process.env['DEMO_DIR'] ?? here('.build/demo'),
    emptyOutDir: true,
    // The model is a file of its own, which the browser caches.
    assetsInlineLimit: 0,
  },
});
