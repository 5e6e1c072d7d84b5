import type { Random } from '../reference/random.js';
import type { Insert } from './prompt.js';
import type { Sentences } from './sentences.js';
import { PROBLEMS, type Problem } from './tasks.js';

/** A long text that holds facts, and a question about each. */
export interface FactDocument {
  readonly intro: string;
  readonly sentences: Sentences;
  /** The facts, by ascending depth. */
  readonly inserts: readonly Insert[];
  /** One for each fact, in the order of `inserts`. */
  readonly problems: readonly Problem[];
}

/** Facts of `count` kinds in turn: a pass key, secrets of soups and codes of keys, at random depths in the text. */
export function factDocument(random: Random, count: number, sentences: Sentences): FactDocument {
  const makers = [PROBLEMS.passkey, PROBLEMS.needle, PROBLEMS.kv];
  const facts: { readonly insert: Insert; readonly problem: Problem }[] = [];
  const asked = new Set<string>();
  for (let i = 0; facts.length < count; i++) {
    // There is one pass key, and a dozen of soups.
    const kind = i === 0 ? 0 : i % 2 === 1 && facts.length < 16 ? 1 : 2;
    const depth = (facts.length + random.uniform()) / count;
    const problem = makers[kind]?.(random, depth, sentences);
    const insert = problem?.inserts[0];
    if (!problem || !insert || asked.has(problem.question)) continue;
    asked.add(problem.question);
    facts.push({ insert, problem });
  }
  // Which fact lies where is random, too.
  const order = facts.map((fact) => ({ fact, key: random.uniform() })).sort((a, b) => a.key - b.key);
  const placed = order.map(({ fact }, i) => ({
    problem: fact.problem,
    insert: { ...fact.insert, depth: facts[i]?.insert.depth ?? 0 },
  }));
  return {
    intro: 'Read the text below. A question about it follows.',
    sentences,
    inserts: placed.map(({ insert }) => insert),
    problems: placed.map(({ problem }) => problem),
  };
}
