#!/usr/bin/env bun
/**
 * `bun run test [--only NAME] [--coverage] [PATH…] [bun test arguments]` runs the tests in two tiers and ends with the
 * line `N passed, N failed[, N skipped]`.
 *
 * Unit tests need no server and run while `bun run check` works and the servers start. All other tests follow on the
 * servers, which are stopped at the end. `--unit` runs the first tier alone. `bun run check` belongs to whole runs.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"
import bunfig from "../bunfig.toml"
import { messageOf } from "./services/command.ts"
import { aptInstall } from "./services/install.ts"
import { down, type Status, up, urlVariables } from "./services/manager.ts"
import * as sacrificial from "./services/sacrificial.ts"
import { defaultServices } from "./services/service.ts"
import { bundle, bundlesVariable } from "./test/bundle.ts"
import { bunTest, noTests, plus, type Result } from "./test/bunTest.ts"
import { printCoverage } from "./test/coverage.ts"
import { runInGroup } from "./test/processGroup.ts"

const root = resolve(import.meta.dir, "..")
const isCi = ["true", "1"].includes(process.env.CI ?? "")

/** `--parallel` ignores the time limit of bunfig.toml. */
const timeout = `--timeout=${bunfig.test.timeout}`

/** What the command line asks for. */
const { files, flags, unitOnly, isWhole, wantsCoverage } = (() => {
  const given = process.argv.slice(2).filter((word, index) => !(index === 0 && word === "--"))
  const words = given.filter((word) => word !== "--coverage" && word !== "--unit")
  const isPath = (word: string) => /^(\.\/)?test(\/|$)/.test(word)
  const paths = words.filter(isPath).map((path) => path.replace(/^\.\//, ""))
  const flags = words
    .filter((word) => !isPath(word))
    .map((word) => (word === "--only" ? "--test-name-pattern" : word))
  return {
    files: [...new Bun.Glob("test/**/*.test.ts").scanSync({ cwd: root })]
      .filter((file) => paths.length === 0 || paths.some((path) => file.startsWith(path)))
      .toSorted(),
    flags,
    unitOnly: given.includes("--unit"),
    isWhole: words.length === 0,
    wantsCoverage: given.includes("--coverage"),
  }
})()

const isUnit = (file: string) =>
  /^test\/(services|layers|client|scripts|otel|deploy)\//.test(file) &&
  !readFileSync(join(root, file), "utf8").includes("withServers(")
const isFailure = (file: string) => file.startsWith("test/failures/")
// Heavy failure scenarios have a command of their own: `bun run test test/failures`.
if (isWhole) process.env.FAILURES ??= "brief"
// Most processes end before optimised code pays. Without the last tier of the JIT they need a seventh less CPU, and tests
// that start many programs another sixth if the tier before it begins later.
process.env.BUN_JSC_useFTLJIT ??= "0"
process.env.BUN_JSC_numberOfDFGCompilerThreads ??= "1"
process.env.BUN_JSC_thresholdForOptimizeAfterWarmUp ??= "5000"
process.env.BUN_JSC_thresholdForOptimizeAfterLongWarmUp ??= "5000"
const unitTests = files.filter(isUnit)
const systemTests = unitOnly ? [] : files.filter((file) => !isUnit(file))
const wantsSacrificial = systemTests.some(isFailure)
const wantsUsual = !systemTests.every(isFailure)
const wantsPostgres = systemTests.some(
  (file) => /postgres|sink/i.test(file) || (isFailure(file) && process.env.FAILURES !== "brief"),
)

/** Servers to kill, if they can be had. Answers the variable that says where they are. */
const startSacrificial = async (signal: AbortSignal): Promise<NodeJS.ProcessEnv> => {
  if (!wantsSacrificial) return {}
  try {
    // The scenarios of MySQL take too long for the short form.
    const servers = process.env.FAILURES === "long" ? "rabbitmq,mysql,mongodb" : "rabbitmq,mongodb"
    const addresses = await sacrificial.up(servers, signal)
    console.error("sacrificial servers for the failure tests: ready")
    return { [sacrificial.sacrificialVariable]: addresses }
  } catch (error) {
    signal.throwIfAborted()
    console.error(`No servers for the failure tests, which are skipped: ${messageOf(error)}`)
    return {}
  }
}

/** Tests are skipped when the environment has no URL of their server. */
const testEnvironment = (statuses: readonly Status[]): NodeJS.ProcessEnv => {
  const unavailable: readonly string[] = statuses.flatMap((each) =>
    each.ready ? [] : urlVariables(each.service),
  )
  const inherited = Object.entries(process.env).filter(([name]) => !unavailable.includes(name))
  return Object.assign(Object.fromEntries(inherited), ...statuses.map((each) => (each.ready ? each.env : {})))
}

/** The browser for the tests of the page, which are skipped without it. */
const installBrowser = async (signal: AbortSignal) => {
  const present = () => existsSync("/usr/bin/chromium")
  try {
    if (wantsUsual) await aptInstall("chromium", present, signal)
  } catch (error) {
    signal.throwIfAborted()
    console.error(`No browser for the tests of the page, which are skipped: ${messageOf(error)}`)
  }
}

/** `bun run check` counts as one test when it fails. Its output is shown only then. */
const check = async (signal: AbortSignal): Promise<Result> => {
  if (!isWhole || unitOnly) return noTests
  const lines: Array<string> = []
  const code = await runInGroup([process.execPath, "run", "check"], process.env, signal, (line) => {
    lines.push(line)
  })
  console.error(code === 0 ? "bun run check: no findings" : lines.join("\n"))
  return code === 0 ? noTests : { ...noTests, failed: 1, failures: ["bun run check"] }
}

/**
 * A file of weights for `bun test --parallel`, which starts the heaviest files first: failure scenarios last longest,
 * and tests that start programs last longer than others.
 */
const writeWeights = (folder: string) => {
  const order = ["test/failures/", "test/docs/", "test/programs/cli/", "test/programs/"]
  const weight = (file: string) => {
    const rank = order.findIndex((start) => file.startsWith(start))
    return rank < 0 ? 1 : 1000 * (order.length - rank)
  }
  const path = join(folder, "weights.json")
  const weights = Object.fromEntries(files.map((file) => [file, weight(file)]))
  writeFileSync(path, JSON.stringify({ version: 1, files: weights }))
  return path
}

const main = async (signal: AbortSignal): Promise<Result> => {
  const folder = mkdtempSync(join(tmpdir(), "tests-"))
  process.env[bundlesVariable] = folder
  const weights = writeWeights(folder)
  const reports = { unit: join(folder, "unit"), system: join(folder, "system") }
  const run = (tier: keyof typeof reports, chosen: readonly string[], env: NodeJS.ProcessEnv) => {
    if (chosen.length === 0) return noTests
    const parallel =
      chosen.length > 1 ? ["--parallel=3", "--no-isolate", `--timings=${weights}`, timeout] : []
    const coverage = wantsCoverage
      ? ["--coverage", "--coverage-reporter=lcov", `--coverage-dir=${reports[tier]}`]
      : []
    return bunTest([...parallel, ...coverage, ...flags, ...chosen.map((file) => `./${file}`)], env, signal)
  }
  const unit = Promise.all([check(signal), run("unit", unitTests, process.env)])
  let cleanUp = async () => {}
  const system = async () => {
    const browserReady = installBrowser(signal)
    const bundled = bundle("src/programs/main.ts", folder)
    const { statuses, started } = await up({
      only: [
        ...(wantsUsual ? defaultServices : (["mysql"] as const)),
        ...(wantsPostgres ? (["postgres"] as const) : []),
      ],
      signal,
      say: (line) => console.error(line),
    })
    cleanUp = async () => {
      if (started.length > 0) await down({ only: started })
      if (wantsSacrificial) await sacrificial.down()
    }
    const env = { ...testEnvironment(statuses), ...(await startSacrificial(signal)) }
    await Promise.all([browserReady, bundled, unit])
    return run("system", systemTests, env)
  }
  const rest = systemTests.length > 0 ? system() : Promise.resolve(noTests)
  try {
    const results = await Promise.all([unit, rest])
    if (wantsCoverage) await printCoverage(Object.values(reports).map((report) => join(report, "lcov.info")))
    return results.flat().reduce(plus)
  } finally {
    await Promise.allSettled([unit, rest])
    await cleanUp()
    rmSync(folder, { recursive: true, force: true })
  }
}

const interrupted = new AbortController()
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  process.on(signal, () => interrupted.abort(new Error(`interrupted by ${signal}`)))
}
try {
  const { failed, failures, passed, skipped } = await main(interrupted.signal)
  if (failures.length > 0) console.error(`\nFailed:\n${failures.map((name) => `  ${name}`).join("\n")}`)
  if (isCi && skipped > 0) console.error("Skipped tests are a failure in CI.")
  console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`)
  process.exit(failed > 0 || passed === 0 || (isCi && skipped > 0) ? 1 : 0)
} catch (error) {
  console.error(messageOf(error))
  process.exit(interrupted.signal.aborted ? 130 : 1)
}
