/** Prints what share of src/services the tests ran, from reports in lcov format. */

/** Of one file. A report counts functions without naming them, so of two reports the greater count is taken. */
interface Coverage {
  functions: number
  functionsRun: number
  readonly lines: Set<string>
  readonly linesRun: Set<string>
}

const folder = "src/services/"

const read = (report: string, files: Map<string, Coverage>) => {
  for (const record of report.split("end_of_record")) {
    const file = record.match(/^SF:(.*)$/m)?.[1]
    if (!file?.startsWith(folder)) continue
    const known = files.get(file) ?? {
      functions: 0,
      functionsRun: 0,
      lines: new Set(),
      linesRun: new Set(),
    }
    files.set(file, known)
    const number = (key: string) => Number(record.match(new RegExp(`^${key}:(\\d+)$`, "m"))?.[1] ?? 0)
    known.functions = Math.max(known.functions, number("FNF"))
    known.functionsRun = Math.max(known.functionsRun, number("FNH"))
    for (const [, line = "", times] of record.matchAll(/^DA:(\d+),(\d+)$/gm)) {
      known.lines.add(line)
      if (times !== "0") known.linesRun.add(line)
    }
  }
}

const percent = (run: number, all: number) =>
  `${(all === 0 ? 100 : (100 * run) / all).toFixed(1)} %`.padStart(9)

/** The coverage of several runs together. */
export const printCoverage = async (reports: readonly string[]) => {
  const files = new Map<string, Coverage>()
  for (const report of reports)
    if (await Bun.file(report).exists()) read(await Bun.file(report).text(), files)
  const rows = [...files]
    .toSorted(([a], [b]) => (a < b ? -1 : 1))
    .map(([file, { functions, functionsRun, lines, linesRun }]) => ({
      name: file.replace(folder, ""),
      counts: [functionsRun, functions, linesRun.size, lines.size] as const,
    }))
  const total = rows.reduce((sums, { counts }) => sums.map((sum, i) => sum + (counts[i] ?? 0)), [0, 0, 0, 0])
  console.log(`\n${"coverage of src/services".padEnd(44)}${"functions".padStart(9)}${"lines".padStart(9)}`)
  for (const { counts, name } of [...rows, { name: "all", counts: total }]) {
    const [functionsRun = 0, functions = 0, linesRun = 0, lines = 0] = counts
    console.log(`${name.padEnd(44)}${percent(functionsRun, functions)}${percent(linesRun, lines)}`)
  }
}
