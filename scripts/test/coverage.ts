type Counted = readonly [hit: number, found: number]

const sum = (pairs: readonly Counted[]): Counted => [
  pairs.reduce((n, [hit]) => n + hit, 0),
  pairs.reduce((n, [, found]) => n + found, 0),
]

const percent = ([hit, found]: Counted) =>
  `${(found === 0 ? 100 : (100 * hit) / found).toFixed(1)} %`.padStart(9)

/** Prints the share of functions and lines of src/services that the tests ran, from a report in lcov format. */
export const printCoverage = async (lcov: string) => {
  const report = Bun.file(lcov)
  if (!(await report.exists())) return
  const rows = (await report.text()).split("end_of_record").flatMap((record) => {
    const file = record.match(/^SF:(.*)$/m)?.[1] ?? ""
    const number = (key: string) => Number(record.match(new RegExp(`^${key}:(\\d+)$`, "m"))?.[1] ?? 0)
    if (!file.startsWith("src/services/")) return []
    const functions: Counted = [number("FNH"), number("FNF")]
    const lines: Counted = [number("LH"), number("LF")]
    return [{ file, functions, lines }]
  })
  const total = {
    file: "all",
    functions: sum(rows.map((row) => row.functions)),
    lines: sum(rows.map((row) => row.lines)),
  }
  console.log(`\n${"coverage of src/services".padEnd(44)}${"functions".padStart(9)}${"lines".padStart(9)}`)
  for (const { file, functions, lines } of [...rows, total]) {
    console.log(`${file.replace("src/services/", "").padEnd(44)}${percent(functions)}${percent(lines)}`)
  }
}
