/**
 * A signal stops a long command: it says where it stopped, and ends with 128 + the number of the signal. A command whose
 * reader has gone ends without a word.
 */
import { afterAll, beforeAll, expect, test } from "bun:test"
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { bundledProgram } from "../../support/bundledProgram.ts"

const main = await bundledProgram("src/programs/main.ts")
const folder = mkdtempSync(join(tmpdir(), "stopped-"))
let asked = 0
/** A service that never answers. */
const silent = Bun.serve({
  port: 0,
  fetch: () => {
    asked += 1
    return new Promise<Response>(() => undefined)
  },
})
afterAll(async () => {
  await silent.stop(true)
  rmSync(folder, { recursive: true, force: true })
})

const history = join(folder, "history.csv")
const rows = Array.from({ length: 100_000 }, (_, n) => `u-${n % 99},view,p-1,${1_700_000_000 + n}\n`)
writeFileSync(history, `user_id,event_type,product_id,occurred_at\n${rows.join("")}`)
const products = join(folder, "products.jsonl")
writeFileSync(products, '{"product_id":1,"text":"boot"}\n')
const state = join(folder, "state.json")

const isAsked = () => asked > 0
const cases: ReadonlyArray<
  readonly [string, ReadonlyArray<string>, "SIGINT" | "SIGTERM", () => boolean, RegExp]
> = [
  [
    "import",
    ["interactions", history, "--state", state],
    "SIGINT",
    () => existsSync(state),
    /^stopped at line [\d,]+00[12]; run it again to go on$/m,
  ],
  ["products", ["import", products], "SIGTERM", isAsked, /^stopped after 0 lines; run it again to go on$/m],
  [
    "evaluate",
    [history, "--products", products],
    "SIGTERM",
    isAsked,
    /^stopped at line 1, after 0 interactions; run it again from the beginning$/m,
  ],
  [
    "generate",
    ["--users", "2", "--events", "2", "--url", silent.url.href],
    "SIGINT",
    isAsked,
    /^stopped after 0 of 4 events were accepted and 0 embedded; with the same --seed and --start it goes on$/m,
  ],
]
const code = { SIGINT: 130, SIGTERM: 143 }

const environment = {
  PATH: process.env.PATH ?? "",
  DATA_DIR: join(folder, "data"),
  OPENAI_API_KEY: "unused",
  OPENAI_BASE_URL: silent.url.href,
  LOG_LEVEL: "error",
}
beforeAll(async () => {
  await Bun.spawn([process.execPath, main, "setup"], { env: environment, stdout: "ignore" }).exited
}, 30_000)

for (const [name, args, signal, isWorking, says] of cases)
  test(`${name}: ${signal}`, async () => {
    asked = 0
    const child = Bun.spawn([process.execPath, main, name, ...args], {
      env: environment,
      stdout: "pipe",
      stderr: "pipe",
    })
    while (!isWorking() && child.exitCode === null) await Bun.sleep(5)
    child.kill(signal)
    const errors = await new Response(child.stderr).text()
    expect(errors).toMatch(says)
    expect(await child.exited).toBe(code[signal])
  }, 30_000)

for (const args of ["export interactions", "stats --watch"])
  test(`${args}: silent when the reader of its output has gone`, async () => {
    const child = Bun.spawn(
      [
        "bash",
        "-c",
        `"$0" "$1" ${args} | head -c 10 > /dev/null; exit \${PIPESTATUS[0]}`,
        process.execPath,
        main,
      ],
      { env: environment, stdout: "ignore", stderr: "pipe" },
    )
    const [errors, code] = await Promise.all([new Response(child.stderr).text(), child.exited])
    expect({ errors, code }).toEqual({ errors: "", code: 141 })
  }, 30_000)
