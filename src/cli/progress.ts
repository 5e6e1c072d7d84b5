import { SingleBar } from 'cli-progress';
import type { Io } from './app.js';

/** A progress display. */
export interface Progress {
  /** Shows a share of the work, 0 to 1, and what is being done. */
  readonly update: (fraction: number, detail?: string) => void;
  readonly stop: () => void;
}

/** Seconds between two plain lines. */
const LINE_INTERVAL = 10;

/** Starts a progress display: a bar on a terminal, now and then a line in a pipe. */
export function startProgress(label: string, io: Pick<Io, 'stderr' | 'terminal'>): Progress {
  return io.terminal ? bar(label, io.terminal) : lines(label, io.stderr);
}

function bar(label: string, stream: NodeJS.WriteStream): Progress {
  const single = new SingleBar({
    stream,
    format: `${label} [{bar}] {percentage} %  {detail}`,
    barsize: 24,
    barCompleteChar: '#',
    barIncompleteChar: '.',
    clearOnComplete: true,
    hideCursor: true,
    linewrap: false,
    // cli-progress would otherwise handle signals itself and leave the abort to nobody.
    gracefulExit: false,
  });
  single.start(1000, 0, { detail: '' });
  return {
    update: (fraction, detail = '') => single.update(Math.floor(1000 * fraction), { detail }),
    stop: () => single.stop(),
  };
}

function lines(label: string, write: (text: string) => void): Progress {
  let last = performance.now();
  write(`${label} ...\n`);
  return {
    update: (fraction, detail = '') => {
      const now = performance.now();
      if (now - last < 1000 * LINE_INTERVAL || fraction >= 1) return;
      last = now;
      write(`${label} ${Math.floor(100 * fraction)} %${detail ? `  ${detail}` : ''}\n`);
    },
    stop: () => {},
  };
}
