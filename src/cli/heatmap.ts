import type { AttentionMap } from '../patterns/recall.js';

const SIZE = 768;
const MARGIN = 40;
/** Attention of a key relative to an even spread over the row: below is white, from `HOTTEST` on it is darkest. */
const HOTTEST = 1000;

const HEAT = [0xb0, 0x00, 0x00] as const;
const KEPT = [0x1f, 0x6f, 0xd0] as const;
/** Steps of the attention's opacity, and of the index's. */
const HEAT_LEVELS = 10;
const KEPT_LEVELS = 4;
const KEPT_OPACITY = 0.08;

/** A picture of `width` by `height` pixels, three bytes (red, green, blue) each, row after row. */
export interface Pixels {
  readonly width: number;
  readonly height: number;
  readonly rgb: Uint8Array;
}

/** What {@link heatmapSvg} and `heatmapPng` draw. */
export interface Heatmap {
  readonly map: AttentionMap;
  /** Share of each cell's pairs that the index keeps, in the grid of `map`. */
  readonly coverage: Float32Array;
  readonly title: string;
  readonly subtitle: string;
}

/**
 * An SVG picture of one head: where its attention goes (red, by the logarithm of the attention that a key gets
 * relative to an even spread), and what the index keeps (blue).
 */
export function heatmapSvg({ map, coverage, title, subtitle }: Heatmap): string {
  const side = Math.max(1, SIZE / Math.max(map.rows, map.keys));
  const width = map.keys * side;
  const height = map.rows * side;
  const heat: string[] = [];
  const kept: string[] = [];
  for (let row = 0; row < map.rows; row++) {
    heat.push(
      ...runs(
        map,
        row,
        (at) => heatLevel(map.values[at] ?? 0, map),
        side,
        (level) => `fill="${hex(HEAT)}" fill-opacity="${level / HEAT_LEVELS}"`,
      ),
    );
    kept.push(
      ...runs(
        map,
        row,
        (at) => keptLevel(coverage[at] ?? 0),
        side,
        (level) => `fill-opacity="${(KEPT_OPACITY * level).toFixed(2)}"`,
      ),
    );
  }
  const legend = `${map.cell} x ${map.cell} positions per cell; red: attention (log scale), blue: kept by the index`;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width + 2 * MARGIN}" height="${height + 2 * MARGIN + 20}" font-family="sans-serif" shape-rendering="crispEdges">`,
    '<rect width="100%" height="100%" fill="#ffffff"/>',
    `<text x="${MARGIN}" y="18" font-size="15">${escapeXml(title)}</text>`,
    `<text x="${MARGIN}" y="34" font-size="12" fill="#555555">${escapeXml(subtitle)}</text>`,
    `<g transform="translate(${MARGIN} ${MARGIN})">`,
    `<rect width="${width}" height="${height}" fill="none" stroke="#888888"/>`,
    `<g fill="${hex(KEPT)}">${kept.join('')}</g>`,
    `<g>${heat.join('')}</g>`,
    `<text x="0" y="${height + 16}" font-size="12" fill="#555555">${escapeXml(legend)}</text>`,
    `<text x="${width}" y="${height + 16}" font-size="12" text-anchor="end">keys</text>`,
    `<text transform="translate(-8 ${height}) rotate(-90)" font-size="12">queries</text>`,
    '</g>',
    '</svg>\n',
  ].join('\n');
}

/** The same picture as pixels, without margins and texts: each cell a square. */
export function heatmapPixels({ map, coverage }: Pick<Heatmap, 'map' | 'coverage'>): Pixels {
  const side = Math.max(1, Math.floor(SIZE / Math.max(map.rows, map.keys)));
  const width = map.keys * side;
  const height = map.rows * side;
  const rgb = new Uint8Array(3 * width * height);
  for (let y = 0; y < height; y++) {
    const row = Math.floor(y / side) * map.keys;
    for (let x = 0; x < width; x++) {
      const at = row + Math.floor(x / side);
      const kept = KEPT_OPACITY * keptLevel(coverage[at] ?? 0);
      const heat = heatLevel(map.values[at] ?? 0, map) / HEAT_LEVELS;
      for (let c = 0; c < 3; c++) {
        const paper = 255 + kept * ((KEPT[c] as number) - 255);
        rgb[3 * (y * width + x) + c] = Math.round(paper + heat * ((HEAT[c] as number) - paper));
      }
    }
  }
  return { width, height, rgb };
}

const hex = (color: readonly number[]): string => `#${color.map((c) => c.toString(16).padStart(2, '0')).join('')}`;

/** Level 0 to 4 of how much of a cell the index keeps. */
const keptLevel = (share: number): number => Math.ceil(KEPT_LEVELS * share);

/** Level 0 to 10 of a cell's attention. */
function heatLevel(value: number, map: AttentionMap): number {
  const even = 1 / map.keys;
  const ratio = value / even;
  if (!(ratio > 1 / HOTTEST)) return 0;
  const level = (HEAT_LEVELS * Math.log(ratio * HOTTEST)) / Math.log(HOTTEST * map.keys);
  return Math.max(0, Math.min(HEAT_LEVELS, Math.round(level)));
}

/** Rectangles of one row of cells; neighbours of one level share a rectangle. */
function runs(
  map: AttentionMap,
  row: number,
  levelOf: (at: number) => number,
  side: number,
  style: (level: number) => string,
): string[] {
  const out: string[] = [];
  let start = 0;
  let level = levelOf(row * map.keys);
  for (let key = 1; key <= map.keys; key++) {
    const next = key < map.keys ? levelOf(row * map.keys + key) : -1;
    if (next === level) continue;
    if (level > 0) {
      out.push(
        `<rect x="${(start * side).toFixed(1)}" y="${(row * side).toFixed(1)}" width="${((key - start) * side).toFixed(1)}" height="${side.toFixed(1)}" ${style(level)}/>`,
      );
    }
    start = key;
    level = next;
  }
  return out;
}

/** Text as it is written in XML. */
export function escapeXml(text: string): string {
  return text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
}
