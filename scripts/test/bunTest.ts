/** Runs `bun test` and reads its results from what it prints. */
import { runInGroup } from "./processGroup.ts"

export interface Result {
  readonly passed: number
  readonly failed: number
  readonly skipped: number
  /** The file and the name of each test that failed. */
  readonly failures: readonly string[]
}

export const noTests: Result = { passed: 0, failed: 0, skipped: 0, failures: [] }

export const plus = (a: Result, b: Result): Result => ({
  passed: a.passed + b.passed,
  failed: a.failed + b.failed,
  skipped: a.skipped + b.skipped,
  failures: [...a.failures, ...b.failures],
})

/** Bun's own summary is read, because its JUnit report leaves out files that cannot be loaded. */
export const readResult = (lines: readonly string[], exitCode: number): Result => {
  const start = lines.findLastIndex((line) => /^ *\d+ pass$/.test(line))
  const summary = start < 0 ? [] : lines.slice(start)
  const count = (what: string) =>
    Number(summary.map((line) => line.match(`^ *(\\d+) ${what}$`)?.[1]).find((n) => n !== undefined) ?? 0)
  let file = ""
  const failures: Array<string> = []
  for (const line of lines) {
    // Bun repeats all failures after this line.
    if (/^\d+ tests? failed:$/.test(line)) break
    if (/^test\/\S+\.ts:$/.test(line)) file = line
    const name = line.match(/^\(fail\) (.*)$/)?.[1]
    if (name !== undefined) failures.push(`${file} ${name}`)
  }
  if (start < 0) failures.push(`bun test ended with exit code ${exitCode} and without a summary`)
  return {
    passed: count("pass"),
    failed: count("fail") || (exitCode !== 0 || start < 0 ? 1 : 0),
    skipped: count("skip") + count("todo"),
    failures,
  }
}

/** Runs `bun test` with these arguments; its output is shown as it comes. */
export const bunTest = async (args: readonly string[], env: NodeJS.ProcessEnv, signal: AbortSignal) => {
  const lines: Array<string> = []
  const colour = process.stderr.isTTY ? { FORCE_COLOR: "1", ...env } : env
  const exitCode = await runInGroup([process.execPath, "test", ...args], colour, signal, (line) => {
    console.error(line)
    lines.push(Bun.stripANSI(line))
  })
  return readResult(lines, exitCode)
}
