import { formatBytes, formatCount, formatPercent } from '../src/cli/format.js';
import { MinferenceError } from '../src/index.js';
import { type Choice, DENSE, describePattern, SPARSE } from './choices.js';
import { type DemoDocument, makeDocument, ownQuestion, type Question } from './document.js';
import { byId, chosen, make, nextFrame } from './dom.js';
import { HeatPicture } from './heat.js';
import { AnswerList, type Reading, ReadingList } from './results.js';
import { DemoSession, type LayerView, type OpenProgress } from './session.js';

const page = {
  alert: byId('alert', HTMLElement),
  alertText: byId('alert-text', HTMLElement),
  restart: byId('restart', HTMLButtonElement),
  loading: byId('loading', HTMLElement),
  loadingText: byId('loading-text', HTMLElement),
  loadingBar: byId('loading-bar', HTMLProgressElement),
  setup: byId('setup', HTMLFormElement),
  novelNote: byId('novel-note', HTMLElement),
  own: byId('own', HTMLElement),
  text: byId('text', HTMLTextAreaElement),
  lengthLabel: byId('length-label', HTMLElement),
  length: byId('length', HTMLSelectElement),
  facts: byId('facts', HTMLInputElement),
  shuffle: byId('shuffle', HTMLButtonElement),
  strip: byId('strip', HTMLElement),
  stripFill: byId('strip-fill', HTMLElement),
  documentNote: byId('document-note', HTMLElement),
  preview: byId('preview', HTMLDetailsElement),
  previewText: byId('preview-text', HTMLElement),
  pattern: byId('pattern', HTMLSelectElement),
  patternNote: byId('pattern-note', HTMLElement),
  run: byId('run', HTMLButtonElement),
  stop: byId('stop', HTMLButtonElement),
  status: byId('status', HTMLElement),
  step: byId('step', HTMLProgressElement),
  ask: byId('ask', HTMLFormElement),
  question: byId('question', HTMLInputElement),
  askButton: byId('ask-button', HTMLButtonElement),
  layer: byId('layer', HTMLSelectElement),
  head: byId('head', HTMLSelectElement),
  showAttention: byId('show-attention', HTMLInputElement),
  showIndex: byId('show-index', HTMLInputElement),
  heatText: byId('heat-text', HTMLElement),
  heatFigure: byId('heat-figure', HTMLElement),
  heatFacts: byId('heat-facts', HTMLElement),
  recall: byId('recall', HTMLElement),
  density: byId('density', HTMLElement),
  axisEnd: byId('axis-end', HTMLElement),
  canvas: byId('heat-canvas', HTMLCanvasElement),
};

/** Tokens of the document, and facts in it, unless the visitor chooses otherwise. */
const DEFAULTS = {
  software: { length: 2048, facts: 2 },
  phone: { length: 8192, facts: 4 },
  hardware: { length: 32_768, facts: 6 },
} as const;

/** The head that is drawn first: one that looks far back. */
const FIRST_HEAD = { layer: 3, head: 2 } as const;

const HEAT_TEXT = page.heatText.textContent ?? '';

const readings = new ReadingList(byId('readings', HTMLElement), byId('times-empty', HTMLElement));
const answers = new AnswerList(byId('answers', HTMLElement), byId('answers-empty', HTMLElement));
const picture = new HeatPicture(page.canvas, byId('readout', HTMLElement));

let session: DemoSession | undefined;
let seed = 1;
/** What the settings make; undefined while they make nothing. */
let current: DemoDocument | undefined;
/** Questions of the visitor's about the current document. */
let ownQuestions: Question[] = [];
/** How the document that the model holds was read. */
let held: Reading | undefined;
/** The layers that were looked at, and how the document was read. */
let looked: { readonly choice: Choice; readonly document: DemoDocument; readonly layers: Map<number, LayerView> } | undefined;
/** The layer of the picture. */
let drawnLayer: number = FIRST_HEAD.layer;
/** Stops what is running; undefined when nothing is. */
let running: AbortController | undefined;

// ---- Starting

