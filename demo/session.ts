import modelUrl from '../assets/model/minference-retrieval-3m.gguf?url';
import { PromptMaker } from '../src/eval/prompt.js';
import { type DeviceProfile, MinferenceError, openDevice, profileDevice, RecallMeter, SparsePrefill } from '../src/index.js';
import {
  browserStore,
  LanguageModel,
  type LoadedModel,
  type ModelPatterns,
  type ModelProgress,
  openModel,
  type Tokenizer,
} from '../src/model/index.js';
import { type HeadView, LayerWatch } from './attention.js';
import type { Choice } from './choices.js';
import type { DemoDocument, Question } from './document.js';

/** Tokens of a prompt that run through the layers together. Smaller ones report, and stop, more often. */
const CHUNK = { software: 512, hardware: 2048 };
/** Tokens behind a document: a question and its answer. */
const ROOM = 512;

/** Where {@link DemoSession.open} is. */
export interface OpenProgress {
  readonly what: string;
  /** 0 to 1, once known. */
  readonly fraction?: number;
}

/** How a long call is followed and stopped. */
export interface Watched {
  readonly signal: AbortSignal;
  readonly onProgress: (progress: ModelProgress) => void;
}

/** What looking at a layer shows. */
export interface LayerView {
  readonly layer: number;
  readonly heads: readonly HeadView[];
  /** Share of the query-key pairs that all heads of all layers compute. */
  readonly density: number;
}

/** A device and the model on it. One call runs at a time. */
export class DemoSession {
  readonly device: GPUDevice;
  readonly profile: DeviceProfile;
  readonly tokenizer: Tokenizer;
  readonly maker: PromptMaker;
  /** Resolves, with the reason, when the device is lost; never after {@link close}. */
  readonly lost: Promise<string>;
  readonly #loaded: LoadedModel;
  #model: LanguageModel | undefined;
  #held: DemoDocument | undefined;
  #closed = false;

  /**
   * Opens the device and the model's files, which the browser then keeps.
   *
   * @throws `MinferenceError`; `unsupported` without WebGPU
   */
  static async open(onProgress: (progress: OpenProgress) => void): Promise<DemoSession> {
    onProgress({ what: 'Opening the GPU' });
    const device = await openDevice();
    try {
      onProgress({ what: 'Loading the model' });
      // The Cache API needs a secure address, and some private windows have none: the model then comes over the network.
      const cache = await browserStore('minference-demo').catch(() => undefined);
      const loaded = await openModel(new URL(modelUrl, document.baseURI), {
        ...(cache ? { cache } : {}),
        onProgress: ({ loaded, total }) => onProgress({ what: 'Loading the model', fraction: loaded / total }),
      });
      return new DemoSession(device, loaded);
    } catch (error) {
      device.destroy();
      throw error;
    }
  }

  private constructor(device: GPUDevice, loaded: LoadedModel) {
    const { tokenizer, config } = loaded;
    if (!tokenizer) throw new MinferenceError('file', 'the model has no tokenizer');
    this.device = device;
    this.profile = profileDevice(device);
    this.tokenizer = tokenizer;
    this.maker = new PromptMaker(tokenizer, config.chatTemplate !== undefined);
    this.#loaded = loaded;
    this.lost = new Promise((resolve) => {
      device.lost.then(({ message, reason }) => {
        if (!this.#closed) resolve(message || reason);
      });
    });
  }

  get layers(): number {
    return this.#loaded.config.layers;
  }

  get heads(): number {
    return this.#loaded.config.numHeads;
  }

  get name(): string {
    return this.#loaded.config.name ?? 'model';
  }

  /** Bytes that the model, its cache and its workspace take on the GPU. */
  get bytes(): number {
    if (!this.#model) return 0;
    const { weights, cache, activations, decoding, attention } = this.#model.memory();
    return weights + cache + activations.allocatedBytes + decoding.allocatedBytes + attention.allocatedBytes;
  }

  /** Puts the weights on the GPU, with room for a document of this many tokens. */
  async fit(tokens: number, onProgress: (progress: OpenProgress) => void = () => {}, signal?: AbortSignal): Promise<void> {
    const contextLength = tokens + ROOM;
    if (this.#model && this.#model.contextLength >= contextLength) return;
    this.#model?.destroy();
    this.#model = undefined;
    this.#held = undefined;
    const what = 'Putting the model on the GPU';
    onProgress({ what });
    this.#model = await LanguageModel.load(this.device, this.#loaded, {
      contextLength,
      chunkSize: CHUNK[this.profile.software ? 'software' : 'hardware'],
      ...(signal ? { signal } : {}),
      onProgress: ({ fraction }) => onProgress(fraction < 1 ? { what, fraction } : { what: 'Compiling the kernels' }),
    });
  }

  /** The document that questions are answered about. */
  get held(): DemoDocument | undefined {
    return this.#held;
  }

  /**
   * Reads a document and looks at the attention of one layer on the way: slower than {@link read}, so its time says nothing. It also
   * compiles the kernels and warms the GPU up.
   */
  async look(document: DemoDocument, choice: Choice, layer: number, { signal, onProgress }: Watched): Promise<LayerView> {
    const { model, patterns } = await this.#start(document, choice);
    const prefill = new SparsePrefill(this.device);
    const meter = new RecallMeter(prefill);
    const watch = new LayerWatch(meter, document.tokens.length);
    try {
      const { density = Number.NaN } = await model.prefill(document.tokens, {
        patterns,
        denseBelow: 0,
        inspect: true,
        signal,
        onProgress,
        onAttention: (call) => (call.layer === layer ? watch.add(call, signal) : undefined),
      });
      this.#held = document;
      return { layer, heads: watch.heads(), density };
    } finally {
      meter.destroy();
      prefill.destroy();
    }
  }

  /** Reads the beginning of a document, so that what comes next finds its kernels compiled and the GPU awake. */
  async warm(document: DemoDocument, choice: Choice, watched: Watched): Promise<void> {
    const { model, patterns } = await this.#start(document, choice);
    const chunk = CHUNK[this.profile.software ? 'software' : 'hardware'];
    await model.prefill(document.tokens.slice(0, chunk), { patterns, denseBelow: 0, ...watched });
  }

  /** Reads a document; resolves to the milliseconds that took. */
  async read(document: DemoDocument, choice: Choice, watched: Watched): Promise<number> {
    const { model, patterns } = await this.#start(document, choice);
    const start = performance.now();
    await model.prefill(document.tokens, { patterns, denseBelow: 0, ...watched });
    const ms = performance.now() - start;
    this.#held = document;
    return ms;
  }

  /** Answers a question about the document that was read last, piece by piece. */
  async *answer({ ids, maxTokens }: Question, signal: AbortSignal): AsyncGenerator<string, void, void> {
    const model = this.#model;
    if (!model || !this.#held) throw new MinferenceError('invalid-argument', 'no document was read');
    model.truncate(this.#held.tokens.length);
    const decoder = this.tokenizer.stream();
    for await (const id of model.generate(ids, { maxTokens, patterns: { kind: 'dense' }, signal })) yield decoder.push(id);
    yield decoder.end();
  }

  /** Frees everything. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#model?.destroy();
    this.device.destroy();
    await this.#loaded.close();
  }

  async #start(document: DemoDocument, choice: Choice): Promise<{ model: LanguageModel; patterns: ModelPatterns }> {
    await this.fit(document.tokens.length);
    const model = this.#model as LanguageModel;
    const patterns = choice.patterns(document.tokens.length);
    await model.prepare(patterns);
    this.#held = undefined;
    model.reset();
    return { model, patterns };
  }
}
