/**
 * The queue of the embedded stack: one table, claims with a lease. A message stays in its row until it is settled, so
 * whatever a worker held when it died comes back. Retries wait on their rung in the same row.
 */
import { randomUUID } from "node:crypto"
import { hostname } from "node:os"
import { Clock, Effect, Layer, Random, Schedule } from "effect"
import {
  type Consumer,
  type Delivery,
  exchange,
  failedQueue,
  InteractionQueue,
  InteractionQueueError,
  type Message,
  queue,
  routingKey,
  type Settled,
} from "../services/InteractionQueue.ts"
import type { TraceContext } from "../services/Telemetry.ts"
import { failingWith, Sqlite } from "./Sqlite.ts"

/** What RabbitMQ keeps in properties and headers. */
export interface Headers {
  readonly messageId: string
  readonly exchange: string
  readonly routingKey: string
  readonly trace: TraceContext | null
  readonly retryCount: number
  readonly isolatedAttempts: number
  readonly publishedAt: number
  readonly recordedAt: number
  readonly firstFailedAt?: string
  readonly lastFailedAt?: string
  readonly error?: string
  readonly errorMessage?: string
  readonly attempts?: number
  readonly worker?: string
  readonly deadLetterId?: string
  readonly retriedFrom?: string
}

interface Row {
  readonly id: number
  readonly body: Uint8Array
  readonly headers: string
  readonly deliveries: number
}

/** How long a claim outlives a process that died with it. */
const leaseMillis = 30_000
/** How soon messages of other processes and due retries are seen. */
const pollMillis = 100
const longestErrorText = 1024

class SqliteDelivery implements Delivery {
  readonly id: number
  readonly headers: Headers
  readonly body: Uint8Array
  readonly redeliveries: number
  constructor(row: Row) {
    this.id = row.id
    this.headers = JSON.parse(row.headers)
    this.body = row.body
    this.redeliveries = row.deliveries - 1
  }
  get routingKey() {
    return this.headers.routingKey
  }
  get messageId() {
    return this.headers.messageId
  }
  get trace() {
    return this.headers.trace
  }
  get retryCount() {
    return this.headers.retryCount
  }
  get isolatedAttempts() {
    return this.headers.isolatedAttempts
  }
  get publishedAt() {
    return this.headers.publishedAt
  }
  get recordedAt() {
    return this.headers.recordedAt
  }
}

