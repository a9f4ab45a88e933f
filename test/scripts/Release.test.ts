import { describe, expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { resolve } from "node:path"
import manifest from "../../package.json" with { type: "json" }
import * as Changelog from "../../scripts/release/changelog.ts"
import { toSbom } from "../../scripts/release/sbom.ts"

const head = "# Changelog\n\nAll notable changes.\n\n"
const older = "## 0.1.0 — 2026-01-01\n\n### Added\n- First.\n"

describe("a release", () => {
  test("moves the unreleased changes under the version and its date, and keeps the rest", () => {
    const notes = "### Added\n- One thing,\n  in two lines.\n\n### Fixed\n- Another."
    expect(Changelog.release(`${head}## Unreleased\n\n${notes}\n\n${older}`, "0.2.0", "2026-11-24")).toEqual({
      changelog: `${head}## Unreleased\n\n## 0.2.0 — 2026-11-24\n\n${notes}\n\n${older}`,
      notes,
    })
  })

  test("can be the first release", () => {
    expect(Changelog.release(`${head}## Unreleased\n\n- All.\n`, "1.0.0", "2026-11-24")?.changelog).toBe(
      `${head}## Unreleased\n\n## 1.0.0 — 2026-11-24\n\n- All.\n`,
    )
  })

  test("needs unreleased changes, so the same release cannot be made twice", () => {
    expect(Changelog.release(`${head}## Unreleased\n\n${older}`, "0.2.0", "2026-11-24")).toBeUndefined()
    expect(
      Changelog.release(`${head}## Unreleased\n\n### Added\n\n${older}`, "0.2.0", "2026-11-24"),
    ).toBeUndefined()
    expect(Changelog.release(head + older, "0.2.0", "2026-11-24")).toBeUndefined()
    const once = Changelog.release(`${head}## Unreleased\n- All.\n`, "1.0.0", "2026-11-24")
    expect(Changelog.release(once?.changelog ?? "", "1.0.1", "2026-11-24")).toBeUndefined()
  })

  test.each([
    ["0.1.9", "patch", "0.1.10"],
    ["0.1.9", "minor", "0.2.0"],
    ["0.1.9", "major", "1.0.0"],
    ["0.1.9", "0.1.10", "0.1.10"],
    ["1.2.3", "1.10.0", "1.10.0"],
    ["1.2.3", "1.2.3", undefined],
    ["1.2.3", "1.1.9", undefined],
    ["1.2.3", "v2", undefined],
    ["1.2.3", "2.0", undefined],
  ] as const)("after %s: %s is %s", (current, wanted, expected) => {
    expect(Changelog.next(current, wanted)).toBe(expected as string)
  })

  test("with --dry-run prints both packages and the remaining steps, and changes nothing", () => {
    const root = resolve(import.meta.dir, "../..")
    const files = ["CHANGELOG.md", "package.json"].map((name) => resolve(root, name))
    const before = files.map((file) => readFileSync(file, "utf8"))
    const { exitCode, stdout } = Bun.spawnSync(
      [process.execPath, "scripts/release.ts", "minor", "--dry-run", "--skip-check"],
      { cwd: root },
    )
    const out = stdout.toString()
    expect(exitCode).toBe(0)
    expect(out).toMatch(/would release \d+\.\d+\.0 /)
    expect(out).toMatch(/ kB {2}src\/programs\/main\.ts\n/)
    expect(out).toMatch(/\d+ files, \d+ kB packed/)
    expect(out).toMatch(
      /\nuser-embeddings-client:\n.* kB {2}index\.js\n.*6 files, \d+ kB packed, \d\d kB unpacked\n/s,
    )
    expect(out).toEndWith("npm publish\n  npm publish ./types/client\n")
    expect(out).toContain("git tag -a v")
    expect(out).toMatch(/sbom\.cdx\.json: \d{3} packages/)
    expect(files.map((file) => readFileSync(file, "utf8"))).toEqual(before)
  }, 60_000)
})

test("the bill of materials lists what production installs, with versions, hashes and who needs it", () => {
  const { components, dependencies } = toSbom(
    readFileSync(resolve(import.meta.dir, "../../bun.lock"), "utf8"),
    { name: manifest.name, version: "1.0.0" },
  )
  const purls = components.map(({ purl }) => purl)
  const { dependencies: required, devDependencies, optionalDependencies, peerDependencies } = manifest
  const production = { ...required, ...optionalDependencies, effect: devDependencies.effect }
  for (const [name, version] of Object.entries(production))
    expect(purls).toContain(`pkg:npm/${name.replace("@", "%40")}@${version}`)
  for (const name of ["@biomejs/biome", "@types/bun", "playwright-core", "typescript"] as const)
    expect(purls).not.toContain(`pkg:npm/${name.replace("@", "%40")}@${devDependencies[name]}`)
  for (const { hashes } of components) expect(hashes[0]!.content).toMatch(/^[0-9a-f]{128}$/)
  // Each reference leads to a component.
  expect(dependencies.flatMap(({ dependsOn }) => dependsOn).filter((ref) => !purls.includes(ref))).toEqual([])
  const [root] = dependencies
  expect(root).toMatchObject({ ref: `pkg:npm/${manifest.name}@1.0.0` })
  expect(root!.dependsOn).toHaveLength(Object.keys({ ...production, ...peerDependencies }).length)
})
