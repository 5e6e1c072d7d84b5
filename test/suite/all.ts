import { attentionCases } from './attention.js';
import { badInputCases } from './bad_input.js';
import type { SuiteCase } from './context.js';
import { indexBuilderCases } from './index_builders.js';
import { methodCases } from './methods.js';
import { modelCases } from './model.js';
import { patternCases } from './patterns.js';
import { schedulerCases } from './scheduler.js';
import { verifyCases } from './verify.js';

/** Every suite that runs on a device, in the order in which a single-threaded runner should run them. */
export const SUITES: Readonly<Record<string, readonly SuiteCase[]>> = {
  bad_input: badInputCases,
  attention: attentionCases,
  index_builders: indexBuilderCases,
  scheduler: schedulerCases,
  methods: methodCases,
  patterns: patternCases,
  model: modelCases,
  verify: verifyCases,
};
