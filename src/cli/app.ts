import { Command, CommanderError } from 'commander';
import { MinferenceError } from '../errors.js';
import { registerAsk } from './ask.js';
import { registerCapture } from './capture.js';
import { registerConfig } from './config.js';
import { registerEval } from './eval.js';
import { jsonText } from './format.js';
import { registerGenerate } from './generate.js';
import { registerInfo } from './info.js';
import { registerPrefill } from './prefill.js';
import { type Progress, startProgress } from './progress.js';
import { registerRecall } from './recall.js';
import { registerSearch } from './search.js';
import { registerVerify } from './verify.js';

/** Where a command's text goes. */
export interface Io {
  readonly stdout: (text: string) => void;
  readonly stderr: (text: string) => void;
  /** The terminal that shows progress bars; without one, progress is plain lines on `stderr`. */
  readonly terminal?: NodeJS.WriteStream | undefined;
}

/** What a running command may use. */
export interface CliContext {
  /** Aborted by Ctrl-C. */
  readonly signal: AbortSignal;
  /** Writes a line for people, never to stdout. */
  readonly note: (text: string) => void;
  /** Writes text to stdout as it comes, before the result's; nothing with `--json`. */
  readonly write: (text: string) => void;
  /** Shows the progress of a long step until `stop()`. */
  readonly progress: (label: string) => Progress;
}

/** What a command found: printed as `json` with `--json`, else as `text`. */
export interface CommandResult {
  readonly json: Readonly<Record<string, unknown>>;
  readonly text: string;
  /** The command worked but found something wrong: exit code 1. */
  readonly failed?: boolean;
}

/** Runs a command with its parsed options. */
export type CommandAction<Options> = (context: CliContext, options: Options) => Promise<CommandResult>;

/** Adds a command to the program: each command is one file that exports such a function. */
export type RegisterCommand = (
  program: Command,
  action: <Options>(run: CommandAction<Options>) => (options: Options) => Promise<void>,
) => void;

const COMMANDS: readonly RegisterCommand[] = [
  registerAsk,
  registerGenerate,
  registerEval,
  registerPrefill,
  registerVerify,
  registerInfo,
  registerConfig,
  registerRecall,
  registerSearch,
  registerCapture,
];

const EXIT_FAILED = 1;
const EXIT_USAGE = 2;
const EXIT_INTERRUPTED = 130;

/**
 * Runs `minference` with these arguments (without the program's name).
 *
 * @returns the exit code: 0, 1 after a failure, 2 for wrong usage, 130 when `signal` stopped it.
 */
export async function runCli(
  args: readonly string[],
  io: Io,
  signal: AbortSignal = new AbortController().signal,
): Promise<number> {
  const json = args.includes('--json');
  let exitCode = 0;
  const fail = (code: number, error: ErrorReport): number => {
    io.stderr(`${code === EXIT_INTERRUPTED ? '' : 'error: '}${error.message}\n`);
    if (json) io.stdout(jsonText({ error }));
    return code;
  };
  const action =
    <Options>(run: CommandAction<Options>) =>
    async (options: Options): Promise<void> => {
      const context: CliContext = {
        signal,
        note: (text) => io.stderr(`${text}\n`),
        write: (text) => {
          if (!json) io.stdout(text);
        },
        progress: (label) => startProgress(label, io),
      };
      const result = await run(context, options);
      io.stdout(json ? jsonText(result.json) : result.text);
      if (result.failed) exitCode = EXIT_FAILED;
    };

  const program = new Command('minference')
    .description('Sparse prefill attention (MInference) on WebGPU: run it, time it, check it.')
    .option('--json', 'print one JSON object on stdout and nothing else there')
    .configureHelp({ showGlobalOptions: true, helpWidth: 80 })
    .showHelpAfterError('(--help lists the options)');
  for (const register of COMMANDS) register(program, action);
  let usage = '';
  let help = '';
  for (const command of [program, ...program.commands]) {
    command.exitOverride().configureOutput({
      writeOut: (text) => {
        if (json) help += text;
        else io.stdout(text);
      },
      writeErr: (text) => {
        usage += text;
      },
    });
  }

  try {
    await program.parseAsync(args, { from: 'user' });
    return exitCode;
  } catch (error) {
    if (signal.aborted) return fail(EXIT_INTERRUPTED, { code: 'aborted', message: 'interrupted' });
    if (error instanceof CommanderError) {
      if (error.exitCode === 0) {
        if (json) io.stdout(jsonText({ help }));
        return 0;
      }
      if (error.code === 'commander.help') {
        if (json) return fail(EXIT_USAGE, { code: 'usage', message: 'no command given' });
        io.stderr(usage);
        return EXIT_USAGE;
      }
      const message = usage.trim().replace(/^error: /, '') || error.message;
      return fail(EXIT_USAGE, { code: 'usage', message });
    }
    if (error instanceof MinferenceError) {
      const { code, message, argument, value, allowed } = error;
      return fail(EXIT_FAILED, { code, message, argument, value, allowed });
    }
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
    return fail(EXIT_FAILED, { code: 'internal', message: text });
  }
}

interface ErrorReport {
  readonly code: string;
  readonly message: string;
  readonly argument?: string | undefined;
  readonly value?: unknown;
  readonly allowed?: string | undefined;
}
