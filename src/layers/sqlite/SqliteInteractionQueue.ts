/**
 * The queue of the embedded stack: one table that any number of processes may share. A message stays in its row until
 * it is settled. A batch is settled in one transaction: a retry or a dead letter only changes columns of its row.
 */
import type { Database } from "bun:sqlite"
import { Clock, Duration, Effect, Layer } from "effect"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import * as MessageTraces from "../../services/MessageTraces.ts"
import {
  type Depths,
  exchange,
  failedQueue,
  InteractionQueue,
  InteractionQueueError,
  type Message,
  quarantineQueue,
  queue,
  routingKey,
  setAsideQueue,
} from "../../services/ports/InteractionQueue.ts"
import { portError } from "../../services/ports/PortFailure.ts"
import { retryDelays } from "../../services/RetryPolicies.ts"
import type { TraceContext } from "../../services/Telemetry.ts"
import { countOf, failingWith, Sqlite } from "./Sqlite.ts"
import { consume, system, wake } from "./SqliteConsumer.ts"
import type { Headers } from "./SqliteDelivery.ts"

/** Statements share the thread of the API. At half of the API's greatest rate no batch is this large. */
const pauseAbove = 200

const insertMessages = (
  database: Database,
  messages: ReadonlyArray<Message>,
  traces: ReadonlyArray<TraceContext | null>,
  now: number,
) => {
  const insert = database.query(
    "INSERT INTO queue_messages (queue, available_at, headers, body) VALUES (?, ?, ?, ?)",
  )
  for (const [index, { body, eventType, messageId, recordedAt }] of messages.entries()) {
    const headers: Headers = {
      messageId,
      exchange,
      routingKey: routingKey(eventType),
      trace: traces[index] ?? null,
      retryCount: 0,
      isolatedAttempts: 0,
      publishedAt: now,
      recordedAt,
    }
    insert.run(queue, now, JSON.stringify(headers), body)
  }
}

const countDepths = (database: Database, retryDelays: ReadonlyArray<number>, now: number): Depths => {
  const retry: Record<string, number> = Object.fromEntries(retryDelays.map((delay) => [delay, 0]))
  const main = { ready: 0, unacked: 0, consumers: 0 }
  let quarantined = 0
  let failed = 0
  const groups = database
    .query<{ queue: string; held: number; retryDelay: number; n: number }, [number]>(
      `SELECT queue, holder IS NOT NULL AS held, IIF(available_at > ?, rung, 0) AS retryDelay, COUNT(*) AS n
       FROM queue_messages GROUP BY 1, 2, 3`,
    )
    .all(now)
  for (const { held, n, queue: name, retryDelay } of groups)
    if (name === failedQueue) failed += n
    else if (name === quarantineQueue) quarantined += n
    else if (held === 1) main.unacked += n
    else if (retryDelay > 0) retry[retryDelay] = n
    else main.ready += n
  main.consumers = countOf(database, "SELECT COUNT(*) FROM queue_consumers WHERE lease_until > ?", now)
  return { main, quarantined, retry, failed }
}

/** Messages published and acknowledged since setup, and messages held now. A dead letter counts as acknowledged. */
const countTotals = (database: Database) => {
  const { published, left, held } = database
    .query<{ published: number; left: number; held: number }, [string, string]>(
      `SELECT COALESCE((SELECT seq FROM sqlite_sequence WHERE name = 'queue_messages'), 0) AS published,
         COUNT(*) AS left, COUNT(holder) AS held FROM queue_messages WHERE queue IN (?, ?)`,
    )
    .get(queue, setAsideQueue) ?? { published: 0, left: 0, held: 0 }
  return { published, acknowledged: published - left, held }
}

const make = Effect.gen(function* () {
  const sqlite = yield* Sqlite
  const { maxRetries, retryDelay } = yield* EmbeddingConfig
  const delays = retryDelays(retryDelay, maxRetries)
  const arrivals = new Set<Effect.Latch>()
  const failing = failingWith(portError(InteractionQueueError))

  const publish = (messages: ReadonlyArray<Message>) =>
    MessageTraces.publishing(system, messages.map(MessageTraces.update), (traces) =>
      Effect.flatMap(Clock.currentTimeMillis, (now) =>
        sqlite.transaction((database) => insertMessages(database, messages, traces, now)),
      ).pipe(
        failing("publish"),
        Effect.zipLeft(wake(arrivals)),
        Effect.as(messages.map(() => "confirmed" as const)),
      ),
    )

  const totals = failing("traffic")(sqlite.use(countTotals))
  const traffic = Effect.gen(function* () {
    const before = yield* totals
    const [lapse, after] = yield* Effect.timed(Effect.zipRight(Effect.sleep("1 second"), totals))
    const perSecond = (count: number) => Math.max(0, count) / Duration.toSeconds(lapse)
    const acknowledged = after.acknowledged - before.acknowledged
    return {
      publish: perSecond(after.published - before.published),
      deliver: perSecond(acknowledged + after.held - before.held),
      ack: perSecond(acknowledged),
      unacked: after.held,
    }
  })

  return InteractionQueue.of({
    system,
    eventsPerMessage: 1,
    pauseAbove,
    publish,
    consume: (prefetch) => consume(sqlite, arrivals, prefetch),
    depths: Effect.flatMap(Clock.currentTimeMillis, (now) =>
      sqlite.use((database) => countDepths(database, delays, now)),
    ).pipe(failing("depths")),
    traffic,
  })
})

export const layer = Layer.effect(InteractionQueue, make)
