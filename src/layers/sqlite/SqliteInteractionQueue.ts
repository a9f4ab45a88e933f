/**
 * The queue of the embedded stack: one table that any number of processes may share. A message stays in its row until
 * it is settled; a consumer holds it by a lease, so whatever a process held when it died comes back. Settling a batch
 * is one transaction, in which a retry or a dead letter is the same row moved on.
 */
import type { Database } from "bun:sqlite"
import { randomUUID } from "node:crypto"
import { Clock, Duration, Effect, Layer, Random, Schedule } from "effect"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import * as MessageTraces from "../../services/MessageTraces.ts"
import {
  type Consumer,
  type Delivery,
  exchange,
  failedQueue,
  InteractionQueue,
  InteractionQueueError,
  type Message,
  type NotAcked,
  nextQuarantineAttempt,
  quarantineQueue,
  queue,
  retryQueue,
  routingKey,
  type Settled,
} from "../../services/ports/InteractionQueue.ts"
import { retryDelays } from "../../services/RetryPolicies.ts"
import type { TraceContext } from "../../services/Telemetry.ts"
import { type RecordedFailure, recorded } from "../RecordedFailure.ts"
import { failingWith, Sqlite } from "./Sqlite.ts"

/** What RabbitMQ keeps in properties and headers; the column `headers`, as JSON. */
export interface Headers {
  readonly messageId: string
  readonly exchange: string
  readonly routingKey: string
  readonly trace: TraceContext | null
  readonly retryCount: number
  readonly isolatedAttempts: number
  readonly publishedAt: number
  readonly recordedAt: number
  /** The dead letter that it was. */
  readonly retriedFrom?: string
  /** How it failed last. */
  readonly failed?: RecordedFailure
  /** Of a dead letter. */
  readonly letter?: { readonly id: string; readonly attempts: number }
}

interface Row {
  readonly id: number
  readonly queue: string
  readonly available_at: number
  readonly deliveries: number
  readonly headers: string
  readonly body: Uint8Array
}

/** How long a claim outlives a process that died with it. */
const leaseMillis = 10_000
/** How often a consumer renews its lease and gives back what others held when they died. */
const renewal = Schedule.spaced(leaseMillis / 4)
/** How soon messages of other processes are seen. */
const pollMillis = 200
/** How soon a failed statement is tried again. */
const nextTryMillis = 1_000
/** Statements and the API share a thread. At half of its greatest rate no batch is as large. */
const pauseAbove = 200
const system = "sqlite"

