#!/usr/bin/env bun
/**
 * `bun run test [--coverage] [bun test arguments]`: all tests against real servers, which are started if need
 * be and stopped again; the failure tests get servers of their own, to kill. `--only NAME` runs the tests whose name has
 * it in it. The last line is the result: `N passed, N failed[, N skipped]`.
 */
import { spawn } from "node:child_process"
import { existsSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"
import { messageOf } from "./services/command.ts"
import { aptInstall } from "./services/install.ts"
import { down, type Status, up, urlVariables } from "./services/manager.ts"
import * as sacrificial from "./services/sacrificial.ts"

interface Counts {
  readonly passed: number
  readonly failed: number
  readonly skipped: number
}

const root = resolve(import.meta.dir, "..")
const isCi = ["true", "1"].includes(process.env.CI ?? "")
const given = process.argv.slice(2).filter((arg, index) => !(index === 0 && arg === "--"))
const testArguments = given.flatMap((arg) =>
  arg === "--coverage" ? [] : arg === "--only" ? ["--test-name-pattern"] : [arg],
)
const paths = testArguments.filter((arg) => arg.startsWith("test/") || arg.startsWith("./test/"))
const forFailures = paths.filter((path) => path.includes("test/failures"))
const wantsSacrificial = paths.length === 0 || forFailures.length > 0
const wantsUsual = paths.length === 0 || forFailures.length < paths.length
const wantsCoverage = isCi || given.includes("--coverage")

/** Reads Bun's own summary: its JUnit report leaves out errors between tests (a file that cannot be loaded). */
const readCounts = (output: string, exitCode: number): Counts => {
  const text = Bun.stripANSI(output)
  const summary = text.slice(Math.max(0, [...text.matchAll(/^ *\d+ pass$/gm)].at(-1)?.index ?? text.length))
  const count = (what: string) => Number(summary.match(new RegExp(`^ *(\\d+) ${what}$`, "m"))?.[1] ?? 0)
  if (summary === "") console.error(`bun test ended with exit code ${exitCode} and without a summary`)
  return {
    passed: count("pass"),
    failed: count("fail") || (exitCode !== 0 || summary === "" ? 1 : 0),
    skipped: count("skip") + count("todo"),
  }
}

/** Prints the share of functions and lines of src/services that the tests ran. */
const printCoverage = async (lcov: string) => {
  const report = Bun.file(lcov)
  if (!(await report.exists())) return
  const rows = (await report.text()).split("end_of_record").flatMap((record) => {
    const file = record.match(/^SF:(.*)$/m)?.[1] ?? ""
    const number = (key: string) => Number(record.match(new RegExp(`^${key}:(\\d+)$`, "m"))?.[1] ?? 0)
    if (!file.startsWith("src/services/")) return []
    return [{ file, functions: [number("FNH"), number("FNF")], lines: [number("LH"), number("LF")] } as const]
  })
  const sum = (pairs: readonly (readonly number[])[]) =>
    [0, 1].map((i) => pairs.reduce((n, p) => n + (p[i] ?? 0), 0))
  const total = {
    file: "all",
    functions: sum(rows.map((r) => r.functions)),
    lines: sum(rows.map((r) => r.lines)),
  }
  const percent = ([hit = 0, found = 0]: readonly number[]) =>
    `${(found === 0 ? 100 : (100 * hit) / found).toFixed(1)} %`.padStart(9)
  console.log(`\n${"coverage of src/services".padEnd(44)}${"functions".padStart(9)}${"lines".padStart(9)}`)
  for (const { file, functions, lines } of [...rows, total]) {
    console.log(`${file.replace("src/services/", "").padEnd(44)}${percent(functions)}${percent(lines)}`)
  }
}

/** Runs `bun test` in a process group of its own, so that nothing a test has started can outlive it. */
const runTests = async (env: NodeJS.ProcessEnv, coverageFolder: string, signal: AbortSignal) => {
  signal.throwIfAborted()
  const coverage = ["--coverage", "--coverage-reporter=lcov", `--coverage-dir=${coverageFolder}`]
  const child = spawn(process.execPath, ["test", ...(wantsCoverage ? coverage : []), ...testArguments], {
    cwd: root,
    detached: true,
    env: process.stderr.isTTY ? { FORCE_COLOR: "1", ...env } : env,
    stdio: ["ignore", "inherit", "pipe"],
  })
  const signalGroup = (name: NodeJS.Signals) => {
    try {
      if (child.pid !== undefined) process.kill(-child.pid, name)
    } catch {
      // nobody left in it
    }
  }
  const interrupt = () => {
    signalGroup("SIGTERM")
    setTimeout(() => signalGroup("SIGKILL"), 5000).unref()
  }
  signal.addEventListener("abort", interrupt)
  let output = ""
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    process.stderr.write(text)
    output = (output + text).slice(-100_000)
  })
  const closed = new Promise<void>((done) => child.once("close", () => done()))
  const exitCode = await new Promise<number>((done, failed) => {
    child.once("error", failed).once("exit", (code) => done(code ?? 128))
  })
  signalGroup("SIGKILL")
  await closed
  signal.throwIfAborted()
  return readCounts(output, exitCode)
}

