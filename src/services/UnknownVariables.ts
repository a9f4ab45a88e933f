/** Environment variables that look like settings, but are none: a misspelt one would be ignored without a word. */
import * as Settings from "./Settings.ts"

const ownPrefix = /^(API|EMBEDDING|EVENT|EVENTS|PHRASE|POPULARITY|RATE_LIMIT|WORKER)_/
/** Kubernetes and Docker add these for a service with the name `api` or `worker`. */
const ofOrchestrators = /_(SERVICE_(HOST|PORT.*)|PORT_\d+_.*|ENV_.*)$/
/** Letters that may be wrong, missing or too many. */
const maxTypos = 2

/** Levenshtein's distance of two words. */
const distance = (a: string, b: string): number => {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++)
      next[j] = Math.min(next[j - 1]! + 1, row[j]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1))
    row = next
  }
  return row[b.length]!
}

/** Each with the setting that may be meant: `API_TOKEN (API_TOKENS?)`. */
export const unknownVariables = (
  environment: Readonly<Record<string, string | undefined>>,
): ReadonlyArray<string> => {
  const known = Settings.all.flatMap((setting) =>
    Settings.mayBeFile(setting) ? [setting.variable, `${setting.variable}_FILE`] : [setting.variable],
  )
  return Object.keys(environment).flatMap((name) => {
    if (known.includes(name) || ofOrchestrators.test(name)) return []
    const meant = known.find(
      (variable) =>
        Math.abs(variable.length - name.length) <= maxTypos && distance(name, variable) <= maxTypos,
    )
    if (meant !== undefined) return [`${name} (${meant}?)`]
    return ownPrefix.test(name) ? [name] : []
  })
}
