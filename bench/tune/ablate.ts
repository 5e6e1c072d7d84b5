import type { ShaderSpec } from '../../src/device/pipelines.js';

/** What takes a part of its work away from a kernel, by the part's name. */
export type Ablations = Readonly<Record<string, (code: string) => string>>;

/** Changes of a generated attention kernel that take one part of its work away (its output is then wrong): what each part costs. */
export const ABLATIONS: Ablations = {
  all: (code) => code,
  'no exp2': (code) => code.replace(/exp2\((fma\(x_\w+, vec4<f32>\(scale\), vec4<f32>\(-m\w*\)\))\)/g, '$1'),
  'no rescale': (code) => code.replace(/if \(rises\) \{/g, 'if (rises && params.n_q == 0u) {'),
  'no maxima': (code) => code.replace(/let own_max(\w*) = .*;/g, 'let own_max$1 = M_START;'),
  'no barriers': (code) => code.replace(/^\s*workgroupBarrier\(\);$/gm, ''),
  'no Q K': (code) => code.replace(/^\s*s_\w+ = subgroupMatrixMultiplyAccumulate.*$/gm, ''),
  'no P V': (code) => code.replace(/^\s*o_\w+ = subgroupMatrixMultiplyAccumulate.*$/gm, ''),
  'one K load': (code) =>
    code.replace(/(subgroupMatrixLoad<Right, col_major>\(&k_tile, )[^;]*, KV_STRIDE\)/g, '$10u, KV_STRIDE)'),
  'one V load': (code) =>
    code.replace(/(subgroupMatrixLoad<Right, row_major>\(&v_tile, )[^;]*, KV_STRIDE\)/g, '$10u, KV_STRIDE)'),
  'no score store': (code) =>
    code.replace(/^(\s*)subgroupMatrixStore<row_major>\(&[sk]_tile, [^,]*, s_\w+, \w+\);$/gm, '$1if (params.n_q == 0u) { $& }'),
  'no score read': (code) =>
    code.replace(/x_(\d*)(\w*) = bitcast<vec4<f32>>\([sk]_tile\[s_(?:row(_\d)|own|lane) \+ \d[^\]]*\]\);/g, (_, s, j, row) => {
      const strip = row ?? (j === '' ? '' : `_${s}`);
      return `x_${s}${j} = vec4<f32>(l${strip}, m${strip}, 0.5, 0.25);`;
    }),
  'no P store': (code) => code.replace(/^(\s*)[sp]_tile\[[^;]*(?:pack_halves|p_word_).*$/gm, '$1if (params.n_q == 0u) { $& }'),
  'one P load': (code) =>
    code.replace(/(let left_\w+ = subgroupMatrixLoad<Left, row_major>\(&[sp]_tile, )[^;]*, ([SP]_STRIDE)\)/g, '$10u, $2)'),
  'no mask': (code) => code.replace(/if \(!.*tile_is_full\(.*\{$/gm, 'if (params.n_q == 0u) {'),
  // Of patterns that gather: keys near the first, which stay in the caches, and none after the first batch.
  'near keys': (code) => code.replace(/min\((tile_keys\[.*\]), last_key\)/g, '($1 & 0xfffu)'),
  // The same for blocks.
  'near blocks': (code) => code.replace(/let block = (index\[.*\]);/, 'let block = $1 & 63u;'),
  'no batches': (code) => code.replace('if (tile % BATCH == 0u) {', 'if (params.n_q == 0u) {'),
  'no staging': (code) => code.replace(/^(\s*)[kv]_tile\[.* = [kv]_next_\d;$/gm, '$1if (params.n_q == 0u) { $& }'),
  'no fetch': (code) => code.replace(/^(\s*)[kv]_next_\d = load_.*$/gm, '$1if (params.n_q == 0u) { $& }'),
};

const noFetch = (code: string): string =>
  code.replace(/^(\s*)[aw]_next_\d+ = (a\[|weight_word).*$/gm, '$1if (params.n == 0u) { $& }');
const noStaging = (code: string): string => code.replace(/^(\s*)tile\[.* = [aw]_next_\d+;$/gm, '$1if (params.n == 0u) { $& }');

/** The same of a product with weights. */
export const PRODUCT_ABLATIONS: Ablations = {
  all: (code) => code,
  'no fetch': noFetch,
  'near words': (code) => code.replace(/\(k0 \+ (2u \* )?DEPTH\) \/ 8u/g, '(k0 % 128u) / 8u'),
  'no staging': noStaging,
  'no barriers': (code) => code.replace(/^\s*workgroupBarrier\(\);$/gm, ''),
  'one A load': (code) => code.replace(/(subgroupMatrixLoad<Left, row_major>\(&tile, )[^;]*, A_STRIDE\)/g, '$10u, A_STRIDE)'),
  'one W load': (code) => code.replace(/(subgroupMatrixLoad<Right, col_major>\(&tile, )[^;]*, W_STRIDE\)/g, '$10u, W_STRIDE)'),
  'neither fetch nor staging': (code) => noStaging(noFetch(code)),
};

/** A kernel without one part; the kernel itself for the part `all`. */
export function ablate(shader: ShaderSpec, ablations: Ablations, part = 'all'): ShaderSpec {
  const change = ablations[part];
  return change && part !== 'all' ? { ...shader, label: `${shader.label}, ${part}`, code: change(shader.code) } : shader;
}

/** The parts that an option `--ablate [parts]` names: all without a list. Throws for one that does not exist. */
export function ablatedParts(option: true | string, ablations: Ablations): readonly string[] {
  const known = Object.keys(ablations);
  const parts = option === true ? known : option.split(',');
  for (const part of parts) {
    if (!known.includes(part)) throw new Error(`there is no part ${part}; there are ${known.join(', ')}`);
  }
  return parts;
}
