import { writeFile } from 'node:fs/promises';
import { Option } from 'commander';
import { MinferenceError } from '../errors.js';
import { indexCoverage } from '../patterns/coverage.js';
import { type HeadQuality, RecallMeter } from '../patterns/recall.js';
import { SparsePrefill } from '../scheduler/prefill.js';
import type { CliContext, CommandResult, RegisterCommand } from './app.js';
import { addDeviceOptions, type DeviceOptions, integer, withDevice } from './device.js';
import { formatCount, formatError, formatPercent, formatTable } from './format.js';
import { type Heatmap, heatmapSvg } from './heatmap.js';
import { type InputOptions, openInput } from './input.js';
import {
  addPatternOptions,
  headPatterns,
  PATTERN_SYNTAX,
  type PatternOptions,
  patternText,
  readPatternConfig,
} from './patterns.js';
import { heatmapPng } from './png.js';

interface RecallCommandOptions extends DeviceOptions, InputOptions, PatternOptions {
  readonly firstRow: number;
  readonly heatmap?: string;
  readonly head: number;
}

const MAX_LENGTH = 2 ** 26;

/** Adds `minference recall`: how much of the dense attention each head keeps. */
export const registerRecall: RegisterCommand = (program, action) => {
  const command = program
    .command('recall')
    .description('show what share of the dense attention mass each head keeps; draw a head');
  addDeviceOptions(
    addPatternOptions(command)
      .option('--qkv <file>', 'safetensors with q, k, v: [heads, tokens, head size]; default: the sample')
      .addOption(new Option('--seq-len <n>', 'cuts the file').argParser(integer(1, MAX_LENGTH)))
      .addOption(new Option('--dtype <type>', 'element type on the GPU').choices(['f16', 'f32']))
      .addOption(new Option('--first-row <n>', 'rows before it are not counted').argParser(integer(0, MAX_LENGTH)).default(0))
      .option('--heatmap <file>', 'draw the attention of --head and its index: a .png, else SVG')
      .addOption(new Option('--head <n>', 'head to draw').argParser(integer(0, 4095)).default(0)),
  )
    .addHelpText('after', `\n${PATTERN_SYNTAX}\n`)
    .action(action<RecallCommandOptions>(run));
};

async function run(context: CliContext, options: RecallCommandOptions): Promise<CommandResult> {
  const configured = await readPatternConfig(options);
  return withDevice(context, options, async (device) => {
    const prefill = new SparsePrefill(device, { tier: options.tier });
    const meter = new RecallMeter(prefill);
    const input = await openInput({ ...options, seed: 1 }, configured?.length, MAX_LENGTH);
    try {
      const { numHeads, numKvHeads, headDim, seqLen, dtype } = input;
      if (input.source === 'generated') {
        throw new MinferenceError(
          'invalid-argument',
          `the sample has fewer than ${seqLen} tokens, or other heads than ${options.config}; give a file with --qkv`,
        );
      }
      if (options.head >= numHeads)
        throw new MinferenceError('invalid-argument', `--head is ${options.head}; allowed: 0 to ${numHeads - 1}`);
      const patterns = headPatterns(options, configured, input, {
        kind: 'vertical_slash',
        verticalSize: Math.round(seqLen / 8),
        slashSize: Math.round((3 * seqLen) / 64),
      });
      const { q, k, v } = await input.load(device, prefill.profile, []);
      const layer = { q, k, v, numHeads, numKvHeads, headDim, seqLen, dtype };
      const dense = await meter.reference(layer, { signal: context.signal });
      const { heads } = await meter.measure(dense, patterns, { firstRow: options.firstRow, signal: context.signal });
      const drawn = heads[options.head] as HeadQuality;
      if (options.heatmap !== undefined) {
        const map = await meter.attentionMap(dense, options.head);
        const coverage = indexCoverage(drawn.pattern, drawn.index, { seqLen, kvLen: seqLen, queryOffset: 0 }, map);
        const title = `${input.name}, head ${options.head}, ${formatCount(seqLen)} tokens`;
        const subtitle = `${patternText(drawn.pattern)}: keeps ${formatPercent(drawn.recall)} of the attention with ${formatPercent(drawn.density)} of the pairs`;
        const picture: Heatmap = { map, coverage, title, subtitle };
        await writeFile(options.heatmap, options.heatmap.endsWith('.png') ? heatmapPng(picture) : heatmapSvg(picture));
      }
      const mean = (of: (h: HeadQuality) => number): number => heads.reduce((sum, h) => sum + of(h), 0) / heads.length;
      const table = formatTable(
        [
          ['head', 'pattern', 'density', 'recall', 'worst row', 'error'],
          ...heads.map((h) => [
            String(h.head),
            `${patternText(h.pattern)}${h.pattern.kind === 'flex_prefill' ? ` -> ${h.index.kind}` : ''}`,
            formatPercent(h.density),
            formatPercent(h.recall),
            formatPercent(h.worstRecall),
            formatError(h.error),
          ]),
          [
            'mean',
            '',
            formatPercent(mean((h) => h.density)),
            formatPercent(mean((h) => h.recall)),
            '',
            formatError(mean((h) => h.error)),
          ],
        ],
        [0, 2, 3, 4, 5],
      );
      const drawing = options.heatmap === undefined ? '' : `\n${options.heatmap}: head ${options.head}\n`;
      return {
        text: `${input.name}: ${formatCount(seqLen)} tokens, rows from ${options.firstRow} on\n\n${table}${drawing}`,
        json: {
          input: input.name,
          seqLen,
          firstRow: options.firstRow,
          ...(options.heatmap === undefined ? {} : { heatmap: options.heatmap }),
          heads: heads.map(({ index, ...h }) => ({ ...h, index: index.kind })),
        },
      };
    } finally {
      await input.close();
      meter.destroy();
      prefill.destroy();
    }
  });
}
