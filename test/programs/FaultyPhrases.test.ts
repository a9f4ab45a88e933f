/** Searches through a worker of the embedded stack, with an embedding service that fails because of phrases or settings. */
import { afterAll, beforeEach, expect } from "bun:test"
import { Effect, Layer, Option } from "effect"
import * as Worker from "../../src/programs/Worker.ts"
import { retryDeadLetters } from "../../src/services/operate/DeadLetterAdmin.ts"
import { DeadLetters } from "../../src/services/ports/DeadLetters.ts"
import { InteractionQueue } from "../../src/services/ports/InteractionQueue.ts"
import { EmbeddingWorker } from "../../src/services/update/EmbeddingWorker.ts"
import { layerSuite } from "../support/effect.ts"
import { type Fault, openAiStandIn } from "../support/openAiStandIn.ts"
import {
  drained,
  embeddingOf,
  eventually,
  message,
  recording,
  search,
  workedOff,
} from "../support/pipeline.ts"
import { embedded } from "../support/stacks.ts"

const server = openAiStandIn()
beforeEach(() => server.mend())
afterAll(() => server.stop())

const stack = embedded({
  OPENAI_API_KEY: "sk-stand-in",
  OPENAI_BASE_URL: server.url,
  EMBEDDING_DIMENSIONS: "24",
  WORKER_MAX_RETRIES: "2",
  WORKER_RETRY_DELAY: "10",
})

/** Publishes a search of each user for a phrase of the user's own; answers the users. */
const publishSearches = (name: string, count: number) =>
  Effect.gen(function* () {
    const users = Array.from({ length: count }, (_, i) => `${name}-${i}`)
    const queue = yield* InteractionQueue
    yield* queue.publish(
      users.map((user) => message(search(user, `phrase of ${user}`, "2026-01-01T00:00:00.000Z"))),
    )
    return users
  })
const withoutEmbedding = (users: ReadonlyArray<string>) =>
  Effect.filter(users, (user) => Effect.map(embeddingOf(user), (embedding) => embedding === undefined))
const deadLetterCount = Effect.flatMap(DeadLetters, ({ count }) => count)

layerSuite("an embedding service", recording(stack), (it) => {
  const faults: ReadonlyArray<readonly [string, Fault]> = [
    ["answers 500", { status: 500 }],
    ["answers 400", { status: 400 }],
    ["closes the connection", "drop"],
    ["leaves its vector out", "missing"],
    ["answers a vector with nulls", "nulls"],
  ]
  for (const [index, [what, fault]] of faults.entries())
    it(`that ${what} because of one phrase of seven makes one dead letter, and a retry applies the others`, () =>
      Effect.gen(function* () {
        server.fault = { status: 500 }
        const users = yield* publishSearches(`one-${index}`, 7)
        yield* workedOff
        expect(yield* deadLetterCount).toBe(7)

        server.fault = undefined
        server.faults.set(`phrase of one-${index}-3`, fault)
        yield* retryDeadLetters({})
        yield* workedOff
        expect(yield* withoutEmbedding(users)).toEqual([`one-${index}-3`])
        expect(yield* deadLetterCount).toBe(1)

        server.faults.clear()
        yield* retryDeadLetters({})
        yield* workedOff
        expect(yield* withoutEmbedding(users)).toEqual([])
        expect(yield* deadLetterCount).toBe(0)
      }))

  const outages: ReadonlyArray<readonly [string, Fault]> = [
    ["refuses every text with 400", { status: 400, message: "encoding_format is not supported" }],
    ["refuses every text with 422", { status: 422 }],
    ["has vectors of other dimensions", "wrong_dimension"],
  ]
  for (const [index, [what, fault]] of outages.entries())
    it(`that ${what} is an outage: searches wait, and are applied when the settings are right`, () =>
      Effect.gen(function* () {
        server.fault = fault
        const users = yield* publishSearches(`outage-${index}`, 40)
        const { outage } = yield* EmbeddingWorker
        const reason = yield* eventually(Effect.map(outage, Option.getOrUndefined))
        expect(reason).toStartWith("misconfigured: no text can be embedded: ")
        expect(yield* deadLetterCount).toBe(0)
        server.fault = undefined
        yield* drained
        expect(yield* withoutEmbedding(users)).toEqual([])
        expect(yield* deadLetterCount).toBe(0)
      }).pipe(Effect.provide(Layer.fresh(Worker.layer))))
})
