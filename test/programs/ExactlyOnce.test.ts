/** The same message processed by several workers at the same time, on both stacks. */
import { expect } from "bun:test"
import { type ConfigError, Context, Effect, Layer } from "effect"
import type { Ports } from "../../src/layers/Stack.ts"
import * as AppliedIds from "../../src/services/model/AppliedIds.ts"
import { encodeMessage } from "../../src/services/model/UpdateMessage.ts"
import type { DependencyDown } from "../../src/services/ports/Dependencies.ts"
import { UserEmbeddings } from "../../src/services/ports/UserEmbeddings.ts"
import * as EmbeddingUpdater from "../../src/services/update/EmbeddingUpdater.ts"
import { layer as eventVectors } from "../../src/services/update/EventVectors.ts"
import { decoded, delivery } from "../support/delivery.ts"
import { layerSuite } from "../support/effect.ts"
import { search } from "../support/pipeline.ts"
import { withServers } from "../support/servers.ts"
import { embedded, external } from "../support/stacks.ts"

/** The first write has more ids than stay on the record, so that the overflow is read too. */
const first = 300
const raced = 60
const phrases = ["running shoes", "red wine", "board games", "cordless drill", "baby blanket"]

const suite = (name: string, stack: Layer.Layer<Ports, ConfigError.ConfigError | DependencyDown>) =>
  layerSuite(name, eventVectors.pipe(Layer.provideMerge(stack)), (it) => {
    it(
      "each event is written once, by one of the workers; processing all or some of them again changes nothing",
      () =>
        Effect.gen(function* () {
          const users = yield* UserEmbeddings
          const workers = yield* Effect.replicateEffect(
            Effect.map(Layer.build(Layer.fresh(EmbeddingUpdater.layer)), (context) =>
              Context.get(context, EmbeddingUpdater.EmbeddingUpdater),
            ),
            4,
          )
          const record = Effect.map(users.load(["hot"]), (found) => found.get("hot")!)
          const all = Array.from({ length: first + raced }, (_, i) => {
            const at = new Date(Date.UTC(2026, 0, 1, 0, i)).toISOString()
            return decoded(delivery(encodeMessage(search("hot", phrases[i % phrases.length]!, at))))
          })
          yield* workers[0]!.update(all.slice(0, first))
          for (const one of all.slice(first)) {
            const outcomes = yield* Effect.forEach(workers, ({ update }) => update([one]), {
              concurrency: "unbounded",
            })
            expect(outcomes.flat()).toEqual(
              Array.from({ length: 4 }, () => ({ _tag: "Settle", settlement: { _tag: "Ack" } })),
            )
          }
          const after = yield* record
          expect(after.version).toBe(1 + raced)
          expect(after.embedding?.event_count).toBe(all.length)
          expect(after.archived).toBeGreaterThan(0)
          expect(after.archived + AppliedIds.count(after.applied)).toBe(all.length)

          for (const again of [all, all.slice(0, 1), [...all.slice(0, 3), ...all.slice(0, 3)]])
            yield* Effect.forEach(workers, ({ update }) => update(again), { concurrency: "unbounded" })
          expect(yield* record).toEqual(after)
        }),
      60_000,
    )
  })

suite("one message, four workers, on the embedded stack", embedded())
withServers(["rabbitmq", "mysql", "mongodb"], "on real servers", () =>
  suite("one message, four workers", external()),
)
