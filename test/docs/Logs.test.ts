/** docs/logs.md lists exactly the events that the source logs, each with its level. */
import { expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { join, resolve } from "node:path"
import { Glob } from "bun"

const root = resolve(import.meta.dir, "../..")

/** Matches `Effect.logX("event")` and the helpers `logWarning("event")` and `warning("event")`. */
const calls = /(?:Effect\.log(Debug|Info|Warning|Error)|\b(logWarning|warning))\(\s*"([^"]+)"/g
const levels: Readonly<Record<string, string>> = {
  Debug: "debug",
  Info: "info",
  Warning: "warn",
  Error: "error",
}

const logged = new Map<string, string>()
for (const path of new Glob("src/**/*.ts").scanSync({ cwd: root }))
  for (const [, level, , event = ""] of readFileSync(join(root, path), "utf8").matchAll(calls))
    logged.set(event, levels[level ?? "Warning"] ?? "warn")

const documented = new Map<string, string>()
for (const [, events = "", level = ""] of readFileSync(join(root, "docs/logs.md"), "utf8").matchAll(
  /^\| ((?:`[a-z._]+`(?: · )?)+) \| (debug|info|warn|error) \|/gm,
))
  for (const [, event = ""] of events.matchAll(/`([^`]+)`/g)) documented.set(event, level)

test("every logged event is documented with its level, and every documented event is logged", () => {
  expect(logged.size).toBeGreaterThan(30)
  const sorted = (events: ReadonlyMap<string, string>) => [...events].toSorted(([a], [b]) => (a < b ? -1 : 1))
  expect(sorted(documented)).toEqual(sorted(logged))
})

test("every event name is a constant", () => {
  const odd: Array<string> = []
  for (const path of new Glob("src/**/*.ts").scanSync({ cwd: root })) {
    const source = readFileSync(join(root, path), "utf8")
    for (const [call] of source.matchAll(
      /Effect\.log(?:Trace|Debug|Info|Warning|Error|Fatal)?\((?!\s*")[^)]*/g,
    ))
      if (call !== "Effect.logWarning(event") odd.push(`${path}: ${call}`)
  }
  expect(odd).toEqual([])
})
