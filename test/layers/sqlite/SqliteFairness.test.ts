/** SQLite statements are synchronous. A worker that runs many must yield to the event loop, for example to the HTTP server. */
import { expect } from "bun:test"
import { Effect, Layer } from "effect"
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
