/** The next version and the changelog of a release, as pure functions. */

const pattern = /^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$/
const parse = (version: string): ReadonlyArray<number> | undefined =>
  pattern.exec(version)?.slice(1).map(Number)

/** The next version, for `major`, `minor`, `patch` or a version; `undefined` if it is not later than the current one. */
export const next = (current: string, wanted: string): string | undefined => {
  const [major = 0, minor = 0, patch = 0] = parse(current) ?? []
  if (wanted === "major") return `${major + 1}.0.0`
  if (wanted === "minor") return `${major}.${minor + 1}.0`
  if (wanted === "patch") return `${major}.${minor}.${patch + 1}`
  const parts = parse(wanted)
  if (parts === undefined) return undefined
  const difference = parts.map((part, i) => part - ([major, minor, patch][i] ?? 0)).find((d) => d !== 0) ?? 0
  return difference > 0 ? wanted : undefined
}

/**
 * Moves the lines under Unreleased to a section with version and date, and keeps an empty Unreleased. `undefined` if
 * Unreleased lists no change. `notes` are the moved lines.
 */
export const release = (
  changelog: string,
  version: string,
  date: string,
): { readonly changelog: string; readonly notes: string } | undefined => {
  const heading = /^## Unreleased[ \t]*$/m.exec(changelog)
  if (heading === null) return undefined
  const start = heading.index + heading[0].length
  const length = changelog.slice(start).search(/^## /m)
  const end = length < 0 ? changelog.length : start + length
  const notes = changelog.slice(start, end).trim()
  if (!/^- /m.test(notes)) return undefined
  const before = changelog.slice(0, heading.index)
  const after = changelog.slice(end)
  const section = `## Unreleased\n\n## ${version} — ${date}\n\n${notes}\n`
  return { changelog: `${before}${section}${after === "" ? "" : `\n${after}`}`, notes }
}