class SqliteDelivery implements Delivery {
  readonly id: number
  readonly headers: Headers
  readonly body: Uint8Array
  readonly redeliveries: number
  readonly quarantined: boolean
  constructor({ body, deliveries, headers, id, queue }: Row) {
    this.id = id
    this.quarantined = queue === quarantineQueue
    this.headers = JSON.parse(headers)
    this.body = body
    this.redeliveries = deliveries - 1
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
  get quarantineAttempts() {
    return this.headers.isolatedAttempts
  }
  get publishedAt() {
    return this.headers.publishedAt
  }
  get recordedAt() {
    return this.headers.recordedAt
  }
}

/** Where a message goes that is not done with. */
interface Move {
  readonly queue: string
  readonly headers: Headers
  readonly rung: number
  readonly availableAt: number
}

const moveOf = (delivery: SqliteDelivery, settlement: NotAcked, now: number, jitter: number): Move => {
  const { headers } = delivery
  if (settlement._tag === "Quarantine") {
    const changed = { ...headers, isolatedAttempts: nextQuarantineAttempt(delivery) }
    return { queue: quarantineQueue, headers: changed, rung: 0, availableAt: now }
  }
  const failed = recorded(settlement.failure, headers.failed?.firstFailedAt, now)
  const attempts = headers.retryCount + 1
  if (settlement._tag === "Retry") {
    const rung = settlement.delayMillis
    const climbed = { ...headers, failed, retryCount: attempts }
    return { queue, headers: climbed, rung, availableAt: now + Math.round(rung * jitter) }
  }
  const letter = { id: randomUUID(), attempts }
  return { queue: failedQueue, headers: { ...headers, failed, letter }, rung: 0, availableAt: now }
}

/** The moved message as one that is published in its delivery's trace. */
const tracedMove = ([delivery, { queue, rung }]: readonly [SqliteDelivery, Move]): MessageTraces.Outgoing => {
  const destination = rung > 0 ? retryQueue(rung) : queue
  return {
    messageId: delivery.messageId,
    trace: delivery.trace,
    parent: MessageTraces.spanOf(delivery),
    destination,
    routingKey: destination,
  }
}

const renewLease = (database: Database, holder: string, now: number) =>
  database
    .query(
      `INSERT INTO queue_consumers (holder, lease_until) VALUES (?1, ?2)
       ON CONFLICT (holder) DO UPDATE SET lease_until = ?2`,
    )
    .run(holder, now + leaseMillis)

/** What consumers held whose lease is over waits again, in its old place and with its deliveries counted. */
const reap = (database: Database, now: number): number => {
  const { changes } = database
    .query(
      `UPDATE queue_messages SET holder = NULL
       WHERE holder IN (SELECT holder FROM queue_consumers WHERE lease_until <= ?)`,
    )
    .run(now)
  database.query("DELETE FROM queue_consumers WHERE lease_until <= ?").run(now)
  return changes
}

/** Gives back what a consumer holds, which is no failure of the messages, and takes its leave. */
const leave = (database: Database, holder: string) => {
  database
    .query("UPDATE queue_messages SET holder = NULL, deliveries = deliveries - 1 WHERE holder = ?")
    .run(holder)
  database.query("DELETE FROM queue_consumers WHERE holder = ?").run(holder)
}

/** Whether a suspect waits while no consumer holds one. */
const suspectWaits = (database: Database): boolean => {
  const one = (held: "IS" | "IS NOT") =>
    database
      .query<unknown, [string]>(
        `SELECT 1 FROM queue_messages WHERE queue = ? AND holder ${held} NULL LIMIT 1`,
      )
      .get(quarantineQueue) !== null
  return one("IS") && !one("IS NOT")
}

/** When the next message of the main queue may be delivered; `undefined` when none waits. */
const nextDue = (database: Database): number | undefined =>
  database
    .query<{ available_at: number }, [string]>(
      `SELECT available_at FROM queue_messages WHERE queue = ? AND holder IS NULL
       ORDER BY available_at LIMIT 1`,
    )
    .get(queue)?.available_at

/** The next messages of a queue that may be delivered, oldest first; they belong to the holder from then on. */
const claim = (
  database: Database,
  from: string,
  holder: string,
  now: number,
  most: number,
): ReadonlyArray<Row> => {
  renewLease(database, holder, now)
  return database
    .query<Row, [string, string, number, number]>(
      `UPDATE queue_messages SET holder = ?, deliveries = deliveries + 1
       WHERE id IN (SELECT id FROM queue_messages WHERE queue = ? AND holder IS NULL AND available_at <= ?
                    ORDER BY available_at, id LIMIT ?)
       RETURNING id, queue, available_at, deliveries, headers, body`,
    )
    .all(holder, from, now, most)
    .sort((a, b) => a.available_at - b.available_at || a.id - b.id)
}

const make = Effect.gen(function* () {
  const sqlite = yield* Sqlite
  const { maxRetries, retryDelay } = yield* EmbeddingConfig
  const delays = retryDelays(retryDelay, maxRetries)
  /** The latches of this process's consumers: opened when there may be something to take. */
  const arrivals = new Set<Effect.Latch>()
  const wake = Effect.sync(() => {
    for (const arrival of arrivals) arrival.unsafeOpen()
  })

  const failing = failingWith((failure) => new InteractionQueueError(failure))
  /** Says that a statement failed; the caller tries again. */
  const warning = (event: string) => (error: { readonly cause?: unknown }) =>
    Effect.logWarning(event).pipe(Effect.annotateLogs({ error: "SqlError", detail: String(error.cause) }))

  const send = Effect.fnUntraced(function* (
    messages: ReadonlyArray<Message>,
    traces: ReadonlyArray<TraceContext | null>,
  ) {
    const now = yield* Clock.currentTimeMillis
    yield* sqlite
      .transaction((database) => {
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
      })
      .pipe(failing("publish"))
    yield* wake
    return messages.map(() => "confirmed" as const)
  })

  const publish = (messages: ReadonlyArray<Message>) =>
    MessageTraces.publishing(system, messages.map(MessageTraces.update), (traces) => send(messages, traces))

  const consume = Effect.fnUntraced(function* (prefetch: number) {
    const holder = randomUUID()
    const held = new Set<Delivery>()
    const arrival = yield* Effect.makeLatch(false)

    /** Deliveries, or in how many ms to look again. */
    const look = Effect.fnUntraced(function* (most: number) {
      const room = Math.min(most, prefetch - held.size)
      const [first] = held
      if (room <= 0 || first?.quarantined) return pollMillis
      const now = yield* Clock.currentTimeMillis
      const alone = yield* sqlite.use(suspectWaits)
      if (alone && held.size > 0) return pollMillis
      if (!alone) {
        const due = yield* sqlite.use(nextDue)
        if (due === undefined) return pollMillis
        if (due > now) return Math.min(pollMillis, due - now)
      }
      const rows = yield* sqlite.transaction((database) => {
        // Another consumer may have been faster.
        if (alone) return suspectWaits(database) ? claim(database, quarantineQueue, holder, now, 1) : []
        return claim(database, queue, holder, now, room)
      })
      const deliveries = rows.map((row) => new SqliteDelivery(row))
      for (const delivery of deliveries) held.add(delivery)
      return deliveries
    })

    // Interruptible only while it waits, so that what has been claimed is handed over.
    const take = (most: number): Effect.Effect<ReadonlyArray<Delivery>> =>
      Effect.uninterruptibleMask((restore) =>
        Effect.gen(function* () {
          while (true) {
            arrival.unsafeClose()
            const found = yield* look(most).pipe(
              Effect.catchAll((error) => Effect.as(warning("take.failed")(error), nextTryMillis)),
            )
            if (typeof found === "number") yield* restore(Effect.timeoutOption(arrival.await, found))
            else if (found.length > 0) return found
          }
        }),
      )

    // Ends when the batch is settled; the database being away only delays it.
    const settle = Effect.fnUntraced(function* (settled: ReadonlyArray<Settled>) {
      const now = yield* Clock.currentTimeMillis
      const jitter = yield* Random.nextRange(0.9, 1)
      const own: Array<SqliteDelivery> = []
      const done: Array<SqliteDelivery> = []
      const moved: Array<readonly [SqliteDelivery, Move]> = []
      for (const [delivery, settlement] of settled) {
        if (!(delivery instanceof SqliteDelivery)) continue
        own.push(delivery)
        if (settlement._tag === "Ack") done.push(delivery)
        else moved.push([delivery, moveOf(delivery, settlement, now, jitter)])
      }
      const write = (traces: ReadonlyArray<TraceContext | null>) =>
        sqlite
          .transaction((database) => {
            const remove = database.query("DELETE FROM queue_messages WHERE id = ? AND holder = ?")
            const move = database.query(
              `UPDATE queue_messages SET queue = ?, headers = ?, rung = ?, available_at = ?, holder = NULL,
               deliveries = 0 WHERE id = ? AND holder = ?`,
            )
            for (const { id } of done) remove.run(id, holder)
            for (const [index, [{ id }, { availableAt, headers, queue, rung }]] of moved.entries()) {
              const traced = JSON.stringify({ ...headers, trace: traces[index] ?? null })
              move.run(queue, traced, rung, availableAt, id, holder)
            }
          })
          .pipe(
            Effect.tapError(warning("settle.failed")),
            // Tried for ever, so nothing is left to die of.
            Effect.retry(Schedule.spaced(nextTryMillis)),
            Effect.orDie,
            MessageTraces.acknowledging(system, done),
            Effect.as(moved.map(() => "confirmed")),
          )
      yield* MessageTraces.publishing(system, moved.map(tracedMove), write)
      for (const delivery of own) held.delete(delivery)
      yield* wake
    })

    const renew = Effect.gen(function* () {
      const now = yield* Clock.currentTimeMillis
      const count = yield* sqlite.transaction((database) => {
        renewLease(database, holder, now)
        return reap(database, now)
      })
      if (count === 0) return
      yield* Effect.logWarning("claims.returned").pipe(Effect.annotateLogs({ count }))
      yield* wake
    })

    yield* Effect.acquireRelease(
      Effect.sync(() => arrivals.add(arrival)),
      () =>
        Effect.sync(() => arrivals.delete(arrival)).pipe(
          Effect.zipRight(sqlite.transaction((database) => leave(database, holder))),
          Effect.catchAll(warning("leave.failed")),
          Effect.zipRight(wake),
        ),
    )
    yield* renew.pipe(Effect.catchAll(warning("renew.failed")), Effect.repeat(renewal), Effect.forkScoped)
    return {
      take,
      settle,
      // Nothing comes but by `take`, and what goes back is not counted.
      stop: Effect.void,
      holds: (delivery) => held.has(delivery),
      full: () => held.size >= prefetch,
    } satisfies Consumer
  })

  const depths = Effect.flatMap(Clock.currentTimeMillis, (now) =>
    sqlite
      .use((database) => {
        const retry: Record<string, number> = Object.fromEntries(delays.map((delay) => [delay, 0]))
        const main = { ready: 0, unacked: 0, consumers: 0 }
        let quarantined = 0
        let failed = 0
        const groups = database
          .query<{ queue: string; held: number; rung: number; n: number }, [number]>(
            `SELECT queue, holder IS NOT NULL AS held, IIF(available_at > ?, rung, 0) AS rung, COUNT(*) AS n
             FROM queue_messages GROUP BY 1, 2, 3`,
          )
          .all(now)
        for (const { held, n, queue: name, rung } of groups)
          if (name === failedQueue) failed += n
          else if (name === quarantineQueue) quarantined += n
          else if (held === 1) main.unacked += n
          else if (rung > 0) retry[rung] = n
          else main.ready += n
        main.consumers =
          database
            .query<{ n: number }, [number]>("SELECT COUNT(*) AS n FROM queue_consumers WHERE lease_until > ?")
            .get(now)?.n ?? 0
        return { main, quarantined, retry, failed }
      })
      .pipe(failing("depths")),
  )

  /** Rows ever published, those done with, and those handed out, dead letters counted as done. */
  const totals = sqlite
    .use((database) => {
      const { published, left, held } = database
        .query<{ published: number; left: number; held: number }, [string]>(
          `SELECT COALESCE((SELECT seq FROM sqlite_sequence WHERE name = 'queue_messages'), 0) AS published,
             COUNT(*) AS left, COUNT(holder) AS held FROM queue_messages WHERE queue = ?`,
        )
        .get(queue) ?? { published: 0, left: 0, held: 0 }
      return { published, acknowledged: published - left, held }
    })
    .pipe(failing("traffic"))

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

  return { system, eventsPerMessage: 1, pauseAbove, publish, consume, depths, traffic }
})

export const layer = Layer.effect(InteractionQueue, make)
