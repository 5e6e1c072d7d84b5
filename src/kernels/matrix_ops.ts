import type { BindingKind } from '../device/pipelines.js';
import { type MatrixShape, SUBGROUP_SIZE } from '../device/subgroup_matrix.js';
import type { MatrixTiling } from './matrix_config.js';

/** A workgroup array of `vec4<u32>` that matrices are loaded from. */
export type TileArray = 'q_tile' | 'k_tile' | 'v_tile' | 's_tile' | 'p_tile' | 'tile';

/** A position in a list of matrices: known when the text is written, or a WGSL expression in a loop. */
export type Index = number | string;

/** A position as a WGSL expression. */
export function wgsl(index: Index): string {
  return typeof index === 'number' ? `${index}u` : index;
}

/** `index * factor`. */
export function times(index: Index, factor: number): Index {
  return typeof index === 'number' ? index * factor : `(${index} * ${factor}u)`;
}

/** What a matrix is, and where it is loaded from. */
export type MatrixSource = readonly [
  type: 'Left' | 'Right' | 'Result',
  array: TileArray,
  offset: string,
  stride: string,
  order: 'row_major' | 'col_major',
];

/** `a + b`. */
export function plus(a: Index, b: Index): Index {
  if (typeof a === 'number' && typeof b === 'number') return a + b;
  return `(${wgsl(a)} + ${wgsl(b)})`;
}

/**
 * How the generator of {@link matrixAttentionShader} writes what plain WGSL lacks. Offsets and strides count
 * the arrays' vec4<u32> elements, 8 f16 or 4 f32.
 */
export interface MatrixOps {
  /** For the shader's label. */
  readonly name: string;
  /** Bindings after those of every attention kernel. */
  readonly bindings: readonly BindingKind[];
  /** `enable` and `diagnostic` directives beside `enable f16`. */
  readonly directives: string;
  /** Parameters of the entry point that `prologue` uses. */
  readonly builtins: string;
  /** Statements that define `lane` (0 to 31) and `subgroup`. */
  readonly prologue: string;
  /** Types `Left`, `Right` and `Result` and whatever the other members call. Ask after everything else. */
  declarations(): string;
  load(...from: MatrixSource): string;
  /** A statement that loads one matrix of a list. */
  loadInto(name: string, index: Index, ...from: MatrixSource): string;
  store(array: TileArray, offset: string, value: string, stride: string): string;
  multiplyAdd(left: string, right: string, result: string): string;
  /** A result of zeros. Matrices must be initialised explicitly: a bare declaration in a loop keeps old values. */
  zero(): string;
  /** Declares a list of `count` matrices. */
  declare(name: string, type: 'Left' | 'Right' | 'Result', count: number): string;
  /** One matrix of a list, and the statement that replaces it with a result. */
  get(name: string, index: Index): string;
  set(name: string, index: Index, value: string): string;
  /** Statements for each index from 0 on: written out, or as a loop. */
  each(variable: string, count: number, body: (index: Index) => string): string;
  /** Orders the workgroup memory accesses of a subgroup's invocations; empty where nothing is needed. */
  sync(): string;
  /** The greater of an f32 of two neighbouring invocations; the sum of two. */
  pairMax(x: string): string;
  pairSum(x: string): string;
  /** Statements that declare `name`: whether the condition holds for any invocation of the subgroup, or of the workgroup. */
  any(name: string, condition: string): string;
  /** Whether `any` speaks of the whole workgroup. */
  readonly anyOfWorkgroup: boolean;
}

/** The signature of a kernel of THREADS invocations, and the statements that define `subgroup` and `lane`. */
export function entryPoint({ builtins, prologue }: MatrixOps): string {
  return `@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32${builtins ? `, ${builtins}` : ''}) {
${prologue}`;
}

/** Statements of {@link MatrixOps.any} for the whole workgroup, and the declaration that they need. */
export const WORKGROUP_ANY = {
  declaration: 'var<workgroup> any_step: atomic<u32>;',
  prologue: 'var step = 0u;',
  statements: (name: string, condition: string): string => `step += 1u;
if (${condition}) {
  atomicStore(&any_step, step);
}
let ${name} = workgroupUniformLoad(&any_step) == step;`,
};

/**
 * The real thing: `chromium_experimental_subgroup_matrix`. Subgroups are taken to be 32 consecutive invocations, as they are
 * on all hardware that has matrices of theirs, though WGSL does not promise it; `verify` would tell.
 */
export function nativeOps(shape: MatrixShape, sync: MatrixTiling['sync']): MatrixOps {
  const { m, n, k } = shape;
  const barrier = sync === 'workgroup';
  const load: MatrixOps['load'] = (type, array, offset, stride, order) =>
    `subgroupMatrixLoad<${type}, ${order}>(&${array}, ${offset}, ${stride})`;
  return {
    name: `${m}x${n}x${k} ${sync}`,
    bindings: [],
    directives: [
      'enable subgroups;',
      'enable chromium_experimental_subgroup_matrix;',
      'diagnostic(off, subgroup_uniformity);',
      'diagnostic(off, chromium.subgroup_matrix_uniformity);',
    ].join('\n'),
    builtins: '',
    // Compilers bound these, so that no matrix access needs a check; subgroup_id they do not, and a checked access has a
    // stride that is only known at run time, for which NVIDIA's driver loads a matrix by single halves.
    prologue: `${barrier ? `${WORKGROUP_ANY.prologue}\n` : ''}let subgroup = thread / ${SUBGROUP_SIZE}u;\nlet lane = thread % ${SUBGROUP_SIZE}u;`,
    declarations: () =>
      [
        `alias Left = subgroup_matrix_left<f16, ${k}, ${m}>;`,
        `alias Right = subgroup_matrix_right<f16, ${n}, ${k}>;`,
        `alias Result = subgroup_matrix_result<f32, ${n}, ${m}>;`,
        ...(barrier ? [WORKGROUP_ANY.declaration] : []),
      ].join('\n'),
    load,
    loadInto: (name, index, ...from) => `${name}_${index} = ${load(...from)};`,
    store: (array, offset, value, stride) => `subgroupMatrixStore<row_major>(&${array}, ${offset}, ${value}, ${stride});`,
    multiplyAdd: (left, right, result) => `subgroupMatrixMultiplyAccumulate(${left}, ${right}, ${result})`,
    zero: () => 'Result()',
    declare: (name, type, count) => Array.from({ length: count }, (_, i) => `var ${name}_${i} = ${type}();`).join('\n'),
    get: (name, index) => `${name}_${index}`,
    set: (name, index, value) => `${name}_${index} = ${value};`,
    each: (_, count, body) => Array.from({ length: count }, (_, i) => `{\n${body(i)}\n}`).join('\n'),
    sync: () => (barrier ? 'workgroupBarrier();' : ''),
    pairMax: (x) => `max(${x}, subgroupShuffleXor(${x}, 1u))`,
    pairSum: (x) => `${x} + subgroupShuffleXor(${x}, 1u)`,
    anyOfWorkgroup: barrier,
    any: (name, condition) => (barrier ? WORKGROUP_ANY.statements(name, condition) : `let ${name} = subgroupAny(${condition});`),
  };
}
