import { Error as ERRORS, logger, parse, View } from 'vega';
import { compile, type TopLevelSpec } from 'vega-lite';
import { STAGES, TIERS } from '../src/index.js';
import type { BenchFile, BenchRow } from './results.js';

const NAMES: Readonly<Record<string, string>> = {
  dense: 'dense',
  a_shape: 'A-shape',
  vertical_slash: 'vertical-slash',
  static_vertical_slash: 'vertical-slash, given index',
  block_sparse: 'block-sparse',
  tri_shape: 'tri-shape',
  x_attention: 'XAttention',
  flex_prefill: 'FlexPrefill',
};

/** Renders a Vega-Lite specification to SVG text. */
export async function renderSvg(spec: TopLevelSpec): Promise<string> {
  return new View(parse(compile(spec, { logger: logger(ERRORS) }).spec), { renderer: 'none' }).toSVG();
}

const nameOf = (row: BenchRow): string => NAMES[row.pattern] ?? row.pattern;
const implOf = (row: BenchRow): string => (row.impl === 'ours' ? `ours, ${row.tier}` : row.impl);

/** Place of a row among others: ours first, the best tier of all first, and peers as they come. */
function rank({ impl, tier }: BenchRow): number {
  const tiers: readonly string[] = TIERS;
  return impl === 'ours' ? TIERS.length - tiers.indexOf(tier) : TIERS.length + 1;
}

/** Rows in the order of {@link rank}. */
const ranked = (rows: readonly BenchRow[]): BenchRow[] => [...rows].sort((a, b) => rank(a) - rank(b));

/**
 * Time of one head against sequence length, both logarithmic: quadratic growth has twice the slope of linear growth.
 * Ours in the best tier that was measured, peers dashed.
 */
export function costCurve({ device, rows }: BenchFile): Promise<string> {
  const best = ranked(rows)[0]?.tier;
  const values = ranked(rows)
    .filter((r) => (r.impl !== 'ours' || r.tier === best) && r.pattern !== 'static_vertical_slash')
    .map((r) => ({ tokens: r.seqLen, ms: r.ms / r.heads, pattern: nameOf(r), impl: implOf(r) }));
  return renderSvg({
    $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
    title: { text: 'Attention of one head, prefill', subtitle: device, anchor: 'start' },
    width: 560,
    height: 340,
    background: 'white',
    data: { values },
    layer: [
      {
        mark: 'line',
        encoding: {
          strokeDash: {
            field: 'impl',
            type: 'nominal',
            title: null,
            sort: null,
            legend: { symbolType: 'stroke', symbolSize: 400 },
          },
        },
      },
      { mark: { type: 'point', filled: true, opacity: 1, size: 25 } },
    ],
    encoding: {
      x: {
        field: 'tokens',
        type: 'quantitative',
        scale: { type: 'log', base: 2, nice: false },
        axis: {
          title: 'tokens',
          values: [...new Set(values.map((v) => v.tokens))].sort((a, b) => a - b),
          labelExpr: "datum.value >= 1048576 ? datum.value / 1048576 + 'M' : datum.value / 1024 + 'K'",
        },
      },
      y: { field: 'ms', type: 'quantitative', scale: { type: 'log' }, axis: { title: 'GPU time of one head, ms', grid: true } },
      color: { field: 'pattern', type: 'nominal', title: null, sort: null },
    },
  });
}

/** Everyone's time for each pattern, by stage, at 131,072 tokens or else the longest measured length. */
export function bars({ device, rows }: BenchFile): Promise<string> {
  const lengths = rows.map((r) => r.seqLen);
  const seqLen = lengths.includes(131_072) ? 131_072 : Math.max(0, ...lengths);
  const values = ranked(rows)
    .filter((r) => r.seqLen === seqLen)
    .flatMap((r) => {
      const stages = r.stages ?? { estimate: 0, topk: 0, convert: 0, kernel: r.ms };
      return STAGES.map((stage, order) => ({ impl: implOf(r), pattern: nameOf(r), stage, order, ms: stages[stage] }));
    });
  return renderSvg({
    $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
    title: {
      text: 'Attention of one layer, prefill',
      subtitle: `${device}, ${seqLen.toLocaleString('en')} tokens`,
      anchor: 'start',
    },
    background: 'white',
    data: { values },
    columns: 1,
    facet: {
      field: 'pattern',
      type: 'nominal',
      title: null,
      sort: Object.values(NAMES),
      header: { labelAnchor: 'start', labelFontWeight: 'bold' },
    },
    spec: {
      width: 460,
      height: { step: 18 },
      encoding: { y: { field: 'impl', type: 'nominal', title: null, sort: null } },
      layer: [
        {
          mark: 'bar',
          encoding: {
            x: { field: 'ms', type: 'quantitative', axis: { title: 'GPU time, ms' } },
            color: { field: 'stage', type: 'nominal', title: null, sort: [...STAGES] },
            order: { field: 'order' },
          },
        },
        {
          mark: { type: 'text', align: 'left', dx: 4 },
          encoding: {
            x: { aggregate: 'sum', field: 'ms', type: 'quantitative' },
            text: { aggregate: 'sum', field: 'ms', type: 'quantitative', format: '.4~r' },
          },
        },
      ],
    },
    resolve: { scale: { x: 'independent', y: 'independent' } },
  });
}
