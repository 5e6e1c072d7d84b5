import { type MatrixShape, SUBGROUP_SIZE } from '../device/subgroup_matrix.js';
import { type Index, type MatrixOps, plus, times, WORKGROUP_ANY, wgsl } from './matrix_ops.js';

/** The binding, after those of every attention kernel, of the storage buffer that holds emulated matrices. */
export const EMULATION_BINDING = 8;

/** Bytes of that buffer for each invocation of a dispatch. */
export const EMULATION_BYTES = 16 * 1024;

/**
 * Matrix operations in plain WGSL, for testing the matrix tier's kernels on devices without subgroup matrices:
 * the same generator, the same offsets, strides and orders, but 32 consecutive invocations act as a subgroup of
 * any hardware's. Each invocation holds the elements of a result that fall to it (column `lane % n`, every
 * `32 / n`-th row) and the rows and the column of the operands that those need. What a subgroup's invocations
 * exchange goes through workgroup memory, between barriers, so every branch around it must be uniform.
 *
 * A matrix is a place in a storage buffer, EMULATION_BYTES of it for each invocation of the dispatch, and
 * everything is a loop, because software devices take minutes to compile matrices as variables.
 */
export function emulatedOps(shape: MatrixShape, binding = EMULATION_BINDING): MatrixOps {
  const { m, n, k } = shape;
  const rows = (m * n) / SUBGROUP_SIZE;
  const size = { Left: rows * k, Right: k, Result: rows };
  const functions = new Map<string, string>();
  const lists = new Map<string, { readonly base: number; readonly size: number }>();
  // Places 0.. of zeros, then of results on their way into a list, then lists and loaded matrices.
  let used = 2 * rows;
  const take = (count: number): number => {
    used += count;
    return used - count;
  };
  const each = (variable: string, count: number, body: string): string =>
    `for (var ${variable} = 0u; ${variable} < ${count}u * params.unit; ${variable}++) {\n${body}\n}`;
  const row = (i: string): string => `(emulated_lane / ${n}u + ${i} * ${SUBGROUP_SIZE / n}u)`;
  const column = `(emulated_lane % ${n}u)`;
  const halfAt = (array: string, line: string, i: string): string =>
    `half_of(${array}[offset + ${line} * stride + ${i} / 8u][(${i} / 2u) % 4u], ${i})`;
  const word = (array: string): string => `${array}[offset + ${row('i')} * stride + ${column} / 4u][${column} % 4u]`;
  const loads = {
    Left: (array: string): string => each('i', size.Left, `bank[to + i] = ${halfAt(array, row(`(i / ${k}u)`), `(i % ${k}u)`)};`),
    Right: (array: string, order: string): string =>
      each('i', size.Right, `bank[to + i] = ${order === 'row_major' ? halfAt(array, 'i', column) : halfAt(array, column, 'i')};`),
    Result: (array: string): string => each('i', size.Result, `bank[to + i] = bitcast<f32>(${word(array)});`),
  };
  const place = (name: string, index: Index): string => {
    const list = lists.get(name);
    if (!list) throw new Error(`no list of matrices is called ${name}`);
    return wgsl(plus(list.base, times(index, list.size)));
  };
  /** The name of the function that loads such a matrix. */
  const loader = (type: keyof typeof loads, array: string, order: string): string => {
    if (type !== 'Right' && order !== 'row_major') throw new Error(`no kernel loads ${type} matrices in ${order} order`);
    functions.set(
      `load ${type} ${array} ${order}`,
      `
fn load_${type}_${array}_${order}(place: u32, offset: u32, stride: u32) -> u32 {
  let to = bank_start + place;
  ${loads[type](array, order)}
  return place;
}`,
    );
    return `load_${type}_${array}_${order}`;
  };
  return {
    name: `${m}x${n}x${k} emulated`,
    bindings: ['write'],
    directives: '',
    builtins: '@builtin(num_workgroups) workgroups: vec3<u32>',
    prologue: `${WORKGROUP_ANY.prologue}
let subgroup = thread / ${SUBGROUP_SIZE}u;
let lane = thread % ${SUBGROUP_SIZE}u;
emulated_lane = lane;
emulated_thread = thread;
bank_start = (((workgroup.z * workgroups.y + workgroup.y) * workgroups.x + workgroup.x) * THREADS + thread) * ${EMULATION_BYTES / 4}u;
${each('i', rows, 'bank[bank_start + i] = 0.0;')}`,
    declarations: () => {
      if (used * 4 > EMULATION_BYTES)
        throw new Error(`the matrices of an invocation take ${used * 4} bytes, more than ${EMULATION_BYTES}`);
      return `${WORKGROUP_ANY.declaration}
@group(0) @binding(${binding}) var<storage, read_write> bank: array<f32>;
var<private> bank_start: u32;
var<private> emulated_lane: u32;
var<private> emulated_thread: u32;
var<workgroup> exchanged: array<f32, THREADS>;

fn half_of(word: u32, i: u32) -> f32 {
  return unpack2x16float(word)[i % 2u];
}

fn set_result(place: u32, value: u32) {
  ${each('i', rows, 'bank[bank_start + place + i] = bank[bank_start + value + i];')}
}

fn multiply_add(left: u32, right: u32, result: u32) -> u32 {
  for (var i = 0u; i < ${rows}u * params.unit; i++) {
    var sum = bank[bank_start + result + i];
    for (var j = 0u; j < ${k}u * params.unit; j++) {
      sum += bank[bank_start + left + i * ${k}u + j] * bank[bank_start + right + j];
    }
    bank[bank_start + ${rows}u + i] = sum;
  }
  return ${rows}u;
}

fn neighbour(x: f32) -> f32 {
  workgroupBarrier();
  exchanged[emulated_thread] = x;
  workgroupBarrier();
  return exchanged[emulated_thread ^ 1u];
}
${[...functions.values()].join('\n')}`;
    },
    load: (type, array, offset, stride, order) => `${loader(type, array, order)}(${take(size[type])}u, ${offset}, ${stride})`,
    loadInto: (name, index, type, array, offset, stride, order) =>
      `${loader(type, array, order)}(${place(name, index)}, ${offset}, ${stride});`,
    store: (array, offset, value, stride) => {
      functions.set(
        `store ${array}`,
        `
fn store_${array}(offset: u32, value: u32, stride: u32) {
  ${each('i', rows, `${word(array)} = bitcast<u32>(bank[bank_start + value + i]);`)}
}`,
      );
      return `store_${array}(${offset}, ${value}, ${stride});`;
    },
    multiplyAdd: (left, right, result) => `multiply_add(${left}, ${right}, ${result})`,
    zero: () => '0u',
    declare: (name, type, count) => {
      if (!lists.has(name)) lists.set(name, { base: take(count * size[type]), size: size[type] });
      return each('i', count * size[type], `bank[bank_start + ${place(name, 0)} + i] = 0.0;`);
    },
    get: place,
    set: (name, index, value) => `set_result(${place(name, index)}, ${value});`,
    each: (variable, count, body) => each(variable, count, body(variable)),
    sync: () => 'workgroupBarrier();',
    pairMax: (x) => `max(${x}, neighbour(${x}))`,
    pairSum: (x) => `${x} + neighbour(${x})`,
    anyOfWorkgroup: true,
    any: WORKGROUP_ANY.statements,
  };
}
