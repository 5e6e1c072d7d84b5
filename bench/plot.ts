import { parse, View } from 'vega';
import { compile, type TopLevelSpec } from 'vega-lite';
import type { BenchRow } from './results.js';

const NAMES: Readonly<Record<string, string>> = {
  dense: 'dense',
  a_shape: 'A-shape',
  vertical_slash: 'vertical-slash',
  block_sparse: 'block-sparse',
};

/** Renders a Vega-Lite specification to SVG text. */
export async function renderSvg(spec: TopLevelSpec): Promise<string> {
  return new View(parse(compile(spec).spec), { renderer: 'none' }).toSVG();
}

/** Time against sequence length, both logarithmic: quadratic growth has twice the slope of linear growth. */
export function costCurve(title: string, subtitle: string, rows: readonly BenchRow[]): Promise<string> {
  const values = rows.map((r) => ({
    tokens: r.seqLen,
    ms: r.ms,
    pattern: `${NAMES[r.pattern] ?? r.pattern}${r.impl === 'ours' ? '' : `, ${r.impl}`}`,
  }));
  return renderSvg({
    $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
    title: { text: title, subtitle, anchor: 'start' },
    width: 560,
    height: 340,
    background: 'white',
    data: { values },
    mark: { type: 'line', point: true },
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
      y: { field: 'ms', type: 'quantitative', scale: { type: 'log' }, axis: { title: 'GPU time of one layer, ms', grid: true } },
      color: { field: 'pattern', type: 'nominal', title: null, sort: null },
    },
  });
}
