/**
 * A consumer of the embedded queue. It claims messages by writing its name to their rows. A lease in `queue_consumers`
 * shows that the consumer is alive; when the lease expires, other consumers release its messages.
 */
import type { Database } from "bun:sqlite"
import { randomUUID } from "node:crypto"
import { Clock, type Context, Effect, Random, Schedule } from "effect"
import * as MessageTraces from "../../services/MessageTraces.ts"
import {
  type Consumer,
  companySize,
  companySizes,
  type Delivery,
  type Intake,
  quarantineQueue,
  queue,
  type Settled,
  setAsideQueue,
} from "../../services/ports/InteractionQueue.ts"
import type { TraceContext } from "../../services/Telemetry.ts"
import { logWarning, type Sqlite } from "./Sqlite.ts"
import { type Move, moveOf, type Row, SqliteDelivery, tracedMove } from "./SqliteDelivery.ts"

/** How long the lease of a process outlives it. */
const leaseMillis = 10_000
/** How often a consumer renews its lease and releases the messages of dead consumers. */
const renewal = Schedule.spaced(leaseMillis / 4)
/** How often a waiting consumer looks for messages of other processes. */
const pollMillis = 200
const nextTryMillis = 1_000
const sourceQueue = { main: queue, setAside: setAsideQueue } as const
export const system = "sqlite"

const renewLease = (database: Database, holder: string, now: number) =>
  database
    .query(
      `INSERT INTO queue_consumers (holder, lease_until) VALUES (?1, ?2)
       ON CONFLICT (holder) DO UPDATE SET lease_until = ?2`,
    )
    .run(holder, now + leaseMillis)

/** Releases the messages of consumers whose lease has expired. Their deliveries stay counted. */
const releaseExpired = (database: Database, now: number): number => {
  const { changes } = database
    .query(
      `UPDATE queue_messages SET holder = NULL
       WHERE holder IN (SELECT holder FROM queue_consumers WHERE lease_until <= ?)`,
    )
    .run(now)
  database.query("DELETE FROM queue_consumers WHERE lease_until <= ?").run(now)
  return changes
}

/** Releases the messages of a closing consumer. This is no failure, so their deliveries are not counted. */
const releaseAll = (database: Database, holder: string) => {
  database
    .query("UPDATE queue_messages SET holder = NULL, deliveries = deliveries - 1 WHERE holder = ?")
    .run(holder)
  database.query("DELETE FROM queue_consumers WHERE holder = ?").run(holder)
}

/** Whether a quarantined message waits while no consumer holds one. */
const isQuarantineDue = (database: Database): boolean => {
  const one = (held: "IS" | "IS NOT") =>
    database
      .query<unknown, [string]>(
        `SELECT 1 FROM queue_messages WHERE queue = ? AND holder ${held} NULL LIMIT 1`,
      )
      .get(quarantineQueue) !== null
  return one("IS") && !one("IS NOT")
}

/** When the next message of a queue may be delivered; `undefined` when none waits. */
const nextDue = (database: Database, from: string): number | undefined =>
  database
    .query<{ available_at: number }, [string]>(
      `SELECT available_at FROM queue_messages WHERE queue = ? AND holder IS NULL
       ORDER BY available_at LIMIT 1`,
    )
    .get(from)?.available_at

