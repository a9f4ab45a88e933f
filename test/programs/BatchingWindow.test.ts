/** A worker with the batching window, on both stacks. */
import { expect } from "bun:test"
import { type ConfigError, Effect, Exit, Layer, Scope } from "effect"
import type { Ports } from "../../src/layers/Stack.ts"
import * as Worker from "../../src/programs/Worker.ts"
import { DeadLetters } from "../../src/services/ports/DeadLetters.ts"
import type { DependencyDown } from "../../src/services/ports/Dependencies.ts"
import { InteractionQueue } from "../../src/services/ports/InteractionQueue.ts"
import { UserEmbeddings } from "../../src/services/ports/UserEmbeddings.ts"
import { layerSuite } from "../support/effect.ts"
import { drained, embeddingOf, eventually, message, search } from "../support/pipeline.ts"
import { withServers } from "../support/servers.ts"
import { embedded, external } from "../support/stacks.ts"

/** Long enough to tell a worker that waits from a slow one, even on a busy machine. */
const windowSeconds = 4
const settings = {
  EMBEDDING_BATCH_ENABLED: "true",
  EMBEDDING_BATCH_WINDOW: String(windowSeconds),
  WORKER_PREFETCH: "10",
}
const events = (user: string, count: number) =>
  Array.from({ length: count }, (_, i) =>
    search(user, "garden chairs", new Date(Date.UTC(2026, 0, 1, 0, 0, i)).toISOString()),
  )
const publish = (...messages: ReadonlyArray<ReturnType<typeof message>>) =>
  Effect.flatMap(InteractionQueue, (queue) => queue.publish(messages))
const record = (user: string) =>
  Effect.flatMap(UserEmbeddings, (users) => Effect.map(users.load([user]), (found) => found.get(user)))

const suite = (name: string, stack: Layer.Layer<Ports, ConfigError.ConfigError | DependencyDown>) =>
  layerSuite(name, stack, (it) => {
    it("folds messages that arrive within the window into one write, and acknowledges none before", () =>
      Effect.gen(function* () {
        yield* Layer.build(Layer.fresh(Worker.layer))
        const queue = yield* InteractionQueue
        yield* publish(...events("five", 5).map((one) => message(one)))
        yield* eventually(Effect.map(queue.depths, ({ main }) => (main.unacked === 5 ? true : undefined)))
        expect(yield* embeddingOf("five")).toBeUndefined()
        yield* drained
        expect(yield* record("five")).toMatchObject({ version: 1, embedding: { event_count: 5 } })
      }))

    it("does not make messages wait for the window when the worker is full, nor bad messages", () =>
      Effect.gen(function* () {
        yield* Layer.build(Layer.fresh(Worker.layer))
        const all = events("many", 25)
        const bad = message(all[0]!, Buffer.from("no JSON"))
        const published = Date.now()
        yield* publish(bad, ...all.map((one) => message(one)), bad)
        yield* eventually(
          Effect.map(record("many"), (found) =>
            (found?.embedding?.event_count ?? 0) >= 15 ? true : undefined,
          ),
        )
        expect(Date.now() - published).toBeLessThan(1_000 * windowSeconds)
        yield* drained
        const many = yield* record("many")
        expect(many?.embedding?.event_count).toBe(25)
        expect(many?.version).toBeGreaterThanOrEqual(3)
        expect(many?.version).toBeLessThanOrEqual(6)
        expect(yield* (yield* DeadLetters).count).toBe(2)
      }))

    it("does not delay a worker that stops", () =>
      Effect.gen(function* () {
        const queue = yield* InteractionQueue
        const scope = yield* Scope.make()
        yield* Layer.buildWithScope(Layer.fresh(Worker.layer), scope)
        yield* publish(...events("stop", 4).map((one) => message(one)))
        yield* eventually(Effect.map(queue.depths, ({ main }) => (main.unacked === 4 ? true : undefined)))
        yield* Scope.close(scope, Exit.void)
        expect(yield* record("stop")).toMatchObject({ version: 1, embedding: { event_count: 4 } })
        expect((yield* queue.depths).main).toMatchObject({ ready: 0, unacked: 0 })
      }))
  })

suite("the batching window on the embedded stack", embedded(settings))
withServers(["rabbitmq", "mysql", "mongodb"], "on real servers", () =>
  suite("the batching window", external(settings)),
)
