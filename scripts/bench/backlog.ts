/** The worker alone: events wait in the queue, and the clock stops when all of them are in the documents. */
import { connect } from "amqplib"
import type { Interaction } from "../../src/services/model/Interaction.ts"
import { encodeMessage } from "../../src/services/model/UpdateMessage.ts"
import { type Env, type Part, until } from "./arena.ts"
import { startMeter } from "./cpu.ts"
import { event, interaction } from "./events.ts"
import { perEvent, type Run } from "./figures.ts"
import type { Driven } from "./pipeline.ts"

export type Body = "message" | "plain"

/** Publishes messages with windows of confirmations, as the API does; resolves when the broker has confirmed all. */
export const publishAll = async (
  env: Env,
  interactions: Iterable<Interaction>,
  bodyOf: (one: Interaction) => Uint8Array = encodeMessage,
): Promise<void> => {
  const connection = await connect(env.RABBITMQ_DSN ?? "")
  const channel = await connection.createConfirmChannel()
  let waiting = 0
  for (const one of interactions) {
    const now = Date.now()
    channel.publish("user_events", `user.embedding.${one.event_type}`, Buffer.from(bodyOf(one)), {
      persistent: true,
      messageId: one.message_id,
      contentType: "application/json",
      headers: { "x-retry-count": 0, "x-published-at": now, "x-recorded-at": now },
    })
    if (++waiting % 1_000 === 0) await channel.waitForConfirms()
  }
  await channel.waitForConfirms()
  await connection.close()
}

interface Contestant {
  readonly env: Env
  readonly worker: Part
  readonly driven: Driven
}

/** The worker is warm, and paused (SIGSTOP) while the messages are published. */
export const backlog =
  ({ driven: { look, meter, next }, env, worker }: Contestant, body: Body) =>
  async (events: number): Promise<Run> => {
    const before = await look()
    const range = next(events)
    const all = Array.from({ length: events }, (_, i) => event(range, range.from + i))
    process.kill(worker.pid, "SIGSTOP")
    try {
      await publishAll(
        env,
        all.map((one) => interaction(one)),
        body === "message"
          ? encodeMessage
          : ({ event_type, metadata, occurred_at, product_id, user_id }) =>
              Buffer.from(JSON.stringify({ user_id, event_type, product_id, occurred_at, metadata })),
      )
    } finally {
      process.kill(worker.pid, "SIGCONT")
    }
    const used = startMeter(meter)
    const started = performance.now()
    const after = await until(look, before.events + events)
    const seconds = (performance.now() - started) / 1000
    return {
      eventsPerSecond: events / seconds,
      cpu: perEvent(used(), events),
      more: { "events/write": events / Math.max(1, after.writes - before.writes) },
    }
  }
