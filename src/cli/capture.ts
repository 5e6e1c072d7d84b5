import { mkdir, open } from 'node:fs/promises';
import { join } from 'node:path';
import { Option } from 'commander';
import { invalidArgument } from '../errors.js';
import { type CapturedLayer, captureAttention } from '../model/capture.js';
import type { CliContext, CommandResult, RegisterCommand } from './app.js';
import { assetPath } from './assets.js';
import { integer, withDevice } from './device.js';
import { formatBytes, formatCount } from './format.js';
import { readTextFile } from './generate.js';
import { addModelOptions, loadWeights, type ModelOptions, withModelFiles } from './model.js';

interface CaptureCommandOptions extends ModelOptions {
  readonly text?: string;
  readonly seqLen?: number;
  readonly layers?: readonly number[];
  readonly out: string;
}

const MAX_LENGTH = 2 ** 26;
/** The text unless given. */
const TEXT = 'text/austen-persuasion-ch1-2.txt';

const NOTES = `
Writes OUT/layer0.safetensors and so on, each with q [heads, tokens, head size], k and v
[kv heads, tokens, head size] after RoPE, in f16 (f32 in the portable tier): input of
"prefill", "recall" and "search".

Examples:
  minference capture --model model.gguf --seq-len 4096 --out qkv
  minference search --qkv qkv/layer*.safetensors --target-density 0.25 --output patterns.json`;

/** Adds `minference capture`: queries, keys and values of a model's layers, as files. */
export const registerCapture: RegisterCommand = (program, action) => {
  addModelOptions(
    program
      .command('capture')
      .description("write queries, keys and values of a model's layers on a text")
      .option('--text <file>', 'the text; - is stdin; default: two chapters of a novel')
      .addOption(new Option('--seq-len <n>', 'tokens; default: the whole text').argParser(integer(1, MAX_LENGTH)))
      .addOption(
        new Option('--layers <n,...>', 'counted from 0; default: all').argParser((text: string) =>
          text.split(',').map(integer(0, MAX_LENGTH)),
        ),
      )
      .requiredOption('--out <folder>', 'where the files go'),
  )
    .addHelpText('after', NOTES)
    .action(action<CaptureCommandOptions>(run));
};

async function run(context: CliContext, options: CaptureCommandOptions): Promise<CommandResult> {
  const text = await readTextFile(options.text ?? assetPath(TEXT, '--text'));
  return withModelFiles(context, options, (model) =>
    withDevice(context, options, async (device) => {
      const { tokenizer, loaded } = model;
      const all = tokenizer.encode(text);
      const seqLen = options.seqLen ?? all.length;
      if (seqLen > all.length) throw invalidArgument('--seq-len', seqLen, `at most the ${all.length} tokens of the text`);
      const bad = options.layers?.find((layer) => layer >= loaded.config.layers);
      if (bad !== undefined) throw invalidArgument('--layers', bad, `numbers below ${loaded.config.layers}`);
      const runtime = await loadWeights(context, device, model, options, { contextLength: seqLen });
      const progress = context.progress('capture');
      try {
        await mkdir(options.out, { recursive: true });
        const files: { layer: number; path: string; bytes: number }[] = [];
        await captureAttention(
          runtime,
          all.slice(0, seqLen),
          async (captured) => {
            const path = join(options.out, `layer${captured.layer}.safetensors`);
            files.push({ layer: captured.layer, path, bytes: await writeSafetensors(path, captured) });
          },
          {
            ...(options.layers ? { layers: options.layers } : {}),
            signal: context.signal,
            onProgress: ({ fraction, tokens }) =>
              progress.update(fraction, `${formatCount(tokens)} of ${formatCount(seqLen)} tokens`),
          },
        );
        const bytes = files.reduce((sum, f) => sum + f.bytes, 0);
        return {
          text: `${options.out}: ${files.length} layers, ${formatCount(seqLen)} tokens, ${formatBytes(bytes)}\n`,
          json: { model: options.model, seqLen, files },
        };
      } finally {
        progress.stop();
        runtime.destroy();
      }
    }),
  );
}

/** Writes q, k and v of a layer; resolves to the size of the file. */
async function writeSafetensors(path: string, layer: CapturedLayer): Promise<number> {
  const { numHeads, numKvHeads, seqLen, headDim, q, k, v } = layer;
  const dtype = layer.dtype === 'f16' ? 'F16' : 'F32';
  let end = 0;
  const entry = (heads: number, data: Uint8Array) => {
    const begin = end;
    end += data.length;
    return { dtype, shape: [heads, seqLen, headDim], data_offsets: [begin, end] };
  };
  const header = JSON.stringify({ q: entry(numHeads, q), k: entry(numKvHeads, k), v: entry(numKvHeads, v) });
  const padded = new TextEncoder().encode(header.padEnd(Math.ceil(header.length / 8) * 8));
  const length = new Uint8Array(8);
  new DataView(length.buffer).setBigUint64(0, BigInt(padded.length), true);
  const file = await open(path, 'w');
  try {
    for (const part of [length, padded, q, k, v]) await file.write(part);
  } finally {
    await file.close();
  }
  return 8 + padded.length + end;
}
