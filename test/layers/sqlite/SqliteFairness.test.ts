/** Statements are synchronous: who runs many of them must leave the event loop to others, as to the HTTP server. */
import { expect } from "bun:test"
import { Effect, Layer } from "effect"
import * as Worker from "../../../src/programs/Worker.ts"
import { InteractionQueue } from "../../../src/services/ports/InteractionQueue.ts"
import { layerSuite } from "../../support/effect.ts"
import { drained, message, product, recording, storeProduct } from "../../support/pipeline.ts"
import { embedded } from "../../support/stacks.ts"

layerSuite("a worker with a backlog on the embedded stack", recording(embedded()), (it) => {
  it(
    "lets timers and requests in",
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
        // Without a break one is answered, when all is done.
        expect(answered).toBeGreaterThan(8)
      }),
    60_000,
  )
})
