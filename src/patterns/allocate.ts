import { invalidArgument } from '../errors.js';

/** What one choice for a head costs and brings. */
export interface DensityChoice {
  /** Query-key pairs kept over the causal total, 0 to 1. */
  readonly density: number;
  /** What is to be maximised, as the attention mass kept. */
  readonly value: number;
}

/** A step along a head's upper hull: from one choice to the next better one that pays best. */
interface Step {
  readonly head: number;
  readonly to: number;
  readonly slope: number;
}

/**
 * Chooses one of its candidates for every head, so that the mean value is as large as it can be while the mean
 * density stays at or below a limit:
 *
 *   maximise  mean_h value[h, c_h]   such that   mean_h density[h, c_h] <= limit
 *
 * The Lagrangian solution: for every price of density, a head takes the candidate of the largest `value - price * density`,
 * which lies on the upper hull of its (density, value) points. Walking all hulls' steps from the steepest on is
 * lowering the price; then what is left of the budget goes to the single changes that bring most. The mean is less than the
 * optimum by at most the largest gain of one step over the number of heads.
 *
 * @returns the index of each head's choice.
 * @throws `invalid-argument` when even the cheapest candidates exceed the limit.
 */
export function allocateDensity(heads: readonly (readonly DensityChoice[])[], limit: number): number[] {
  if (typeof limit !== 'number' || !(limit > 0 && limit <= 1)) {
    throw invalidArgument('targetDensity', limit, 'a number above 0, up to 1');
  }
  const hulls = heads.map((choices, head) => {
    if (choices.length === 0) throw invalidArgument(`heads[${head}]`, choices, 'at least one choice');
    return upperHull(choices);
  });
  const chosen = hulls.map((hull) => hull[0] as number);
  const at = (head: number, choice: number): DensityChoice => heads[head]?.[choice] as DensityChoice;
  let left = heads.reduce((sum, _, head) => sum - at(head, chosen[head] as number).density, limit * heads.length);
  if (left < 0) {
    const least = limit - left / heads.length;
    throw invalidArgument('targetDensity', limit, `at least ${least.toFixed(4)}, the mean density of the cheapest candidates`);
  }
  const steps: Step[] = hulls.flatMap((hull, head) =>
    hull.slice(1).map((to, i): Step => ({ head, to, slope: slope(at(head, hull[i] as number), at(head, to)) })),
  );
  // The slopes of a hull fall, so a stable sort keeps each head's steps in order.
  steps.sort((a, b) => b.slope - a.slope);
  const stopped = new Set<number>();
  for (const { head, to } of steps) {
    if (stopped.has(head)) continue;
    const cost = at(head, to).density - at(head, chosen[head] as number).density;
    if (cost > left) {
      stopped.add(head);
      continue;
    }
    left -= cost;
    chosen[head] = to;
  }
  for (;;) {
    let best: { readonly head: number; readonly to: number; readonly gain: number; readonly cost: number } | undefined;
    heads.forEach((choices, head) => {
      const now = at(head, chosen[head] as number);
      choices.forEach((choice, to) => {
        const gain = choice.value - now.value;
        const cost = choice.density - now.density;
        if (gain > (best?.gain ?? 0) && cost <= left) best = { head, to, gain, cost };
      });
    });
    if (!best) return chosen;
    left -= best.cost;
    chosen[best.head] = best.to;
  }
}

const slope = (a: DensityChoice, b: DensityChoice): number => (b.value - a.value) / (b.density - a.density);

/** Choices on the upper hull, from the cheapest on: densities and values rise, slopes fall. */
function upperHull(choices: readonly DensityChoice[]): number[] {
  const order = choices
    .map((_, i) => i)
    .sort((i, j) => {
      const [a, b] = [choices[i] as DensityChoice, choices[j] as DensityChoice];
      return a.density - b.density || b.value - a.value;
    });
  const hull: number[] = [];
  const point = (fromEnd: number): DensityChoice => choices[hull.at(fromEnd) as number] as DensityChoice;
  for (const i of order) {
    const next = choices[i] as DensityChoice;
    if (hull.length > 0 && next.value <= point(-1).value) continue;
    while (hull.length > 1 && slope(point(-2), point(-1)) <= slope(point(-1), next)) hull.pop();
    hull.push(i);
  }
  return hull;
}
