/** Reads the text format of Prometheus as strictly as Prometheus' own parser. */

export interface Family {
  readonly type: string
  readonly help: string | undefined
  /** Value by series, such as `name{label="value"}`. */
  readonly samples: Map<string, number>
}

const commentPattern = /^# (HELP|TYPE) ([a-z_:][a-z0-9_:]*) (.+)$/
const samplePattern = /^([a-z_:][a-z0-9_:]*)(\{(?:[a-z_][a-z0-9_]*="(?:[^"\\\n]|\\[\\"n])*",?)+\})? (\S+)$/

/** Families by name. Throws an error for text that Prometheus would refuse and for a counter without `_total`. */
export const parsePrometheus = (text: string): ReadonlyMap<string, Family> => {
  const families = new Map<string, Family>()
  const help = new Map<string, string>()
  const refuse = (why: string, line: string) => {
    throw new Error(`${why}: ${line}`)
  }
  if (!text.endsWith("\n")) refuse("no line feed at the end", text.slice(-40))
  let name = ""
  for (const line of text.trimEnd().split("\n")) {
    const [comment, kind, of = "", rest = ""] = commentPattern.exec(line) ?? []
    if (comment !== undefined) {
      if (kind === "HELP") help.set(of, rest)
      else {
        if (!["counter", "gauge", "histogram"].includes(rest)) refuse("unknown type", line)
        if (families.has(of)) refuse("a family twice", line)
        if (rest === "counter" && !of.endsWith("_total")) refuse("a counter without _total", line)
        name = of
        families.set(of, { type: rest, help: help.get(of), samples: new Map() })
      }
      continue
    }
    const [sample, own = "", labels = "", value = ""] = samplePattern.exec(line) ?? []
    if (sample === undefined || Number.isNaN(Number(value))) refuse("not a sample", line)
    const family = families.get(name)
    const base = family?.type === "histogram" ? own.replace(/_(bucket|sum|count)$/, "") : own
    if (family === undefined || base !== name) refuse("a sample outside its family", line)
    if (family?.samples.has(own + labels)) refuse("a series twice", line)
    family?.samples.set(own + labels, Number(value))
  }
  return families
}
