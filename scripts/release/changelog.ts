/** Versions and the changelog of a release: pure. */

const pattern = /^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$/
const parse = (version: string): ReadonlyArray<number> | undefined =>
  pattern.exec(version)?.slice(1).map(Number)

/** The version that is asked for by `major`, `minor`, `patch` or itself; `undefined` when it isn't a later one. */
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
 * What stands under Unreleased moves under the version and its date, and an empty Unreleased stays; `undefined` when
 * there is nothing. `notes` are the lines that moved.
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
