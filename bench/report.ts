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
  return writeAll(path, report(file), toCsv(file.rows), { curve: await costCurve(file), bars: await bars(file) });
}

/** The same of a whole model's file. */
export async function writeModelReport(path: string, file: ModelFile): Promise<string> {
  const plots = { curve: await promptCurve(file), parts: await partBars(file) };
  return writeAll(path, modelReport(file), toModelCsv(file.rows), plots);
}

function writeAll(path: string, markdown: string, csv: string, plots: Readonly<Record<string, string>>): string {
  write(`${path}.csv`, csv);
  write(`${path}.md`, markdown);
  for (const [name, svg] of Object.entries(plots)) write(`${path}-${name}.svg`, svg);
  return `${markdown}\nwrote ${path}.{csv,md}, ${path}-{${Object.keys(plots).join()}}.svg`;
}
