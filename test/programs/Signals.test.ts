/** SIGHUP, which a closed terminal sends, stops a program as SIGTERM does. */
import { expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { bundledProgram } from "../support/bundledProgram.ts"

const main = await bundledProgram("src/programs/main.ts")

test("SIGHUP stops a program in order", async () => {
  const folder = mkdtempSync(join(tmpdir(), "user-embeddings-"))
  const { HOME = "", PATH = "" } = process.env
  const child = Bun.spawn([process.execPath, main, "up"], {
    env: { HOME, PATH, DATA_DIR: folder, API_PORT: "0", LOG_FORMAT: "json" },
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
}, 30_000)