async function start(): Promise<void> {
  session = undefined;
  current = undefined;
  forget();
  page.alert.hidden = true;
  page.loading.hidden = false;
  update();
  const report = ({ what, fraction }: OpenProgress): void => {
    page.loadingText.textContent = fraction === undefined ? what : `${what}: ${formatPercent(fraction)}`;
    if (fraction === undefined) page.loadingBar.removeAttribute('value');
    else page.loadingBar.value = fraction;
  };
  try {
    const opened = await DemoSession.open(report);
    opened.lost.then((why) => {
      if (session !== opened) return;
      session = undefined;
      running?.abort();
      void opened.close();
      fail(`The GPU device was lost (${why}). Other pages or a driver may have taken it.`, true);
      update();
    });
    opened.device.addEventListener('uncapturederror', ({ error }) => fail(`The GPU reports an error: ${error.message}`));
    const { software } = opened.profile;
    const phone = matchMedia('(pointer: coarse) and (max-width: 52rem)').matches;
    const { length, facts } = DEFAULTS[software ? 'software' : phone ? 'phone' : 'hardware'];
    page.length.value = String(length);
    page.facts.value = String(facts);
    byId('software', HTMLElement).hidden = !software;
    byId('adapter', HTMLElement).textContent = opened.profile.name;
    byId('tier', HTMLElement).textContent = `${opened.profile.tier} tier`;
    byId('model', HTMLElement).textContent = `${opened.name}, ${opened.layers} layers of ${opened.heads} heads`;
    await opened.fit(length, report);
    session = opened;
    fillSelect(page.layer, opened.layers);
    fillSelect(page.head, opened.heads);
    page.layer.value = String(FIRST_HEAD.layer);
    page.head.value = String(FIRST_HEAD.head);
    page.loading.hidden = true;
    remake();
    say('Ready.');
  } catch (error) {
    page.loading.hidden = true;
    fail(explain(error), navigator.gpu !== undefined);
  }
  update();
}

function fillSelect(select: HTMLSelectElement, count: number): void {
  select.replaceChildren(...Array.from({ length: count }, (_, i) => new Option(String(i), String(i))));
}

// ---- Messages

function say(text: string): void {
  page.status.textContent = text;
}

function fail(text: string, restart = false): void {
  page.alertText.textContent = text;
  page.restart.hidden = !restart;
  page.alert.hidden = false;
}

function explain(error: unknown): string {
  if (!window.isSecureContext) return 'WebGPU works on secure pages only: open this one by https, or from localhost.';
  if (navigator.gpu === undefined) {
    return 'This browser has no WebGPU. Current versions of Chrome, Edge, Safari and Firefox have it; on Linux and on older phones it may have to be switched on.';
  }
  if (!(error instanceof MinferenceError)) return error instanceof Error ? error.message : String(error);
  switch (error.code) {
    case 'unsupported':
      return `WebGPU does not work here: ${error.message}.`;
    case 'limit':
    case 'out-of-memory':
      return `The document is too long for this GPU (${error.message}). Choose a shorter one.`;
    case 'device-lost':
      return `The GPU device was lost (${error.message}).`;
    default:
      return error.message;
  }
}

/** Makes the controls fit what can be done now. */
function update(): void {
  const busy = running !== undefined;
  for (const fieldset of page.setup.querySelectorAll('fieldset')) fieldset.disabled = busy || !session;
  const stopFocused = document.activeElement === page.stop;
  page.run.disabled = busy || !session || !current;
  page.stop.disabled = !busy;
  if (stopFocused && !busy) page.run.focus();
  page.askButton.disabled = busy || !session?.held || !held;
  page.question.disabled = !session;
  page.layer.disabled = busy || !session;
  page.head.disabled = !session;
  page.step.hidden = !busy;
  page.canvas.setAttribute('aria-busy', String(busy));
  if (session) byId('memory', HTMLElement).textContent = formatBytes(session.bytes);
}

// ---- The document

/** Forgets what was found out about another document. */
function forget(): void {
  readings.clear();
  answers.clear();
  ownQuestions = [];
  held = undefined;
  looked = undefined;
  picture.clear();
  page.heatFigure.hidden = true;
  page.heatFacts.hidden = true;
  page.heatText.textContent = HEAT_TEXT;
}

/** Makes the document of the settings. */
function remake(): void {
  if (!session || running) return;
  const own = chosen(page.setup, 'source') === 'own';
  page.own.hidden = !own;
  page.novelNote.hidden = own;
  page.lengthLabel.textContent = own ? 'Length, tokens at most' : 'Length, tokens';
  forget();
  current = undefined;
  page.stripFill.style.width = '0';
  for (const tick of page.strip.querySelectorAll('i')) tick.remove();
  try {
    const facts = Math.max(0, Math.min(12, Math.floor(page.facts.valueAsNumber) || 0));
    const document = makeDocument(session.tokenizer, session.maker, {
      ...(own ? { text: page.text.value } : {}),
      length: Number(page.length.value),
      facts,
      seed,
    });
    current = document;
    for (const { depth = 0 } of document.questions) {
      const tick = make('i');
      tick.style.left = `${100 * depth}%`;
      page.strip.append(tick);
    }
    const hidden = facts === 0 ? 'no hidden facts: ask about it below' : `${facts} hidden facts at the red marks`;
    page.documentNote.textContent = `${formatCount(document.tokens.length)} tokens, ${hidden}.${
      document.cut ? ' Your text is longer than that: only its beginning is read.' : ''
    }`;
  } catch (error) {
    page.documentNote.textContent = own && !page.text.value.trim() ? 'Paste or type a text.' : explain(error);
  }
  showPreview();
  update();
}

