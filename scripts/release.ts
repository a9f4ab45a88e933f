/**
 * `bun run release VERSION`: checks the tree, dates the changelog, raises the version, writes the bill of materials and
 * the package of the client, lists both packages, and prints the remaining commands. It never commits, tags, pushes or
 * publishes.
 */
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Changelog from "./release/changelog.ts"
import { writeClient } from "./release/client.ts"
import { toSbom } from "./release/sbom.ts"

const usage = `Prepares a release; commits, tags and publishes nothing.

USAGE
  bun run release VERSION [--dry-run] [--skip-check]

ARGUMENTS
  VERSION       major, minor, patch, or a version such as 1.2.0

OPTIONS
  --dry-run     Show what would be done; change no file
  --skip-check  Don't run \`bun run check\`

EXAMPLES
  bun run release minor --dry-run
  bun run release 1.0.0`

const say = (text: string) => console.log(text)
const fail: (text: string, code: 1 | 2) => never = (text, code) => {
  console.error(`release: ${text}`)
  process.exit(code)
}

const words = process.argv.slice(2)
if (words.includes("--help") || words.includes("-h")) {
  say(usage)
  process.exit(0)
}
const options = new Set(words.filter((word) => word.startsWith("-")))
const [wanted, ...more] = words.filter((word) => !word.startsWith("-"))
const dryRun = options.delete("--dry-run")
const skipCheck = options.delete("--skip-check")
if (wanted === undefined || more.length > 0 || options.size > 0) fail(`\n${usage}`, 2)

const root = new URL("..", import.meta.url).pathname
const run = (...command: ReadonlyArray<string>) => runIn(root, ...command)
const runIn = (cwd: string, ...command: ReadonlyArray<string>) => {
  const { exitCode, stderr, stdout } = Bun.spawnSync([...command], { cwd })
  return { ok: exitCode === 0, out: stdout.toString().trim(), err: stderr.toString().trim() }
}

const manifestFile = Bun.file(`${root}package.json`)
const changelogFile = Bun.file(`${root}CHANGELOG.md`)
const manifest = await manifestFile.text()
const { version: current }: { readonly version: string } = JSON.parse(manifest)

const version = Changelog.next(current, wanted)
if (version === undefined) fail(`${wanted} is not major, minor, patch or a version later than ${current}`, 2)
const date = new Date().toISOString().slice(0, 10)
const released = Changelog.release(await changelogFile.text(), version, date)
if (released === undefined) fail("CHANGELOG.md lists no change under Unreleased", 1)

const changes = run("git", "status", "--porcelain").out
if (changes !== "" && !dryRun) fail(`the working tree is not clean: commit or stash first\n${changes}`, 1)
if (changes !== "")
  say(`the working tree is not clean; without --dry-run the release would stop here:\n${changes}\n`)

if (!skipCheck) {
  say("bun run check …")
  const checked = run(process.execPath, "run", "check")
  if (!checked.ok) fail(`bun run check failed\n${checked.out}\n${checked.err}`, 1)
}

const { name }: { readonly name: string } = JSON.parse(manifest)
const sbomFile = "sbom.cdx.json"
const sbom = toSbom(await Bun.file(`${root}bun.lock`).text(), { name, version })

if (!dryRun) {
  await Bun.write(`${root}${sbomFile}`, `${JSON.stringify(sbom, null, 2)}\n`)
  await Bun.write(changelogFile, released.changelog)
  await Bun.write(manifestFile, manifest.replace(`"version": "${current}"`, `"version": "${version}"`))
}

const kilobytes = (bytes = 0) => `${Math.round(bytes / 1_000).toLocaleString("en-US")} kB`
/** Prints the files of the package that `npm publish` would make of a folder. */
const list = (folder: string, title: string) => {
  const packed = runIn(folder, "npm", "pack", "--dry-run", "--json", "--ignore-scripts")
  if (!packed.ok) fail(`npm pack failed\n${packed.err}`, 1)
  const [contents]: ReadonlyArray<{
    readonly size: number
    readonly unpackedSize: number
    readonly files: ReadonlyArray<{ readonly path: string; readonly size: number }>
  }> = JSON.parse(packed.out)
  say(`${title}:`)
  for (const { path, size } of contents?.files ?? []) say(`  ${kilobytes(size).padStart(9)}  ${path}`)
  say(
    `${contents?.files.length} files, ${kilobytes(contents?.size)} packed, ${kilobytes(contents?.unpackedSize)} unpacked\n`,
  )
}
const clientFolder = "types/client"
const clientAt = dryRun ? mkdtempSync(join(tmpdir(), "client-")) : join(root, clientFolder)
await writeClient(clientAt, version)

say(`${dryRun ? "would release" : "prepared"} ${version} (now ${current})\n`)
say(`CHANGELOG.md, ${date}:\n\n${released.notes}\n`)
list(root, `${name}, without types/, which \`npm publish\` builds`)
list(clientAt, `${name}-client`)
if (dryRun) rmSync(clientAt, { recursive: true })
say(
  `${sbomFile}: ${sbom.components.length} packages (CycloneDX ${sbom.specVersion}; publish it beside the release)\n`,
)
say(`${dryRun ? "No file was changed. These commands would remain:" : "These commands remain:"}

  git add CHANGELOG.md package.json
  git commit -m "Release ${version}"
  git tag -a v${version} -m "${version}"
  git push --follow-tags
  docker build --build-arg VERSION=${version} --build-arg REVISION=$(git rev-parse HEAD) -t user-embeddings:${version} .
  npm publish
  npm publish ./${clientFolder}`)