const make = Effect.gen(function* () {
  const sqlite = yield* Sqlite
  const arrival = yield* Effect.makeLatch(false)
  const worker = `${hostname()}:${process.pid}`

  const failing = failingWith((failure) => new InteractionQueueError(failure))

  const publish = Effect.fn("publish user_events", { captureStackTrace: false })(function* (
    messages: ReadonlyArray<Message>,
  ) {
    const now = yield* Clock.currentTimeMillis
    yield* failing("publish")(
      sqlite.transaction((database) => {
        const insert = database.query(
          "INSERT INTO queue_messages (queue, body, headers, available_at) VALUES (?, ?, ?, ?)",
        )
        for (const { body, eventType, messageId, recordedAt, trace } of messages) {
          const headers: Headers = {
            messageId,
            exchange,
            routingKey: routingKey(eventType),
            trace,
            retryCount: 0,
            isolatedAttempts: 0,
            publishedAt: now,
            recordedAt,
          }
          insert.run(queue, body, JSON.stringify(headers), now)
        }
      }),
    )
    arrival.unsafeOpen()
    return messages.map(() => "confirmed" as const)
  })

  const consume = Effect.fnUntraced(function* (prefetch: number) {
    const holder = randomUUID()
    const held = new Set<Delivery>()

    const claim = (most: number) =>
      Effect.flatMap(Clock.currentTimeMillis, (now) =>
        sqlite.use((database) =>
          database
            .query<Row, [string, number, string, number, number, number]>(
              `UPDATE queue_messages SET holder = ?, lease_until = ?, deliveries = deliveries + 1, rung = 0
               WHERE id IN (SELECT id FROM queue_messages
                            WHERE queue = ? AND available_at <= ? AND lease_until <= ? ORDER BY available_at, id LIMIT ?)
               RETURNING id, body, headers, deliveries`,
            )
            .all(holder, now + leaseMillis, queue, now, now, most),
        ),
      )

    const take = (most: number): Effect.Effect<ReadonlyArray<Delivery>> =>
      Effect.gen(function* () {
        while (true) {
          arrival.unsafeClose()
          const room = Math.min(most, prefetch - held.size)
          // Uninterruptible: what has been claimed is handed over or given back, never forgotten.
          const rows = room <= 0 ? [] : yield* claim(room).pipe(Effect.catchAll(waitAndSay))
          if (rows.length > 0) {
            const deliveries = rows.toSorted((a, b) => a.id - b.id).map((row) => new SqliteDelivery(row))
            for (const delivery of deliveries) held.add(delivery)
            return deliveries
          }
          yield* Effect.interruptible(Effect.timeoutOption(arrival.await, pollMillis))
        }
      }).pipe(Effect.uninterruptible)

    const settle = (settled: ReadonlyArray<Settled>): Effect.Effect<void> =>
      Effect.gen(function* () {
        const now = yield* Clock.currentTimeMillis
        const jitter = yield* Random.nextRange(0.9, 1)
        const at = new Date(now).toISOString()
        yield* sqlite
          .transaction((database) => {
            const remove = database.query("DELETE FROM queue_messages WHERE id = ? AND holder = ?")
            const move = database.query(
              `UPDATE queue_messages SET queue = ?, headers = ?, rung = ?, available_at = ?,
                 holder = NULL, lease_until = 0, deliveries = 0 WHERE id = ? AND holder = ?`,
            )
            for (const [delivery, settlement] of settled) {
              if (!(delivery instanceof SqliteDelivery)) continue
              const { headers, id } = delivery
              if (settlement._tag === "Ack") {
                remove.run(id, holder)
                continue
              }
              if (settlement._tag === "Isolate") {
                const next: Headers = { ...headers, isolatedAttempts: headers.isolatedAttempts + 1 }
                move.run(queue, JSON.stringify(next), 0, now, id, holder)
                continue
              }
              const failed: Headers = {
                ...headers,
                error: settlement.failure.error,
                errorMessage: settlement.failure.message.slice(0, longestErrorText),
                firstFailedAt: headers.firstFailedAt ?? at,
                lastFailedAt: at,
                worker,
              }
              if (settlement._tag === "Retry") {
                const next: Headers = { ...failed, retryCount: headers.retryCount + 1 }
                const delay = settlement.delayMillis
                move.run(queue, JSON.stringify(next), delay, now + Math.round(delay * jitter), id, holder)
              } else {
                const next: Headers = {
                  ...failed,
                  attempts: headers.retryCount + 1,
                  deadLetterId: randomUUID(),
                }
                move.run(failedQueue, JSON.stringify(next), 0, now, id, holder)
              }
            }
          })
          .pipe(
            Effect.tapError((error) =>
              Effect.logWarning("settle.failed").pipe(Effect.annotateLogs({ error: String(error.cause) })),
            ),
            Effect.retry(Schedule.spaced("1 second")),
            Effect.orDie,
          )
        for (const [delivery] of settled) held.delete(delivery)
        arrival.unsafeOpen()
      })

    const renew = Effect.flatMap(Clock.currentTimeMillis, (now) =>
      sqlite.use((database) =>
        database
          .query("UPDATE queue_messages SET lease_until = ? WHERE holder = ?")
          .run(now + leaseMillis, holder),
      ),
    )
    yield* Effect.forkScoped(Effect.repeat(Effect.ignoreLogged(renew), Schedule.spaced(leaseMillis / 3)))
    yield* Effect.addFinalizer(() =>
      Effect.ignoreLogged(
        sqlite.use((database) =>
          database
            .query(
              "UPDATE queue_messages SET holder = NULL, lease_until = 0, deliveries = deliveries - 1 WHERE holder = ?",
            )
            .run(holder),
        ),
      ),
    )
    return { take, settle } satisfies Consumer
  })

  const depths = Effect.flatMap(Clock.currentTimeMillis, (now) =>
    failing("depths")(
      sqlite.use((database) => {
        const rows = database
          .query<{ queue: string; rung: number; held: number; holders: number; n: number }, [number]>(
            `SELECT queue, rung, holder IS NOT NULL AND lease_until > ? AS held, COUNT(*) AS n,
               COUNT(DISTINCT holder) AS holders
             FROM queue_messages GROUP BY 1, 2, 3`,
          )
          .all(now)
        const retry: Record<string, number> = {}
        const main = { ready: 0, unacked: 0, consumers: 0 }
        let failed = 0
        for (const { held, holders, n, queue: name, rung } of rows) {
          if (name === failedQueue) failed += n
          else if (held === 1) {
            main.unacked += n
            main.consumers = Math.max(main.consumers, holders)
          } else if (rung > 0) retry[rung] = n
          else main.ready += n
        }
        return { main, retry, failed }
      }),
    ),
  )

  return { publish, consume, depths }
})

const waitAndSay = (error: { readonly cause?: unknown }) =>
  Effect.logWarning("take.failed").pipe(
    Effect.annotateLogs({ error: String(error.cause) }),
    Effect.zipRight(Effect.sleep("1 second")),
    Effect.as<ReadonlyArray<Row>>([]),
  )

export const layer = Layer.effect(InteractionQueue, make)
