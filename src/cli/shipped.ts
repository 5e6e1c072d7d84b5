/** The model that ships with the package: a name for `assetPath`. */
export const SHIPPED_MODEL = 'model/minference-retrieval-3m.gguf';

/** Longest prompts for the patterns that were searched on short ones. */
export const LONGEST_SHORT = 8192;

/** The patterns that were searched for the model that ships, on 4,096 or on 32,768 tokens: a name for `assetPath`. */
export function shippedPatterns(seqLen: number): string {
  return `model/minference-retrieval-3m.patterns${seqLen > LONGEST_SHORT ? '-32k' : ''}.json`;
}