function showPreview(): void {
  page.previewText.replaceChildren();
  if (!page.preview.open || !current) return;
  page.previewText.append(...current.pieces().map(({ text, fact }) => (fact ? make('mark', '', text) : text)));
}

// ---- Reading

/** Runs what takes long: one thing at a time, to be stopped by the button. */
async function busy(body: (signal: AbortSignal) => Promise<string>): Promise<void> {
  if (running || !session) return;
  const own = session;
  const controller = new AbortController();
  running = controller;
  page.alert.hidden = true;
  update();
  try {
    await nextFrame();
    say(await body(controller.signal));
  } catch (error) {
    if (session !== own) say('The GPU device was lost.');
    else if (controller.signal.aborted) say('Stopped.');
    else {
      say('Failed.');
      fail(explain(error));
    }
  } finally {
    running = undefined;
    page.stripFill.style.width = '0';
    update();
  }
}

function showStep(fraction: number): void {
  page.step.value = fraction;
  page.stripFill.style.width = `${100 * fraction}%`;
}

async function run(): Promise<void> {
  const document = current;
  const mode = chosen(page.setup, 'mode');
  const choice = SPARSE.find(({ id }) => id === page.pattern.value);
  if (!document || !choice) return;
  await busy(async (signal) => {
    const own = session as DemoSession;
    const tokens = document.tokens.length;
    const steps = mode === 'both' ? 3 : 2;
    say('Making room on the GPU.');
    await own.fit(tokens, ({ fraction }) => showStep(fraction ?? 0), signal);
    let density: number | undefined;
    if (mode === 'dense') {
      say(`Step 1 of ${steps}: warming up (not timed).`);
      await own.warm(document, DENSE, { signal, onProgress: ({ fraction }) => showStep(fraction) });
    } else {
      say(`Step 1 of ${steps}: ${choice.name}, looking at the attention on the way (not timed).`);
      looked = { choice, document, layers: new Map() };
      density = (await look(Number(page.layer.value), signal)).density;
    }
    if (mode !== 'sparse') await read(document, DENSE, 1, `Step 2 of ${steps}`, signal);
    if (mode !== 'dense') await read(document, choice, density, `Step ${steps} of ${steps}`, signal);
    const [dense, sparse] = [readings.get(DENSE), readings.get(choice)];
    if (mode !== 'both' || !dense || !sparse) return 'Done.';
    const rights = `${sparse.right} of ${sparse.asked} answers right, and dense ${dense.right}`;
    return `Done: ${choice.name} was ${(dense.ms / sparse.ms).toFixed(2)} × as fast as dense, with ${rights}.`;
  });
}

/** Reads the document and answers the questions about it. */
async function read(
  document: DemoDocument,
  choice: Choice,
  density: number | undefined,
  step: string,
  signal: AbortSignal,
): Promise<void> {
  const own = session as DemoSession;
  const reading = readings.start(choice, document.tokens.length);
  if (density !== undefined) reading.density = density;
  say(`${step}: reading, ${choice.name}.`);
  showStep(0);
  await nextFrame();
  const begin = performance.now();
  const clock = setInterval(() => {
    reading.ms = performance.now() - begin;
    readings.render();
  }, 100);
  try {
    reading.ms = await own.read(document, choice, {
      signal,
      onProgress: ({ fraction, totalTokens }) => {
        reading.read = Math.round(fraction * totalTokens);
        showStep(fraction);
      },
    });
    reading.state = 'done';
  } finally {
    clearInterval(clock);
    if (reading.state !== 'done') reading.state = 'stopped';
    readings.render();
  }
  held = reading;
  const questions = [...document.questions, ...ownQuestions];
  for (const [i, question] of questions.entries()) {
    say(`${step}: answering question ${i + 1} of ${questions.length}, ${choice.name}.`);
    await answer(question, reading, signal);
  }
}

