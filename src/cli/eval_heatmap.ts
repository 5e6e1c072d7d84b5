import type { EvalRow } from '../eval/run.js';
import { escapeXml } from './heatmap.js';

const CELL = 56;
const LEFT = 64;
const TOP = 56;
const GAP = 48;

/**
 * An SVG picture of an evaluation: one panel a method, lengths from left to right, depths from top to bottom, and the share
 * of right answers as colour and in percent.
 */
export function accuracySvg(rows: readonly EvalRow[], title: string): string {
  const methods = [...new Set(rows.map((r) => r.method))];
  const lengths = [...new Set(rows.map((r) => r.seqLen))].sort((a, b) => a - b);
  const depths = [...new Set(rows.map((r) => r.depth))].sort((a, b) => (a ?? 0) - (b ?? 0));
  const panelWidth = lengths.length * CELL;
  const width = LEFT + methods.length * (Math.max(panelWidth, 120) + GAP);
  const height = TOP + depths.length * CELL + 40;
  const panels = methods.map((method, p) => {
    const cells = rows
      .filter((r) => r.method === method && r.accuracy !== undefined)
      .map((r) => {
        const [x, y] = [lengths.indexOf(r.seqLen) * CELL, depths.indexOf(r.depth) * CELL];
        return [
          `<rect x="${x}" y="${y}" width="${CELL}" height="${CELL}" fill="${colour(r.accuracy ?? 0)}" stroke="#ffffff"/>`,
          `<text x="${x + CELL / 2}" y="${y + CELL / 2 + 5}" text-anchor="middle" font-size="13">${Math.round(100 * (r.accuracy ?? 0))}</text>`,
        ].join('');
      });
    const bottom = depths.length * CELL + 16;
    const lengthLabels = lengths.map(
      (n, i) => `<text x="${(i + 0.5) * CELL}" y="${bottom}" text-anchor="middle" font-size="11">${shortCount(n)}</text>`,
    );
    return [
      `<g transform="translate(${LEFT + p * (Math.max(panelWidth, 120) + GAP)} ${TOP})">`,
      `<text x="0" y="-8" font-size="14">${escapeXml(method)}</text>`,
      ...cells,
      ...lengthLabels,
      '</g>',
    ].join('\n');
  });
  const depthLabels = depths.map(
    (d, i) =>
      `<text x="${LEFT - 8}" y="${TOP + (i + 0.5) * CELL + 4}" text-anchor="end" font-size="11">${d === null ? 'all' : `${Math.round(100 * d)} %`}</text>`,
  );
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" font-family="sans-serif">`,
    '<rect width="100%" height="100%" fill="#ffffff"/>',
    `<text x="${LEFT}" y="22" font-size="15">${escapeXml(title)}</text>`,
    ...depthLabels,
    ...panels,
    `<text x="${LEFT}" y="${height - 6}" font-size="11" fill="#555555">depth of the answer by tokens of the prompt; percent right</text>`,
    '</svg>\n',
  ].join('\n');
}

/** Red over yellow to green. */
function colour(share: number): string {
  return `hsl(${Math.round(120 * share)} 70% 68%)`;
}

function shortCount(n: number): string {
  return n >= 2 ** 20 && n % 2 ** 20 === 0 ? `${n / 2 ** 20}M` : n >= 1024 && n % 1024 === 0 ? `${n / 1024}K` : String(n);
}
