/** Figures of repeated runs, and their tables. */

/** CPU in µs an event, by process name. */
export type Cpu = Readonly<Record<string, number>>

/** One run of a contestant. */
export interface Run {
  readonly eventsPerSecond: number
  readonly cpu: Cpu
  /** Other figures, by name with unit. */
  readonly more?: Readonly<Record<string, number>>
}

export interface Figure {
  readonly name: string
  readonly runs: number
  readonly eventsPerSecond: { readonly median: number; readonly least: number; readonly most: number }
  readonly cpu: Cpu
  /** All processes together. */
  readonly cpuTotal: number
  readonly more: Readonly<Record<string, number>>
}

export const median = (values: ReadonlyArray<number>): number => {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : ((sorted[middle - 1] ?? 0) + (sorted[middle] ?? 0)) / 2
}

const medians = (records: ReadonlyArray<Readonly<Record<string, number>>>) =>
  Object.fromEntries(
    Object.keys(records[0] ?? {}).map((key) => [key, median(records.map((record) => record[key] ?? 0))]),
  )

const sum = (cpu: Cpu) => Object.values(cpu).reduce((total, each) => total + each, 0)

export const summarise = (name: string, runs: ReadonlyArray<Run>): Figure => {
  const rates = runs.map(({ eventsPerSecond }) => eventsPerSecond)
  return {
    name,
    runs: runs.length,
    eventsPerSecond: { median: median(rates), least: Math.min(...rates), most: Math.max(...rates) },
    cpu: medians(runs.map(({ cpu }) => cpu)),
    cpuTotal: median(runs.map(({ cpu }) => sum(cpu))),
    more: medians(runs.map(({ more = {} }) => more)),
  }
}

export const perEvent = (used: Readonly<Record<string, number>>, events: number): Cpu =>
  Object.fromEntries(Object.entries(used).map(([name, micros]) => [name, micros / events]))

export const number = (value: number): string =>
  value >= 100
    ? Math.round(value).toLocaleString("en-US")
    : value >= 10
      ? value.toFixed(0)
      : value.toPrecision(2)

/** A Markdown table, aligned so that it is readable on a terminal too. */
export const table = (head: ReadonlyArray<string>, rows: ReadonlyArray<ReadonlyArray<string>>): string => {
  const widths = head.map((title, i) => Math.max(title.length, 3, ...rows.map((row) => row[i]?.length ?? 0)))
  const line = (cells: ReadonlyArray<string>) =>
    `| ${widths.map((width, i) => (i === 0 ? (cells[i] ?? "").padEnd(width) : (cells[i] ?? "").padStart(width))).join(" | ")} |`
  const rule = widths.map((width, i) => (i === 0 ? "-".repeat(width) : `${"-".repeat(width - 1)}:`))
  return [line(head), line(rule), ...rows.map(line)].join("\n")
}
