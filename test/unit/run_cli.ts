import { runCli } from '../../src/cli/app.js';

/** Exit code of the command line tool, and what it printed. */
export interface Printed {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs the command line tool and keeps what it prints. */
export async function runUntil(args: readonly string[], signal?: AbortSignal): Promise<Printed> {
  let stdout = '';
  let stderr = '';
  const io = {
    stdout: (text: string) => {
      stdout += text;
    },
    stderr: (text: string) => {
      stderr += text;
    },
  };
  return { code: await runCli(args, io, signal), stdout, stderr };
}

/** {@link runUntil} without a signal. */
export const run = (...args: string[]): Promise<Printed> => runUntil(args);
