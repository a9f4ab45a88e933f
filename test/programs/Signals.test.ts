/** SIGHUP, which a closed terminal sends, stops a program as SIGTERM does. The program names misspelt variables. */
import { expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { bundledProgram } from "../support/bundledProgram.ts"

const main = await bundledProgram("src/programs/main.ts")

test("SIGHUP stops a program in order, and a misspelt variable is named at the start", async () => {
  const folder = mkdtempSync(join(tmpdir(), "user-embeddings-"))
  const { HOME = "", PATH = "" } = process.env
  const child = Bun.spawn([process.execPath, main, "up"], {
    env: { HOME, PATH, DATA_DIR: folder, API_PORT: "0", LOG_FORMAT: "json", WORKER_PREFECTH: "9" },
    stdin: "ignore",
    stdout: "ignore",
    stderr: "pipe",
  })
  let log = ""
  const decoder = new TextDecoder()
  for await (const chunk of child.stderr) {
    const hadListened = log.includes("api.listening")
    log += decoder.decode(chunk, { stream: true })
    if (hadListened || !log.includes("api.listening")) continue
    child.kill("SIGHUP")
  }
  await child.exited
  rmSync(folder, { recursive: true, force: true })
  expect([child.exitCode, child.signalCode]).toEqual([0, null])
  const [unknown] = log.split("\n").filter((line) => line.includes('"config.unknown"'))
  expect(JSON.parse(unknown ?? "{}")).toMatchObject({ variables: "WORKER_PREFECTH (WORKER_PREFETCH?)" })
}, 30_000)
