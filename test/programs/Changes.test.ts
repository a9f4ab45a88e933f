/** The library's changes of embeddings, on the embedded stack. */
import { afterAll, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { type Client, open } from "../../src/programs/Open.ts"

const folder = mkdtempSync(join(tmpdir(), "changes-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))
const opened = (EMBEDDING_FEED = "vectors") => open({ stack: "embedded", DATA_DIR: folder, EMBEDDING_FEED })
const search = async (shop: Client, user_id: string, search_phrase: string) => {
  await shop.record({ user_id, event_type: "search", search_phrase })
  await shop.drained()
}
/** The next change of the user. */
const next = async (changes: ReturnType<Client["changes"]>, user: string) => {
  for (;;) {
    const { value } = await changes.next()
    if (value?.user_id === user) return value
  }
}

test("changes come with version and vector; a name goes on after the last change that was handled", async () => {
  const shop = await opened()
  const first = shop.changes({ name: "test" })
  let change: Awaited<ReturnType<typeof next>> | undefined
  const received = next(first, "a").then((one) => {
    change = one
  })
  // The subscription begins some time after the first request for a change.
  while (change === undefined) await search(shop, "a", "wine")
  await received
  expect(change).toMatchObject({ type: "updated", user_id: "a", space: (await shop.embedding("a"))!.space })
  expect("embedding" in change && change.embedding?.length).toBe(
    (await shop.embedding("a"))!.embedding.length,
  )
  // The loop ends while it handles this change, so it comes again.
  await first.return()
  await shop.close()

  const again = await opened()
  await search(again, "b", "tent")
  const second = again.changes({ name: "test" })
  expect((await next(second, "a")).version).toBeGreaterThanOrEqual(change.version)
  expect(await next(second, "b")).toMatchObject({ version: 1 })
  const waiting = second.next()
  await search(again, "c", "rope")
  expect((await waiting).value).toMatchObject({ user_id: "c" })
  const last = second.next()
  await again.close()
  expect(await last).toEqual({ done: true, value: undefined })
})

test("without a feed, the iteration says what to set", async () => {
  await using shop = await opened("off")
  expect(shop.changes().next()).rejects.toMatchObject({ _tag: "FeedIsOff" })
})
