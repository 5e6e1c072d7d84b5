import { formatPercent } from '../src/cli/format.js';
import { heatmapPixels } from '../src/cli/heatmap.js';
import type { HeadView } from './attention.js';

/** How far to white what the index skips fades. */
const FADE = 0.7;

/** What of a head is drawn. */
export interface Shown {
  readonly attention: boolean;
  readonly index: boolean;
}

/** The picture of one head on a canvas, and the cell that is pointed at. */
export class HeatPicture {
  readonly #canvas: HTMLCanvasElement;
  readonly #readout: HTMLElement;
  #view: HeadView | undefined;
  #picture: ImageData | undefined;
  #row = 0;
  #key = 0;

  /** @param readout is told what lies in the cell that is pointed at */
  constructor(canvas: HTMLCanvasElement, readout: HTMLElement) {
    this.#canvas = canvas;
    this.#readout = readout;
    canvas.addEventListener('pointermove', (event) => this.#pointAt(event));
    canvas.addEventListener('pointerdown', (event) => this.#pointAt(event));
    canvas.addEventListener('pointerleave', () => this.#unmark());
    canvas.addEventListener('keydown', (event) => this.#onKey(event));
    canvas.addEventListener('blur', () => this.#unmark());
  }

  /** Draws a head. */
  draw(view: HeadView, shown: Shown): void {
    this.#view = view;
    const { map, coverage } = view;
    const nothing = new Float32Array(map.values.length);
    const { width, height, rgb } = heatmapPixels({
      map: shown.attention ? map : { ...map, values: nothing },
      coverage: shown.index ? coverage : nothing,
    });
    const picture = new ImageData(width, height);
    const side = width / map.keys;
    for (let y = 0, at = 0; y < height; y++) {
      const row = Math.floor(y / side) * map.keys;
      for (let x = 0; x < width; x++, at++) {
        // What the index skips fades, where both are shown.
        const skipped = shown.attention && shown.index ? 1 - (coverage[row + Math.floor(x / side)] ?? 0) : 0;
        for (let c = 0; c < 3; c++) {
          const colour = rgb[3 * at + c] ?? 255;
          picture.data[4 * at + c] = colour + FADE * skipped * (255 - colour);
        }
        picture.data[4 * at + 3] = 255;
      }
    }
    this.#picture = picture;
    this.#canvas.width = width;
    this.#canvas.height = height;
    this.#row = Math.min(this.#row, map.rows - 1);
    this.#key = Math.min(this.#key, map.keys - 1);
    this.#unmark();
  }

  /** Forgets the head. */
  clear(): void {
    this.#view = undefined;
    this.#picture = undefined;
    this.#readout.textContent = '';
  }

  #pointAt(event: PointerEvent): void {
    if (!this.#view) return;
    const { map } = this.#view;
    const box = this.#canvas.getBoundingClientRect();
    this.#mark(
      Math.floor(((event.clientY - box.top) / box.height) * map.rows),
      Math.floor(((event.clientX - box.left) / box.width) * map.keys),
    );
  }

  #onKey(event: KeyboardEvent): void {
    const steps: Readonly<Record<string, readonly [number, number]>> = {
      ArrowUp: [-1, 0],
      ArrowDown: [1, 0],
      ArrowLeft: [0, -1],
      ArrowRight: [0, 1],
    };
    const step = steps[event.key];
    if (!step || !this.#view) return;
    event.preventDefault();
    const far = event.shiftKey ? 8 : 1;
    this.#mark(this.#row + far * step[0], this.#key + far * step[1]);
  }

  #mark(row: number, key: number): void {
    const view = this.#view;
    if (!view) return;
    const { map, coverage } = view;
    this.#row = Math.max(0, Math.min(map.rows - 1, row));
    this.#key = Math.max(0, Math.min(map.keys - 1, key));
    const side = this.#canvas.width / map.keys;
    const context = this.#restore();
    if (context) {
      context.strokeStyle = '#000000';
      context.lineWidth = 2;
      context.strokeRect(this.#key * side - 1, this.#row * side - 1, side + 2, side + 2);
    }
    const range = (cell: number): string =>
      `${(cell * map.cell).toLocaleString('en-US')} to ${((cell + 1) * map.cell - 1).toLocaleString('en-US')}`;
    const at = this.#row * map.keys + this.#key;
    const what =
      this.#key > this.#row
        ? 'the future, which no query sees'
        : `${formatPercent(map.values[at] ?? 0)} of their attention; the index keeps ${formatPercent(coverage[at] ?? 0)} of the pairs`;
    this.#readout.textContent = `Queries ${range(this.#row)}, keys ${range(this.#key)}: ${what}.`;
  }

  #unmark(): void {
    this.#restore();
    this.#readout.textContent = '';
  }

  /** The picture without the frame around a cell. */
  #restore(): CanvasRenderingContext2D | null {
    const context = this.#canvas.getContext('2d');
    if (this.#picture) context?.putImageData(this.#picture, 0, 0);
    return context;
  }
}
