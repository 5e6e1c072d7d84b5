/**
 * What a loaded language model is: its configuration, its weights and its tokenizer, under one naming for every
 * architecture and file format. The loader (`load/`) makes it, the runtime reads it; neither imports the other.
 */

/** Architectures that load. */
export const ARCHITECTURES = ['llama', 'qwen2', 'qwen3', 'phi3'] as const;

/** One of {@link ARCHITECTURES}. */
export type Architecture = (typeof ARCHITECTURES)[number];

/** How long contexts stretch the rotary frequencies f_d = theta^(-2d / rotaryDim), d < rotaryDim / 2. */
export type RopeScaling =
  /** f_d / factor. */
  | { readonly type: 'linear'; readonly factor: number }
  /** theta grows with the sequence length n once it exceeds the original length L: theta * (factor * n / L - (factor - 1))^(rotaryDim / (rotaryDim - 2)). */
  | { readonly type: 'dynamic'; readonly factor: number; readonly originalContextLength: number }
  /** Wavelengths below L / highFreqFactor keep f_d, above L / lowFreqFactor use f_d / factor, between them a linear blend. */
  | {
      readonly type: 'llama3';
      readonly factor: number;
      readonly lowFreqFactor: number;
      readonly highFreqFactor: number;
      readonly originalContextLength: number;
    }
  /** YaRN (arXiv 2309.00071). */
  | {
      readonly type: 'yarn';
      readonly factor: number;
      readonly betaFast: number;
      readonly betaSlow: number;
      readonly originalContextLength: number;
      /** What cos and sin are multiplied by. */
      readonly attentionFactor: number;
      /** Whether the ends of the blended range are rounded to whole dimensions. */
      readonly truncate: boolean;
    }
  /** f_d / shortFactor[d] up to the original context length, f_d / longFactor[d] beyond it. */
  | {
      readonly type: 'longrope';
      readonly shortFactor: readonly number[];
      readonly longFactor: readonly number[];
      readonly originalContextLength: number;
      /** What cos and sin are multiplied by. */
      readonly attentionFactor: number;
    }
  /** f_d / factors[d] at every length (GGUF files store the `llama3` scaling in this form). */
  | { readonly type: 'factors'; readonly factors: readonly number[] };

/**
 * Rotary position embedding. Always in the half-split layout: of the first `rotaryDim` elements of a head, element d pairs with
 * element d + rotaryDim / 2. (Weights that a file stores for the interleaved layout are reordered while they are read.)
 */
export interface RopeConfig {
  readonly theta: number;
  /** Rotated elements of each head; `headDim` unless the model rotates a part only. The others pass unchanged. */
  readonly rotaryDim: number;
  readonly scaling?: RopeScaling;
}

/** The shape and the constants of a decoder-only model: pre-norm (RMS), rotary attention with grouped queries, SwiGLU MLP. */
export interface ModelConfig {
  readonly architecture: Architecture;
  /** Name that the files give, if any. */
  readonly name?: string;
  readonly layers: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly vocabSize: number;
  readonly rmsEps: number;
  /** The output head is the embedding: there is no `head.weight`. */
  readonly tieEmbeddings: boolean;
  readonly rope: RopeConfig;
  /** There are `layers.N.attn.{q,k,v}.bias`. */
  readonly qkvBias: boolean;
  /** There are `layers.N.attn.{q,k}_norm.weight` ([headDim], RMS norm of each head before the rotation). */
  readonly qkNorm: boolean;
  /** Longest context that the model was made for. */
  readonly contextLength: number;
  /** Each token attends to at most this many before and including itself; undefined: to all. */
  readonly slidingWindow?: number;
  /** Token that texts start with, if any. */
  readonly bosId?: number;
  /** End of text. */
  readonly eosId?: number;
  /** All tokens that end a generation, `eosId` included. */
  readonly stopIds: readonly number[];
  /** Jinja source of the chat template, if the files have one. */
  readonly chatTemplate?: string;
}

/**
 * Storage of a weight: plain little-endian numbers, or the blocks of the GGUF format (bit layouts in `reference/quant.ts`), row
 * after row, each row a whole number of blocks.
 */
export type WeightType = 'f32' | 'f16' | 'q8_0' | 'q4_0' | 'q4_1' | 'q5_0' | 'q5_1' | 'q2_k' | 'q3_k' | 'q4_k' | 'q5_k' | 'q6_k';

/** Elements and bytes of a block of each type. */
export const BLOCK_LAYOUT: Readonly<Record<WeightType, { readonly elements: number; readonly bytes: number }>> = {
  f32: { elements: 1, bytes: 4 },
  f16: { elements: 1, bytes: 2 },
  q8_0: { elements: 32, bytes: 34 },
  q4_0: { elements: 32, bytes: 18 },
  q4_1: { elements: 32, bytes: 20 },
  q5_0: { elements: 32, bytes: 22 },
  q5_1: { elements: 32, bytes: 24 },
  q2_k: { elements: 256, bytes: 84 },
  q3_k: { elements: 256, bytes: 110 },
  q4_k: { elements: 256, bytes: 144 },
  q5_k: { elements: 256, bytes: 176 },
  q6_k: { elements: 256, bytes: 210 },
};