async function answer(question: Question, reading: Reading, signal: AbortSignal): Promise<string> {
  const own = session as DemoSession;
  let text = '';
  answers.show(question, reading.choice, text);
  try {
    for await (const piece of own.answer(question, signal)) {
      text += piece;
      answers.show(question, reading.choice, text);
    }
  } catch (error) {
    answers.show(question, reading.choice, `${text} (stopped)`);
    throw error;
  }
  const right = question.isRight?.(text);
  answers.show(question, reading.choice, text || '(nothing)', right);
  if (right !== undefined) {
    reading.asked++;
    if (right) reading.right++;
    readings.render();
  }
  return text.trim();
}

async function ask(): Promise<void> {
  const text = page.question.value.trim();
  const reading = held;
  if (!session?.held || !reading) return;
  if (!text) {
    page.question.focus();
    return;
  }
  const question = ownQuestion(session.maker, text);
  if (!ownQuestions.some((known) => known.text === question.text)) ownQuestions.push(question);
  await busy(async (signal) => {
    say(`Answering from what was read with ${reading.choice.name}.`);
    return `Answer: ${await answer(question, reading, signal)}`;
  });
}

// ---- The attention of one head

/** Reads the document again to look at a layer. */
async function look(layer: number, signal: AbortSignal): Promise<LayerView> {
  const own = session as DemoSession;
  const target = looked;
  if (!target) throw new MinferenceError('invalid-argument', 'no document was read sparsely');
  showStep(0);
  const view = await own.look(target.document, target.choice, layer, {
    signal,
    onProgress: ({ fraction }) => showStep(fraction),
  });
  target.layers.set(layer, view);
  // The model now holds the document as it was read for the picture.
  held = readings.get(target.choice);
  drawHead();
  return view;
}

function drawHead(): void {
  const layer = Number(page.layer.value);
  const view = looked?.layers.get(layer);
  const head = view?.heads[Number(page.head.value)];
  if (!looked || !view || !head) return;
  drawnLayer = layer;
  picture.draw(head, { attention: page.showAttention.checked, index: page.showIndex.checked });
  view.heads.forEach(({ pattern }, i) => {
    const option = page.head.options[i];
    if (option) option.text = `${i}: ${describePattern(pattern)}`;
  });
  page.heatFigure.hidden = false;
  page.heatFacts.hidden = false;
  page.recall.textContent = formatPercent(head.recall);
  page.density.textContent = formatPercent(head.density);
  page.axisEnd.textContent = formatCount(looked.document.tokens.length);
  const text = `Layer ${layer}, head ${head.map.head}, ${looked.choice.name} (${describePattern(head.pattern)}): the sparse index keeps ${formatPercent(head.recall)} of the dense attention with ${formatPercent(head.density)} of the work.`;
  page.heatText.textContent = text;
  page.canvas.setAttribute('aria-label', text);
}

async function chooseLayer(): Promise<void> {
  const layer = Number(page.layer.value);
  const target = looked;
  if (!target || target.layers.size === 0) return;
  if (target.layers.has(layer)) return drawHead();
  await busy(async (signal) => {
    try {
      say(`Reading the document again to look at layer ${layer}.`);
      await look(layer, signal);
      return `Layer ${layer} was drawn.`;
    } finally {
      if (!target.layers.has(layer)) page.layer.value = String(drawnLayer);
    }
  });
}

// ---- Wiring

for (const { id, name } of SPARSE) page.pattern.append(new Option(name, id));
const describeChoice = (): void => {
  page.patternNote.textContent = SPARSE.find(({ id }) => id === page.pattern.value)?.note ?? '';
};
describeChoice();

page.pattern.addEventListener('change', describeChoice);
for (const radio of page.setup.querySelectorAll<HTMLInputElement>('input[name="source"]'))
  radio.addEventListener('change', remake);
let typing: ReturnType<typeof setTimeout> | undefined;
page.text.addEventListener('input', () => {
  clearTimeout(typing);
  typing = setTimeout(remake, 300);
});
page.length.addEventListener('change', remake);
page.facts.addEventListener('change', remake);
page.shuffle.addEventListener('click', () => {
  seed++;
  remake();
});
page.preview.addEventListener('toggle', showPreview);
page.previewText.tabIndex = 0; // It scrolls.
page.setup.addEventListener('submit', (event) => {
  event.preventDefault();
  void run();
});
page.stop.addEventListener('click', () => {
  say('Stopping.');
  running?.abort();
});
page.ask.addEventListener('submit', (event) => {
  event.preventDefault();
  void ask();
});
page.layer.addEventListener('change', () => void chooseLayer());
for (const control of [page.head, page.showAttention, page.showIndex]) control.addEventListener('change', drawHead);
page.restart.addEventListener('click', () => void start());

void start();
