import { type ModelFile, report as modelReport, partBars, promptCurve, toCsv as toModelCsv } from './model_report.js';
import { bars, costCurve } from './plot.js';
import { type BenchFile, report, toCsv, write } from './results.js';

/**
 * Writes what people read of a suite's result file: CSV, Markdown and plots.
 *
 * @param path of the files, without their ends
 * @returns the Markdown, and which files were written
 */
export async function writeReport(path: string, file: BenchFile): Promise<string> {
  const markdown = report(file);
  write(`${path}.csv`, toCsv(file.rows));
  write(`${path}.md`, markdown);
  write(`${path}-curve.svg`, await costCurve(file));
  write(`${path}-bars.svg`, await bars(file));
  return `${markdown}\nwrote ${path}.{csv,md}, ${path}-{curve,bars}.svg`;
}

/** The same of a whole model's file. */
export async function writeModelReport(path: string, file: ModelFile): Promise<string> {
  const markdown = modelReport(file);
  write(`${path}.csv`, toModelCsv(file.rows));
  write(`${path}.md`, markdown);
  write(`${path}-curve.svg`, await promptCurve(file));
  write(`${path}-parts.svg`, await partBars(file));
  return `${markdown}\nwrote ${path}.{csv,md}, ${path}-{curve,parts}.svg`;
}