/** A weight that is still in its file. */
export interface WeightTensor {
  /** Canonical name, see {@link weightShapes}. */
  readonly name: string;
  /** `[out, in]` of a matrix (y = W x), `[n]` of a vector; row-major. */
  readonly shape: readonly number[];
  /** Vectors (norms and biases) are always `f32`. */
  readonly type: WeightType;
  /** Bytes that {@link read} gives in all: (elements / block elements) * block bytes. */
  readonly byteLength: number;
  /**
   * The bytes, in order, in chunks of at most a few MiB. Every chunk is whole blocks, and every one but the last a multiple of
   * 4 bytes. A chunk is valid until the next one is asked for.
   *
   * @throws `MinferenceError` `file`, or the signal's reason
   */
  read(signal?: AbortSignal): AsyncIterable<Uint8Array<ArrayBuffer>>;
}

/** One message of a chat. */
export interface ChatMessage {
  readonly role: string;
  readonly content: string;
}

/** Text to token ids and back. */
export interface Tokenizer {
  /** Ids that the tokenizer knows. */
  readonly size: number;
  /**
   * Splits text into token ids.
   *
   * @param addSpecial whether to add what the model wants around a text, such as a first BOS token; default true. Pass false for
   * a text from {@link chat}.
   */
  encode(text: string, addSpecial?: boolean): number[];
  /**
   * The text of token ids.
   *
   * @param skipSpecial whether to leave special tokens out; default true
   */
  decode(ids: readonly number[], skipSpecial?: boolean): string;
  /** A decoder of a stream of ids: `push` gives the text that is complete by now, `end` the rest. */
  stream(): { push(id: number): string; end(): string };
  /** Id of a token as the vocabulary spells it, for example `<|im_end|>`. */
  idOf(token: string): number | undefined;
  /**
   * A chat as text, by the model's chat template.
   *
   * @param addGenerationPrompt whether to end with what starts the model's answer; default true
   * @throws `MinferenceError` when the model has no template, or the template rejects the messages
   */
  chat(messages: readonly ChatMessage[], addGenerationPrompt?: boolean): string;
}

/** A model whose weights wait to be read. */
export interface LoadedModel {
  readonly config: ModelConfig;
  /** By canonical name; exactly those of {@link weightShapes}. */
  readonly weights: ReadonlyMap<string, WeightTensor>;
  /** Missing when the files have none, or loading it was not asked for. */
  readonly tokenizer?: Tokenizer;
  /** Closes the files. */
  close(): Promise<void>;
}

/** Canonical names and shapes of all weights of a model, in the order of their use. */
export function weightShapes(config: ModelConfig): Map<string, readonly number[]> {
  const { hiddenSize: hidden, intermediateSize: inner, headDim, vocabSize } = config;
  const q = config.numHeads * headDim;
  const kv = config.numKvHeads * headDim;
  const shapes = new Map<string, readonly number[]>([['embed.weight', [vocabSize, hidden]]]);
  for (let layer = 0; layer < config.layers; layer++) {
    const add = (name: string, ...shape: number[]): unknown => shapes.set(`layers.${layer}.${name}`, shape);
    add('attn_norm.weight', hidden);
    for (const [name, rows] of [
      ['q', q],
      ['k', kv],
      ['v', kv],
    ] as const) {
      add(`attn.${name}.weight`, rows, hidden);
      if (config.qkvBias) add(`attn.${name}.bias`, rows);
    }
    if (config.qkNorm) {
      add('attn.q_norm.weight', headDim);
      add('attn.k_norm.weight', headDim);
    }
    add('attn.o.weight', hidden, q);
    add('mlp_norm.weight', hidden);
    add('mlp.gate.weight', inner, hidden);
    add('mlp.up.weight', inner, hidden);
    add('mlp.down.weight', hidden, inner);
  }
  shapes.set('norm.weight', [hidden]);
  if (!config.tieEmbeddings) shapes.set('head.weight', [vocabSize, hidden]);
  return shapes;
}

/** Elements of the matrices of one layer: each is a multiplication and an addition for every token. */
export function layerMatrixElements(config: ModelConfig): number {
  return [...weightShapes({ ...config, layers: 1 })]
    .filter(([name, shape]) => name.startsWith('layers.') && shape.length === 2)
    .reduce((sum, [, [rows = 0, columns = 0]]) => sum + rows * columns, 0);
}

/**
 * Bytes of one token's activations: its f32 residual stream, and everything that a layer makes of it, in `elementBytes` each.
 *
 * @param fused - whether gate and up are multiplied before they reach memory
 */
export function activationBytes(config: ModelConfig, elementBytes: number, fused = false): number {
  const { hiddenSize, intermediateSize, numHeads, numKvHeads, headDim } = config;
  const inner = (fused ? 1 : 3) * intermediateSize;
  return 4 * hiddenSize + elementBytes * (hiddenSize + 2 * (numHeads + numKvHeads) * headDim + inner);
}