/** Claims messages of a queue that may be delivered, oldest first. */
const claim = (database: Database, from: string, holder: string, now: number, most: number) => {
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

/**
 * Claims the next company of quarantined messages, if no other consumer holds one. Redelivered messages only go back to
 * quarantine, so they are no company for messages that are handled.
 */
const claimCompany = (database: Database, holder: string, now: number, most: number) => {
  if (!isQuarantineDue(database)) return []
  const waiting = database
    .query<Row, [string, number]>(
      `SELECT id, queue, available_at, deliveries + 1 AS deliveries, headers, body FROM queue_messages
       WHERE queue = ? ORDER BY available_at, id LIMIT ?`,
    )
    .all(quarantineQueue, Math.min(most, companySizes[0]))
    .map((row) => new SqliteDelivery(row))
  const kind = ({ quarantineAttempts, redeliveries }: SqliteDelivery) =>
    (redeliveries > 0 ? -1 : 1) * companySize(quarantineAttempts)
  const differs = waiting.findIndex((one) => kind(one) !== kind(waiting[0]!))
  const alike = differs < 0 ? waiting.length : differs
  return claim(database, quarantineQueue, holder, now, Math.min(alike, Math.abs(kind(waiting[0]!))))
}

/** Deletes and moves the rows of settled messages that the holder still holds. `traces`: of the moves. */
const writeSettled = (
  database: Database,
  holder: string,
  done: ReadonlyArray<SqliteDelivery>,
  moves: ReadonlyArray<Move>,
  traces: ReadonlyArray<TraceContext | null>,
) => {
  const remove = database.query("DELETE FROM queue_messages WHERE id = ? AND holder = ?")
  const move = database.query(
    `UPDATE queue_messages SET queue = ?, headers = ?, rung = ?, available_at = ?, holder = NULL,
     deliveries = 0 WHERE id = ? AND holder = ?`,
  )
  for (const { id } of done) remove.run(id, holder)
  for (const [index, { availableAt, delivery, headers, queue, retryDelay }] of moves.entries()) {
    const traced = JSON.stringify({ ...headers, trace: traces[index] ?? null })
    move.run(queue, traced, retryDelay, availableAt, delivery.id, holder)
  }
}

/** Wakes the waiting consumers of this process: there may be messages to take. */
export const wake = (arrivals: ReadonlySet<Effect.Latch>) =>
  Effect.sync(() => {
    for (const arrival of arrivals) arrival.unsafeOpen()
  })

class SqliteConsumer implements Consumer {
  readonly arrival = Effect.unsafeMakeLatch(false)
  private readonly holder = randomUUID()
  private readonly held = new Set<Delivery>()
  private wanted: Intake = { main: "all", setAside: "all" }
  private quarantineWaits = false

  constructor(
    private readonly sqlite: Context.Tag.Service<Sqlite>,
    private readonly prefetch: number,
    private readonly wake: Effect.Effect<void>,
  ) {}

  /** Nothing to do: only `take` claims messages, and releasing them is not counted as a delivery. */
  readonly stop = Effect.void
  readonly holds = (delivery: Delivery) => this.held.has(delivery)
  readonly full = () => this.held.size >= this.prefetch
  readonly draining = () => this.quarantineWaits

  readonly receive = (intake: Intake) => {
    this.wanted = intake
    this.arrival.unsafeOpen()
  }

  /** Interruptible only while it waits, so that claimed messages are always returned. */
  readonly take = (most: number): Effect.Effect<ReadonlyArray<Delivery>> =>
    Effect.uninterruptibleMask((restore) =>
      Effect.gen(this, function* () {
        while (true) {
          this.arrival.unsafeClose()
          const found = yield* this.claimNext(most).pipe(
            Effect.catchAll((error) => Effect.as(logWarning("take.failed")(error), nextTryMillis)),
          )
          if (typeof found === "number") yield* restore(Effect.timeoutOption(this.arrival.await, found))
          else if (found.length > 0) return found
        }
      }),
    )

  /** Claims up to `most` messages of a queue, or a company of quarantined messages. A number is the ms to wait. */
  private readonly claimNext = Effect.fnUntraced(function* (this: SqliteConsumer, most: number) {
    const { held, holder, sqlite, wanted } = this
    const room = Math.min(most, this.prefetch - held.size)
    const [first] = held
    if (room <= 0 || first?.quarantined) return pollMillis
    const now = yield* Clock.currentTimeMillis
    const quarantined = wanted.main !== "none" && (yield* sqlite.use(isQuarantineDue))
    this.quarantineWaits = quarantined && held.size > 0
    if (this.quarantineWaits) return pollMillis
    const due = quarantined ? undefined : yield* sqlite.use((database) => this.nextSource(database, now))
    if (typeof due === "number") return due
    const amount = due === undefined ? wanted.main : wanted[due]
    const rows = yield* sqlite.transaction((database) => {
      if (due === undefined) return claimCompany(database, holder, now, amount === "one" ? 1 : room)
      return claim(database, sourceQueue[due], holder, now, amount === "one" ? 1 : room)
    })
    if (amount === "one" && rows.length > 0) this.wanted = { ...wanted, [due ?? "main"]: "none" }
    const deliveries = rows.map((row) => new SqliteDelivery(row))
    for (const delivery of deliveries) held.add(delivery)
    return deliveries
  })

  /** The queue whose messages are wanted and due, or the ms until that. */
  private nextSource(database: Database, now: number): keyof Intake | number {
    let wait = pollMillis
    for (const source of ["main", "setAside"] as const) {
      if (this.wanted[source] === "none") continue
      const due = nextDue(database, sourceQueue[source])
      if (due === undefined) continue
      if (due <= now) return source
      wait = Math.min(wait, due - now)
    }
    return wait
  }

  /** Ends when the batch is written. A failing database only delays it. */
  readonly settle = Effect.fnUntraced(function* (this: SqliteConsumer, settled: ReadonlyArray<Settled>) {
    const now = yield* Clock.currentTimeMillis
    const jitter = yield* Random.nextRange(0.9, 1)
    const own: Array<SqliteDelivery> = []
    const done: Array<SqliteDelivery> = []
    const moves: Array<Move> = []
    for (const [delivery, settlement] of settled) {
      if (!(delivery instanceof SqliteDelivery)) continue
      own.push(delivery)
      if (settlement._tag === "Ack") done.push(delivery)
      else moves.push(moveOf(delivery, settlement, now, jitter))
    }
    yield* MessageTraces.publishing(system, moves.map(tracedMove), (traces) =>
      this.sqlite
        .transaction((database) => writeSettled(database, this.holder, done, moves, traces))
        .pipe(
          Effect.tapError(logWarning("settle.failed")),
          Effect.retry(Schedule.spaced(nextTryMillis)),
          // Retried for ever, so no error is left.
          Effect.orDie,
          MessageTraces.acknowledging(system, done),
          Effect.as(moves.map(() => "confirmed")),
        ),
    )
    for (const delivery of own) this.held.delete(delivery)
    yield* this.wake
  })

  readonly renew = Effect.gen(this, function* () {
    const now = yield* Clock.currentTimeMillis
    const count = yield* this.sqlite.transaction((database) => {
      renewLease(database, this.holder, now)
      return releaseExpired(database, now)
    })
    if (count === 0) return
    yield* Effect.logWarning("claims.returned").pipe(Effect.annotateLogs({ count }))
    yield* this.wake
  }).pipe(Effect.catchAll(logWarning("renew.failed")))

  /** Releases what is not settled. */
  readonly close = Effect.suspend(() =>
    this.sqlite.transaction((database) => releaseAll(database, this.holder)),
  ).pipe(Effect.catchAll(logWarning("leave.failed")), Effect.zipRight(Effect.suspend(() => this.wake)))
}

/** Opens a consumer until the scope closes. `arrivals`: what the consumers of this process wait for. */
export const consume = Effect.fnUntraced(function* (
  sqlite: Context.Tag.Service<Sqlite>,
  arrivals: Set<Effect.Latch>,
  prefetch: number,
) {
  const consumer = new SqliteConsumer(sqlite, prefetch, wake(arrivals))
  yield* Effect.acquireRelease(
    Effect.sync(() => arrivals.add(consumer.arrival)),
    () =>
      Effect.zipRight(
        Effect.sync(() => arrivals.delete(consumer.arrival)),
        consumer.close,
      ),
  )
  yield* Effect.forkScoped(Effect.repeat(consumer.renew, renewal))
  return consumer satisfies Consumer
})