/** Servers to kill, if they can be had; answers the variable that says where. */
const sacrifice = async (signal: AbortSignal): Promise<NodeJS.ProcessEnv> => {
  if (!wantsSacrificial) return {}
  try {
    const addresses = await sacrificial.up(signal)
    console.error("sacrificial servers for the failure tests: ready")
    return { [sacrificial.sacrificialVariable]: addresses }
  } catch (error) {
    signal.throwIfAborted()
    console.error(`No servers for the failure tests, which are skipped: ${messageOf(error)}`)
    return {}
  }
}

/** Tests skip what they find no URL for. */
const testEnvironment = (statuses: readonly Status[]): NodeJS.ProcessEnv => {
  const unavailable: readonly string[] = statuses.flatMap((each) =>
    each.ready ? [] : urlVariables(each.service),
  )
  const inherited = Object.entries(process.env).filter(([name]) => !unavailable.includes(name))
  return Object.assign(Object.fromEntries(inherited), ...statuses.map((each) => (each.ready ? each.env : {})))
}

/** The browser of the page's tests, which are skipped without it. */
const browser = async (signal: AbortSignal) => {
  const present = () => existsSync("/usr/bin/chromium")
  try {
    if (wantsUsual) await aptInstall("chromium", present, signal)
  } catch (error) {
    signal.throwIfAborted()
    console.error(`No browser for the tests of the page, which are skipped: ${messageOf(error)}`)
  }
}

const main = async (signal: AbortSignal): Promise<Counts> => {
  const coverageFolder = mkdtempSync(join(tmpdir(), "coverage-"))
  const browserReady = browser(signal)
  const { statuses, started } = await up({
    ...(wantsUsual ? {} : { only: ["mysql"] }),
    signal,
    say: (line) => console.error(line),
  })
  try {
    await browserReady
    const env = { ...testEnvironment(statuses), ...(await sacrifice(signal)) }
    const counts = await runTests(env, coverageFolder, signal)
    if (wantsCoverage) await printCoverage(join(coverageFolder, "lcov.info"))
    return counts
  } finally {
    await Promise.all([
      ...(started.length > 0 ? [down({ only: started })] : []),
      ...(wantsSacrificial ? [sacrificial.down()] : []),
    ])
    rmSync(coverageFolder, { recursive: true, force: true })
  }
}

const interrupted = new AbortController()
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  process.on(signal, () => interrupted.abort(new Error(`interrupted by ${signal}`)))
}
try {
  const { passed, failed, skipped } = await main(interrupted.signal)
  if (isCi && skipped > 0) console.error("Skipped tests are a failure in CI.")
  console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`)
  process.exit(failed > 0 || passed === 0 || (isCi && skipped > 0) ? 1 : 0)
} catch (error) {
  console.error(messageOf(error))
  process.exit(interrupted.signal.aborted ? 130 : 1)
}
