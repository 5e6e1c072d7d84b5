import { formatCount, formatPercent } from '../src/cli/format.js';
import type { Choice } from './choices.js';
import { DENSE } from './choices.js';
import type { Question } from './document.js';
import { make } from './dom.js';

/** How reading a document went. */
export interface Reading {
  readonly choice: Choice;
  readonly tokens: number;
  state: 'running' | 'done' | 'stopped';
  /** Tokens that have been read. */
  read: number;
  ms: number;
  density?: number;
  right: number;
  asked: number;
}

export const formatSeconds = (ms: number): string => `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;

/** The times: one card for each reading of a document. */
export class ReadingList {
  readonly #list: HTMLElement;
  readonly #empty: HTMLElement;
  readonly #readings = new Map<string, { reading: Reading; readonly item: HTMLElement }>();

  constructor(list: HTMLElement, empty: HTMLElement) {
    this.#list = list;
    this.#empty = empty;
  }

  clear(): void {
    this.#readings.clear();
    this.#list.replaceChildren();
    this.#empty.hidden = false;
  }

  /** The reading in this way. */
  get(choice: Choice): Reading | undefined {
    return this.#readings.get(choice.id)?.reading;
  }

  /** A new reading, in the place of an earlier one in the same way. */
  start(choice: Choice, tokens: number): Reading {
    const reading: Reading = { choice, tokens, state: 'running', read: 0, ms: 0, right: 0, asked: 0 };
    const known = this.#readings.get(choice.id);
    if (known) known.reading = reading;
    else {
      const item = make('li', 'reading');
      item.dataset['choice'] = choice.id;
      this.#readings.set(choice.id, { reading, item });
      this.#list.append(item);
    }
    this.#empty.hidden = true;
    this.render();
    return reading;
  }

  render(): void {
    const all = [...this.#readings.values()];
    const slowest = Math.max(1, ...all.map(({ reading }) => reading.ms));
    const dense = this.#readings.get(DENSE.id)?.reading;
    for (const { reading, item } of all) {
      const { choice, ms, state } = reading;
      const rate = ms > 0 && reading.read > 0 ? `${formatCount(Math.round((1000 * reading.read) / ms))} tokens/s` : '';
      const faster =
        reading !== dense && dense?.state === 'done' && state === 'done'
          ? ` · ${(dense.ms / ms).toFixed(2)} × as fast as dense`
          : '';
      const bar = make('div', choice === DENSE ? 'bar dense' : 'bar');
      bar.style.width = `${(100 * ms) / slowest}%`;
      bar.ariaHidden = 'true';
      const details = [
        { running: `${formatCount(reading.read)} of ${formatCount(reading.tokens)} tokens`, stopped: 'stopped', done: '' }[state],
        rate,
        reading.density === undefined ? '' : `density ${formatPercent(reading.density)}`,
        reading.asked > 0 ? `${reading.right} of ${reading.asked} answers right` : '',
      ];
      item.replaceChildren(
        make('div', 'head', make('strong', '', choice.name), make('strong', '', `${formatSeconds(ms)}${faster}`)),
        bar,
        make('div', 'note', details.filter(Boolean).join(' · ')),
      );
    }
  }
}

/** The answers: for each question what each reading gave. */
export class AnswerList {
  readonly #list: HTMLElement;
  readonly #empty: HTMLElement;
  readonly #answers = new Map<string, HTMLElement>();
  readonly #cells = new Map<string, HTMLElement>();

  constructor(list: HTMLElement, empty: HTMLElement) {
    this.#list = list;
    this.#empty = empty;
  }

  clear(): void {
    this.#answers.clear();
    this.#cells.clear();
    this.#list.replaceChildren();
    this.#empty.hidden = false;
  }

  /** Shows an answer, or as much of it as there is; `right` once that is known. */
  show(question: Question, choice: Choice, text: string, right?: boolean): void {
    const cell = this.#cell(question, choice);
    const mark =
      right === undefined
        ? []
        : [
            make(
              'span',
              right ? 'right' : 'wrong',
              right ? ' ✓' : ' ✗',
              make('span', 'visually-hidden', right ? ' right' : ' wrong'),
            ),
          ];
    cell.replaceChildren(text.trim() || '…', ...mark);
  }

  #cell(question: Question, choice: Choice): HTMLElement {
    const key = `${choice.id} ${question.text}`;
    const known = this.#cells.get(key);
    if (known) return known;
    this.#empty.hidden = true;
    let answers = this.#answers.get(question.text);
    if (!answers) {
      answers = make('dl', 'answer');
      const depth = question.depth === undefined ? '' : ` (${formatPercent(question.depth)} into the document)`;
      this.#list.append(make('li', '', make('div', '', make('strong', '', question.text), make('span', 'note', depth)), answers));
      this.#answers.set(question.text, answers);
    }
    const cell = make('dd');
    answers.append(make('dt', '', choice.name), cell);
    this.#cells.set(key, cell);
    return cell;
  }
}
