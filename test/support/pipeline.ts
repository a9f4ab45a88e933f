/** Recording, publishing and applying interactions in tests. */
import { type ConfigError, Duration, Effect, Layer } from "effect"
import type { Ports } from "../../src/layers/Stack.ts"
import * as Relay from "../../src/programs/Relay.ts"
import * as Worker from "../../src/programs/Worker.ts"
import * as Interaction from "../../src/services/model/Interaction.ts"
import * as UpdateMessage from "../../src/services/model/UpdateMessage.ts"
import type { UserEmbedding } from "../../src/services/model/UserEmbedding.ts"
import type { DependencyDown } from "../../src/services/ports/Dependencies.ts"
import { InteractionLog } from "../../src/services/ports/InteractionLog.ts"
import { InteractionQueue, type Message } from "../../src/services/ports/InteractionQueue.ts"
import { ProductEmbeddings } from "../../src/services/ports/ProductEmbeddings.ts"
import { UserEmbeddings } from "../../src/services/ports/UserEmbeddings.ts"
import { InteractionRecorder, layer as recorder } from "../../src/services/record/InteractionRecorder.ts"
import { layer as outboxRelay } from "../../src/services/record/OutboxRelay.ts"
import { EventVectors, layer as eventVectors } from "../../src/services/update/EventVectors.ts"

/** Repeats the probe until it answers. The test fails if that takes longer than `most`. */
export const eventually = <A, E, R>(
  probe: Effect.Effect<A | undefined, E, R>,
  most: Duration.DurationInput = Duration.seconds(15),
) =>
  Effect.gen(function* () {
    while (true) {
      const answer = yield* probe
      if (answer !== undefined) return answer
      yield* Effect.sleep("10 millis")
    }
  }).pipe(Effect.timeout(most))

export const embeddingOf = (user: string) =>
  Effect.gen(function* () {
    const users = yield* UserEmbeddings
    return (yield* users.load([user])).get(user)?.embedding
  })

export const embeddingWith = (user: string, events: number) =>
  eventually(
    Effect.map(embeddingOf(user), (embedding): UserEmbedding | undefined =>
      embedding !== undefined && embedding.event_count >= events ? embedding : undefined,
    ),
  )

const at = (iso: string) => ({ occurred_at: iso, metadata: {} })
export const search = (user_id: string, search_phrase: string, iso: string) =>
  Interaction.make({ user_id, event_type: "search", search_phrase, ...at(iso) })
export const product = (
  user_id: string,
  event_type: "product_view" | "product_click" | "product_purchase",
  product_id: string,
  iso: string,
) => Interaction.make({ user_id, event_type, product_id, ...at(iso) })

export const record = (...interactions: ReadonlyArray<Interaction.Interaction>) =>
  Effect.flatMap(InteractionRecorder, (recorder) =>
    recorder.record(
      interactions.map((interaction) => ({ interaction, idempotencyKey: null, occurredAtGiven: true })),
    ),
  )

export const message = (
  interaction: Interaction.Interaction,
  body = UpdateMessage.encodeMessage(interaction),
): Message => ({
  messageId: interaction.message_id,
  eventType: interaction.event_type,
  body,
  trace: null,
  recordedAt: Date.parse(interaction.occurred_at),
})

export const storeProduct = (product_id: string, text: string) =>
  Effect.gen(function* () {
    const vectors = yield* EventVectors
    const products = yield* ProductEmbeddings
    const [vector] = yield* vectors.ofTexts([text])
    const embedding = yield* vector!
    yield* products.upsert([
      { product_id, embedding, product_name: text, category: null, space: vectors.space, text },
    ])
    return embedding
  })

type Stack = Layer.Layer<Ports, ConfigError.ConfigError | DependencyDown>

/** Records and publishes at once, without the relay and the worker. */
export const recording = (stack: Stack) =>
  recorder.pipe(Layer.provideMerge(outboxRelay), Layer.provideMerge(eventVectors), Layer.provideMerge(stack))

/** Everything from recording to the embedding. */
export const pipeline = (stack: Stack) =>
  Layer.merge(Worker.layer, Relay.layer).pipe(Layer.provideMerge(recording(stack)))

/** Number of messages in the outbox and all queues. The outbox is read first, because its rows move to the queue. */
const waiting = Effect.gen(function* () {
  const { unpublished } = yield* (yield* InteractionLog).backlog
  const { quarantined, main, retry } = yield* (yield* InteractionQueue).depths
  return Object.values(retry).reduce(
    (sum, depth) => sum + depth,
    unpublished + main.ready + main.unacked + quarantined,
  )
})

/** Waits until two counts in a row are zero. A single count may miss a message that is on its way to the consumer. */
export const drained = eventually(
  Effect.gen(function* () {
    if ((yield* waiting) > 0) return undefined
    yield* Effect.sleep("30 millis")
    return (yield* waiting) === 0 ? true : undefined
  }),
  Duration.seconds(30),
)

/** Runs a worker until no message waits. */
export const workedOff = Effect.scoped(Effect.zipRight(Layer.build(Layer.fresh(Worker.layer)), drained))
