/** SQLite statements are synchronous. A worker that runs many must yield to the event loop, for example to the HTTP server. */
import { expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as SqlClient from "@effect/sql/SqlClient"
import { Effect, Layer } from "effect"
import { embedded as schema } from "../../../src/layers/sql/migrations/embedded.ts"
import { interactionLog } from "../../../src/layers/sql/migrations/interactionLog.ts"
import { migrate } from "../../../src/layers/sql/SqlMigrations.ts"
import * as Sqlite from "../../../src/layers/sqlite/Sqlite.ts"
import * as Worker from "../../../src/programs/Worker.ts"
import { InteractionQueue } from "../../../src/services/ports/InteractionQueue.ts"
import { layerSuite } from "../../support/effect.ts"
import { drained, message, product, recording, storeProduct } from "../../support/pipeline.ts"
import { embedded } from "../../support/stacks.ts"

layerSuite("a worker with a backlog on the embedded stack", recording(embedded()), (it) => {
  it(
    "lets the event loop serve requests",
    () =>
      Effect.gen(function* () {
        const queue = yield* InteractionQueue
        const backlog = Array.from({ length: 8_000 }, (_, n) =>
          message(
            product(`u-${n % 800}`, "product_view", "p-1", new Date(1_700_000_000_000 + n).toISOString()),
          ),
        )
        yield* storeProduct("p-1", "a tent")
        yield* queue.publish(backlog)
        const server = yield* Effect.acquireRelease(
          Effect.sync(() => Bun.serve({ port: 0, fetch: () => new Response("ok") })),
          (server) => Effect.promise(() => server.stop(true)),
        )
        let answered = 0
        let asking = true
        const ask = Effect.promise(async () => {
          while (asking) answered += (await (await fetch(server.url)).text()) === "ok" ? 1 : 0
        })
        yield* Effect.forkScoped(ask)
        yield* Layer.build(Layer.fresh(Worker.layer))
        yield* drained
        asking = false
        // Without yielding, one request is answered, after the backlog.
        expect(answered).toBeGreaterThan(3)
      }),
    60_000,
  )
})

test("rows are marked as published by one look-up each", async () => {
  const directory = mkdtempSync(join(tmpdir(), "user-embeddings-"))
  const plan = Effect.gen(function* () {
    for (const steps of [interactionLog, schema]) yield* migrate(steps)
    const sql = yield* SqlClient.SqlClient
    return yield* sql`EXPLAIN QUERY PLAN UPDATE user_interactions ${sql.literal(Sqlite.dialect.forceIndex("PRIMARY"))}
      SET processed_to_queue = TRUE WHERE id IN (1, 2, 3) AND message_id IN ('a', 'b', 'c')`
  }).pipe(Effect.provide(Sqlite.layer({ directory })))
  const steps = await Effect.runPromise(plan).finally(() => rmSync(directory, { recursive: true }))
  // By the index of message ids, 500 rows are 250,000 look-ups and block the event loop for 100 ms.
  expect(steps).toEqual([
    expect.objectContaining({ detail: "SEARCH user_interactions USING INTEGER PRIMARY KEY (rowid=?)" }),
  ])
})
