/** Publishes with the project's own queue, as the API does after a commit: every message is confirmed. */
import { ConfigProvider, Effect, Layer, ManagedRuntime } from "effect"
import * as Rabbit from "../../src/layers/rabbitmq/Rabbit.ts"
import * as RabbitInteractionQueue from "../../src/layers/rabbitmq/RabbitInteractionQueue.ts"
import * as EmbeddingConfig from "../../src/services/EmbeddingConfig.ts"
import { encodeMessage } from "../../src/services/model/UpdateMessage.ts"
import { InteractionQueue } from "../../src/services/ports/InteractionQueue.ts"
import type { Arena, Env } from "./arena.ts"
import { startMeter } from "./cpu.ts"
import { event, interaction } from "./events.ts"
import { perEvent, type Run } from "./figures.ts"
import { type Sequence, serverMeter } from "./pipeline.ts"

const queueOf = (env: Env) =>
  ManagedRuntime.make(
    RabbitInteractionQueue.layer.pipe(
      Layer.provide(Rabbit.layerConfig),
      Layer.provide(EmbeddingConfig.layerConfig),
      Layer.provide(Layer.setConfigProvider(ConfigProvider.fromMap(new Map(Object.entries(env))))),
    ),
  )

/** From decoded interactions to confirmed messages. */
export const publishing = async (arena: Arena, next: Sequence) => {
  const env = await arena.place("publishing")
  const { rabbitmq } = await serverMeter(arena.servers)
  const runtime = queueOf(env)
  arena.onClose(() => runtime.dispose())
  return async (events: number): Promise<Run> => {
    const range = next(events, { users: 100 })
    const all = Array.from({ length: events }, (_, i) => interaction(event(range, range.from + i)))
    const used = startMeter({ rabbitmq })
    const before = process.cpuUsage()
    const started = performance.now()
    const confirmations = await runtime.runPromise(
      Effect.flatMap(InteractionQueue, (queue) =>
        queue.publish(
          all.map((one) => ({
            messageId: one.message_id,
            eventType: one.event_type,
            body: encodeMessage(one),
            trace: null,
            recordedAt: Date.now(),
          })),
        ),
      ),
    )
    const seconds = (performance.now() - started) / 1000
    if (!confirmations.every((each) => each === "confirmed"))
      throw new Error("not all messages were confirmed")
    const { system, user } = process.cpuUsage(before)
    return { eventsPerSecond: events / seconds, cpu: perEvent({ client: system + user, ...used() }, events) }
  }
}
