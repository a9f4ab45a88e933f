/**
 * A program with Effect that uses parts of the system: the embedded stack, an embedder of its own and a worker.
 * Run: `bun examples/effect.ts`.
 */
import { mkdtempSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { ConfigProvider, Effect, Either, Layer, Schedule } from "effect"
import {
  Embedder,
  EventVectors,
  Interaction,
  InteractionRecorder,
  OutboxRelay,
  Provision,
  Stack,
  UserEmbeddings,
  Vector,
  Worker,
} from "user-embeddings"

const dimensions = 64

/** An embedder is any function from text to vector. This one counts letters. */
const letters = Embedder.of({
  space: `letters:${dimensions}`,
  embed: (phrases) =>
    Effect.succeed(
      phrases.map((phrase) => {
        const counts = new Float32Array(dimensions)
        for (const letter of phrase) counts[letter.codePointAt(0)! % dimensions]! += 1
        return Either.right(Vector.normalise(counts))
      }),
    ),
})

const configuration = Layer.setConfigProvider(
  ConfigProvider.fromMap(
    new Map([
      ["DATA_DIR", mkdtempSync(join(tmpdir(), "effect-"))],
      ["EMBEDDING_DIMENSIONS", String(dimensions)],
    ]),
  ),
)
const ports = Stack.on(letters).pipe(Layer.tap((ports) => Effect.provide(Provision.setup, ports)))
const steps = Layer.merge(InteractionRecorder.layer, Worker.layer).pipe(
  Layer.provide(OutboxRelay.layer),
  Layer.provideMerge(EventVectors.layer),
  Layer.provideMerge(ports),
  Layer.provide(configuration),
)

const program = Effect.gen(function* () {
  const recorder = yield* InteractionRecorder.InteractionRecorder
  const users = yield* UserEmbeddings.UserEmbeddings
  const interaction = Interaction.make({
    user_id: "u-effect",
    event_type: "search",
    search_phrase: "a phrase of letters",
    occurred_at: new Date().toISOString(),
    metadata: {},
  })
  yield* recorder.record([{ interaction, idempotencyKey: null, occurredAtGiven: true }])
  const embedding = yield* users.load(["u-effect"]).pipe(
    Effect.flatMap((records) => Effect.fromNullable(records.get("u-effect")?.embedding)),
    Effect.retry(Schedule.spaced("20 millis")),
  )
  console.log(`${embedding.event_count} interaction in space ${embedding.space}`)
})

await Effect.runPromise(Effect.provide(program, steps))
