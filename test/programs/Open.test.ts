/** `open` refuses a configuration that it cannot use, and a closed client says that it is closed. */
import { expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { BadConfiguration, Closed, type Options, open } from "../../src/programs/Open.ts"

const withoutServers = { RABBITMQ_DSN: "", MYSQL_URL: "", MONGODB_URL: "" }
const refusal = async (options: Options) => {
  const error = await open({ ...withoutServers, ...options }).catch((error: unknown) => error)
  expect(error).toBeInstanceOf(BadConfiguration)
  return error instanceof Error ? error.message : ""
}

test("a stack without its servers, an unknown stack and a bad variable are refused by name", async () => {
  expect(await refusal({ stack: "external" })).toBe(
    'stack "external" needs RABBITMQ_DSN, MYSQL_URL and MONGODB_URL',
  )
  expect(await refusal({ stack: "embeded" as "embedded" })).toBe(
    'stack "embeded" must be "embedded" or "external"',
  )
  expect(await refusal({ stack: "embedded", EMBEDDING_HISTORY: "x" })).toStartWith('EMBEDDING_HISTORY "x": ')
})

test("a closed client rejects with an error", async () => {
  const folder = mkdtempSync(join(tmpdir(), "open-"))
  try {
    const shop = await open({ stack: "embedded", DATA_DIR: folder, worker: false })
    await shop.close()
    await shop.close()
    expect(await shop.recommend("u-1").catch((error: unknown) => error)).toBeInstanceOf(Closed)
  } finally {
    rmSync(folder, { recursive: true })
  }
})
