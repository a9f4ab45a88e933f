/** Errors of commands: one line with the reason, one with the next step, exit code 1 or 2. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { Effect } from "effect"
import { bundledProgram } from "../../../support/bundledProgram.ts"
import { childProcess } from "../../../support/childProcess.ts"

const main = await bundledProgram("src/programs/main.ts")
const folder = mkdtempSync(join(tmpdir(), "error-report-"))
const badLines = join(folder, "bad.jsonl")
const noLines = join(folder, "empty.jsonl")
const embedded = { DATA_DIR: join(folder, "data") }
const nowhere = {
  RABBITMQ_DSN: "amqp://guest:sekret@127.0.0.1:1",
  MYSQL_URL: "mysql://root:sekret@127.0.0.1:1/shop",
  MONGODB_URL: "mongodb://127.0.0.1:1",
}

const run = (line: string, env: Readonly<Record<string, string>>) =>
  childProcess([process.execPath, main, ...line.split(" ")], { LOG_LEVEL: "error", ...env })

/** Four processes at a time: with more, each would come near its time-out on a small machine. */
const processes = Effect.unsafeMakeSemaphore(4)
const runSoon = (line: string, env: Readonly<Record<string, string>>) =>
  Effect.runPromise(processes.withPermits(1)(Effect.promise(() => run(line, env))))

const busy = createServer()
let busyPort = 0

beforeAll(async () => {
  writeFileSync(badLines, "no json\n")
  writeFileSync(noLines, "")
  await new Promise<void>((done) => busy.listen(0, "127.0.0.1", done))
  const address = busy.address()
  if (typeof address === "object" && address !== null) busyPort = address.port
  expect(await run("setup", embedded)).toMatchObject({ code: 0 })
  for (const one of cases) results.set(one, runSoon(one.line, one.env ?? embedded))
}, 60_000)
afterAll(() => {
  busy.close()
  rmSync(folder, { recursive: true, force: true })
})

interface Case {
  readonly line: string
  readonly env?: Readonly<Record<string, string>>
  readonly code: 1 | 2
  readonly says: string
  /** Part of the last line. */
  readonly next: string
}
const results = new Map<Case, ReturnType<typeof run>>()
const cases: ReadonlyArray<Case> = [
  { line: "bogus", code: 2, says: "there is no command bogus", next: "user-embeddings --help" },
  { line: "stats --bogus", code: 2, says: "--bogus", next: "user-embeddings stats --help" },
  {
    line: "failed retry",
    code: 2,
    says: "give the ids of dead letters",
    next: "user-embeddings failed retry --help",
  },
  { line: "user erase 1", code: 2, says: "--yes", next: "user-embeddings user erase --help" },
  {
    line: "products import /no/such/file",
    code: 2,
    says: "must exist",
    next: "user-embeddings products import --help",
  },
  {
    line: "audit",
    env: { ...nowhere, MYSQL_URL: "htp://root:sekret@x" },
    code: 1,
    says: "MYSQL_URL: must be a URL that starts with mysql://",
    next: ".env.example",
  },
  {
    line: "audit",
    env: { MYSQL_URL: nowhere.MYSQL_URL },
    code: 1,
    says: "RABBITMQ_DSN and MONGODB_URL must be set too",
    next: ".env.example",
  },
  { line: "config", env: { LOG_LEVEL: "warning" }, code: 1, says: "LOG_LEVEL", next: ".env.example" },
  { line: "config", env: { LOG_FORMAT: "text" }, code: 1, says: "LOG_FORMAT", next: ".env.example" },
  { line: "audit", env: nowhere, code: 1, says: "ECONNREFUSED", next: "user-embeddings doctor" },
  { line: "failed list", env: nowhere, code: 1, says: "ECONNREFUSED", next: "user-embeddings doctor" },
  { line: "user show 1", env: nowhere, code: 1, says: "ECONNREFUSED", next: "user-embeddings doctor" },
  {
    line: "audit",
    env: { DATA_DIR: join(folder, "new") },
    code: 1,
    says: "not_set_up",
    next: "user-embeddings setup",
  },
  { line: "user show 1", code: 1, says: "user 1 is unknown", next: "check the id" },
  { line: "audit --user nobody", code: 1, says: "user nobody is unknown", next: "check the id" },
  { line: "failed show x", code: 1, says: "no dead letter", next: "user-embeddings failed list" },
  { line: `products import ${badLines} --strict`, code: 1, says: "line 1", next: "correct the line" },
  { line: `import interactions ${badLines} --strict`, code: 1, says: "line 1", next: "--help" },
]

describe("a command that fails prints the reason and the next step", () => {
  for (const one of cases) {
    const { code, line, next, says } = one
    test(`${line.replaceAll(folder, "")}: ${says}`, async () => {
      const { err, out, ...ended } = await results.get(one)!
      expect({ ...ended, out }).toEqual({ code, out: "" })
      expect(err).toContain(says)
      expect(err.trimEnd().split("\n").at(-1)).toStartWith("  → ")
      expect(err.trimEnd().split("\n").at(-1)).toContain(next)
      expect(err).toBe(Bun.stripANSI(err))
      expect(err).not.toContain("sekret")
      expect(err).not.toMatch(/^ +at /m)
    }, 60_000)
  }

  test("an empty file is no catalogue that replaces another", async () => {
    const { code, err, out } = await run(`products import ${noLines} --replace`, embedded)
    expect([code, err]).toEqual([1, expect.stringContaining("the file has no product")])
    expect(out).toContain("nothing was made unavailable")
  })

  test("with --json, as the last line of stderr and with the same exit code", async () => {
    const [unknown, unreachable] = await Promise.all([
      run("user show 1 --json", embedded),
      run("audit --json", nowhere),
    ])
    expect({ ...unknown, err: JSON.parse(unknown.err) }).toEqual({
      code: 1,
      out: "",
      err: {
        error: {
          type: "UserNotFound",
          message: "user 1 is unknown: no event is recorded",
          next_step: expect.stringContaining("check the id"),
        },
      },
    })
    expect(unreachable.code).toBe(1)
    expect(JSON.parse(unreachable.err.trimEnd().split("\n").at(-1) ?? "")).toEqual({
      error: {
        type: "InteractionLogError",
        reason: "unavailable",
        message: expect.stringContaining("ECONNREFUSED"),
        next_step: expect.stringContaining("user-embeddings doctor"),
      },
    })
  }, 60_000)

  test("a port in use", async () => {
    const { code, err } = await run("api", { ...embedded, API_PORT: String(busyPort) })
    expect(code).toBe(1)
    expect(err).toContain(String(busyPort))
    expect(err.trimEnd().split("\n").at(-1)).toContain("API_PORT")
  }, 60_000)
})
