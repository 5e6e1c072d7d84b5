import { spawn } from 'node:child_process';
import type { StaticPattern } from '../src/index.js';
import { Random } from '../src/reference/random.js';
import { type BenchCase, paramsOf } from './ours.js';
import type { Absence, BenchFile, BenchRow } from './results.js';

/** Who is measured beside us: the program that does it, and the cases that it can do. */
const PROGRAMS = {
  torch: { command: ['python3', 'bench/peers/peers.py', 'torch'], takes: ({ pattern }: BenchCase) => pattern.kind === 'dense' },
  minference: {
    command: ['python3', 'bench/peers/peers.py', 'minference'],
    takes: ({ pattern }: BenchCase) =>
      ['a_shape', 'vertical_slash', 'static_vertical_slash', 'block_sparse'].includes(pattern.kind),
  },
  // A tenth of our speed: longer inputs would only cost time.
  ort: {
    command: [process.execPath, 'bench/peers/ort.mjs'],
    takes: ({ pattern, seqLen }: BenchCase) => pattern.kind === 'dense' && seqLen <= 32_768,
  },
} as const;

export type Peer = keyof typeof PROGRAMS;
export const PEERS = Object.keys(PROGRAMS) as Peer[];

/** Whether a peer can do a case. */
export function takes(peer: Peer, benchCase: BenchCase): boolean {
  return PROGRAMS[peer].takes(benchCase);
}

/** How to run a peer. */
export interface PeerOptions {
  /** Where scripts/fetch_peers.sh put the peers' files. */
  readonly folder: string;
  /** Seconds after which no new case is begun. */
  readonly seconds: number;
  readonly budgetMs: number;
  readonly checkRows: number;
}

/** What a peer's program prints. */
export type PeerResult<Row = BenchRow> = Pick<BenchFile<Row>, 'software' | 'ceilings' | 'rows' | 'absent'>;

/**
 * The columns and diagonals that peers are timed with, and we too as `static_vertical_slash`: 1000 random columns;
 * diagonals 0 to 4095, then 40 runs of 50 at random distances.
 */
export function givenIndex(seqLen: number): StaticPattern {
  const random = new Random(1);
  const columns = random.distinct(1000, 0, seqLen - 1);
  const runs = [0, Math.min(4096, seqLen) - 1];
  const stretch = Math.floor((seqLen - 4096) / 40);
  for (let i = 0; i < 40 && stretch > 50; i++) {
    // From the first diagonal of the stretch on, at least one free.
    const lo = 4096 + i * stretch + random.integer(1, stretch - 50);
    runs.push(lo, lo + 49);
  }
  return { kind: 'static_vertical_slash', columns, runs };
}

/** Runs a peer's program on the cases. */
export async function runPeer(peer: Peer, cases: readonly BenchCase[], options: PeerOptions): Promise<PeerResult> {
  const { folder, seconds, budgetMs, checkRows } = options;
  const request = {
    folder,
    seconds,
    budgetMs,
    checkRows,
    cases: cases.map(({ pattern, ...shape }) => {
      const { columns, runs } = givenIndex(shape.seqLen);
      return { ...shape, pattern: pattern.kind, params: paramsOf(pattern), columns, runs };
    }),
  };
  const result = await runProgram<Omit<BenchRow, 'tflops'>>(peer, PROGRAMS[peer].command, request);
  return { ...result, rows: result.rows.map(withTflops) };
}

/** Runs a program: JSON in, JSON out. A peer that cannot run at all is listed as absent. */
export async function runProgram<Row>(
  peer: string,
  [program, ...args]: readonly [string, ...string[]],
  request: { readonly folder: string; readonly seconds: number; readonly [name: string]: unknown },
): Promise<PeerResult<Row>> {
  const absent = (reason: string): PeerResult<Row> => ({
    software: {},
    ceilings: {},
    rows: [],
    absent: [{ impl: peer, reason }],
  });
  // Compilers that a case starts may take a while past the last begun case.
  const child = spawn(program, args, { timeout: (request.seconds + 120) * 1000 });
  let out = '';
  let errors = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    out += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    process.stderr.write(text);
    errors = (errors + text).slice(-2000);
  });
  child.stdin.on('error', () => {}); // it ended before it read everything: its exit code tells
  child.stdin.end(JSON.stringify(request));
  const failure = await new Promise<string | undefined>((resolve) => {
    child.on('error', (error) => resolve(error.message));
    child.on('close', (code, signal) => {
      const last = errors.trimEnd().split('\n').at(-1);
      resolve(code === 0 ? undefined : `${args[0]} ended with ${signal ?? code}: ${last}`);
    });
  });
  // Compilers and libraries may print too: the result is the last whole line that begins as one.
  const last = out
    .slice(0, out.lastIndexOf('\n') + 1)
    .split('\n')
    .findLast((line) => line.startsWith('{"software"'));
  if (last === undefined) return absent(failure ?? `${args[0]} printed no result`);
  const result = JSON.parse(last) as PeerResult<Row>;
  const missing: readonly Absence[] = failure === undefined ? result.absent : [...result.absent, { impl: peer, reason: failure }];
  return { ...result, absent: missing };
}

function withTflops(row: Omit<BenchRow, 'tflops'>): BenchRow {
  const pairs = (row.density * row.heads * row.seqLen * (row.seqLen + 1)) / 2;
  return { ...row, tflops: (4 * row.headDim * pairs) / row.ms / 1e9 };
}
