#!/usr/bin/env node
import process from 'node:process';
import { runCli } from './app.js';

const controller = new AbortController();
process.on('SIGINT', () => {
  // The first Ctrl-C lets the GPU finish what it has; the second does not wait.
  if (controller.signal.aborted) process.exit(130);
  controller.abort();
});
// A reader that closed the pipe (`minference info | head -1`) wants no more.
process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1));

process.exitCode = await runCli(
  process.argv.slice(2),
  {
    stdout: (text) => process.stdout.write(text),
    stderr: (text) => process.stderr.write(text),
    terminal: process.stderr.isTTY ? process.stderr : undefined,
  },
  controller.signal,
);
