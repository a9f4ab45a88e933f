/**
 * Step: compares the log with what is applied, user by user. Both sides are read in the order of users and compared
 * by count and fingerprint (the XOR of the ids), so that memory stays bounded; only users who differ are looked at id
 * by id. What is not applied is explained by the outbox, the queues, the dead letters and products without embedding;
 * what nothing explains, also at a later look, is missing.
 */
import { Array as Arr, Chunk, Context, Effect, Layer, Order, Schema, Stream } from "effect"
import * as AppliedIds from "../model/AppliedIds.ts"
import type { EventType, UserId } from "../model/Interaction.ts"
import { content, DeadLetters, type DeadLettersError } from "../ports/DeadLetters.ts"
import { InteractionLog, type InteractionLogError, type LogRow } from "../ports/InteractionLog.ts"
import { type Depths, InteractionQueue, type InteractionQueueError } from "../ports/InteractionQueue.ts"
import { PhraseEmbedder } from "../ports/PhraseEmbedder.ts"
import { ProductEmbeddings, type ProductEmbeddingsError } from "../ports/ProductEmbeddings.ts"
import { type Bookkeeping, UserEmbeddings, type UserEmbeddingsError } from "../ports/UserEmbeddings.ts"
import * as AppliedInteractions from "./AppliedInteractions.ts"

/** One interaction that the log and the embedding do not agree about, or agree about only later. */
export interface Finding {
  readonly user_id: UserId
  /** Of an extra one the first 32 digits: no more is kept. */
  readonly message_id: string
  readonly state: "missing" | "extra" | "in_flight" | "dead" | "skipped"
  readonly event_type: EventType | null
  readonly product_id: string | null
  readonly occurred_at: string | null
}

export interface AuditReport {
  /** Users with interactions in the log or in an embedding. */
  readonly users: number
  /** Users of whom nothing is missing and nothing extra. */
  readonly consistent: number
  /** In the log, and neither applied nor explained by any of the following. */
  readonly missing: number
  /** Applied and not in the log, or counted in `event_count` without an id. */
  readonly extra: number
  /** Waiting in the outbox or in a queue. */
  readonly in_flight: number
  /** In `failed`. */
  readonly dead: number
  /** Their product has no embedding, or got it after them: a replay applies those. */
  readonly skipped: number
  /** At most {@link mostDetails} of each state. */
  readonly details?: ReadonlyArray<Finding>
}

export const mostDetails = 10_000

export type AuditError =
  | InteractionLogError
  | UserEmbeddingsError
  | InteractionQueueError
  | DeadLettersError
  | ProductEmbeddingsError

export class Auditor extends Context.Tag("user-embeddings/Auditor")<
  Auditor,
  {
    /** Audits one user or all; `progress` is told how many rows of the log have been read. */
    readonly audit: (options: {
      readonly user?: UserId | undefined
      readonly details?: boolean
      readonly progress?: (rows: number) => Effect.Effect<void>
    }) => Effect.Effect<AuditReport, AuditError>
  }
>() {}

/** More than the log holds is applied, or less and nothing explains it. */
export class Inconsistent extends Schema.TaggedError<Inconsistent>()("Inconsistent", {
  missing: Schema.Number,
  extra: Schema.Number,
}) {
  override get message() {
    return `${this.missing} interactions are missing, ${this.extra} are extra`
  }
}

/** Unexplained interactions that are looked at again; of more only the number is known. */
const mostOpen = 200_000
/** Interactions looked up together. */
const page = 1_000
/** Users compared together. */
const usersPerPage = 1_000
/** Users looked at id by id at the same time. */
const usersAtOnce = 4
/** While there are consumers, who hold messages that no queue shows, so often is looked whether they are done. */
const looks = 7
const pause = "1 second"
/** How often a user is read anew whom a worker changes meanwhile. */
const mostReadings = 10

/** Count and XOR of 128-bit ids: the same for the same set, in any order. */
class Fingerprint {
  count = 0
  private a = 0
  private b = 0
  private c = 0
  private d = 0

  constructor(ids = AppliedIds.none) {
    this.add(ids)
  }

  /** Adds the ids from one place among them to another. */
  add(ids: AppliedIds.AppliedIds, from = 0, to = AppliedIds.count(ids)): void {
    const words = new DataView(ids.buffer, ids.byteOffset, ids.byteLength)
    for (
      let at = from * AppliedIds.prefixBytes;
      at < to * AppliedIds.prefixBytes;
      at += AppliedIds.prefixBytes
    ) {
      this.a ^= words.getInt32(at)
      this.b ^= words.getInt32(at + 4)
      this.c ^= words.getInt32(at + 8)
      this.d ^= words.getInt32(at + 12)
    }
    this.count += to - from
  }

  equals({ a, b, c, count, d }: Fingerprint): boolean {
    return this.count === count && this.a === a && this.b === b && this.c === c && this.d === d
  }
}

interface Logged {
  readonly user_id: UserId
  readonly ids: Fingerprint
}

/** A row that is not applied, as long as nothing explains it. */
type Open = Omit<Finding, "state"> & { readonly recordedAt: number }

const toOpen = ({ interaction, recordedAt }: LogRow): Open => {
  const { event_type, message_id, occurred_at, product_id, user_id } = interaction
  return { user_id, message_id, event_type, product_id, occurred_at, recordedAt }
}

/** Identities in the order of users → one fingerprint a user. */
const perUser = <E>(
  pages: Stream.Stream<ReadonlyArray<{ readonly user_id: UserId; readonly message_id: string }>, E>,
  progress: (rows: number) => Effect.Effect<void>,
): Stream.Stream<Logged, E> => {
  let rows = 0
  let current: Logged | undefined
  const complete = Stream.mapEffect(pages, (identities) => {
    const done: Array<Logged> = []
    const ids = AppliedIds.pack(identities.map(({ message_id }) => message_id))
    for (let from = 0, to = 0; from < identities.length; from = to) {
      const { user_id } = identities[from]!
      while (identities[to]?.user_id === user_id) to++
      if (current?.user_id !== user_id) {
        if (current !== undefined) done.push(current)
        current = { user_id, ids: new Fingerprint() }
      }
      current.ids.add(ids, from, to)
    }
    rows += identities.length
    return Effect.as(progress(rows), Chunk.unsafeFromArray(done))
  })
  return Stream.concat(
    Stream.flattenChunks(complete),
    Stream.suspend(() => Stream.fromIterable(current === undefined ? [] : [current])),
  )
}

interface Both {
  readonly user_id: UserId
  readonly logged: Logged | undefined
  readonly applied: Bookkeeping | undefined
}

/** Two streams in the order of users → what both say of each user. */
const joined = <E1, E2>(
  log: Stream.Stream<Logged, E1>,
  records: Stream.Stream<Bookkeeping, E2>,
): Stream.Stream<Both, E1 | E2> => {
  const byUser = <A extends { readonly user_id: UserId }>(one: A) => [one.user_id, one] as const
  return Stream.map(log, byUser).pipe(
    Stream.zipAllSortedByKeyWith({
      other: Stream.map(records, byUser),
      order: Order.string,
      onSelf: (logged: Logged): Both => ({ user_id: logged.user_id, logged, applied: undefined }),
      onOther: (applied: Bookkeeping): Both => ({ user_id: applied.user_id, logged: undefined, applied }),
      onBoth: (logged: Logged, applied: Bookkeeping): Both => ({ user_id: logged.user_id, logged, applied }),
    }),
    Stream.map(([, both]) => both),
  )
}

/** A user's bookkeeping as it was read. */
type Read = AppliedInteractions.AppliedState & Pick<Bookkeeping, "version" | "erased_at" | "event_count">
const noRecord = { applied: AppliedIds.none, archived: 0, event_count: 0 }
const nothing: Read = {
  ...AppliedInteractions.appliedState(noRecord),
  version: 0,
  erased_at: -1,
  event_count: 0,
}

/** Interactions that some queue may hold, as far as can be told. */
const waiting = ({ quarantined: isolated, main, retry }: Depths, eventsPerMessage: number): number =>
  main.ready * eventsPerMessage +
  main.unacked +
  isolated +
  Object.values(retry).reduce((sum, depth) => sum + depth, 0)

const make = Effect.gen(function* () {
  const log = yield* InteractionLog
  const users = yield* UserEmbeddings
  const queue = yield* InteractionQueue
  const letters = yield* DeadLetters
  const products = yield* ProductEmbeddings
  const { space } = yield* PhraseEmbedder

  const readOf = (wanted: ReadonlyArray<UserId>) =>
    Effect.map(
      users.load(wanted),
      (records): ReadonlyMap<UserId, Read> =>
        new Map(
          Array.from(records, ([user, record]) => [
            user,
            {
              ...AppliedInteractions.appliedState(record),
              version: record.version,
              erased_at: record.erased_at,
              event_count: record.embedding?.event_count ?? 0,
            },
          ]),
        ),
    )

  const audit = Effect.fn("Auditor.audit")(function* (options: {
    readonly user?: UserId | undefined
    readonly details?: boolean
    readonly progress?: (rows: number) => Effect.Effect<void>
  }) {
    const counts = { missing: 0, extra: 0, in_flight: 0, dead: 0, skipped: 0 }
    const details: Array<Finding> = []
    const inconsistent = new Set<UserId>()
    let audited = 0
    let open: Array<Open> = []
    let beyond = 0

    const find = (state: Finding["state"], { recordedAt: _, ...facts }: Open) => {
      counts[state] += 1
      if (state === "missing" || state === "extra") inconsistent.add(facts.user_id)
      if (options.details && counts[state] <= mostDetails) details.push({ ...facts, state })
    }
    const extra = (user_id: UserId, message_id: string) =>
      find("extra", {
        user_id,
        message_id,
        event_type: null,
        product_id: null,
        occurred_at: null,
        recordedAt: 0,
      })

    /** Those of one or more users that are not applied. */
    const unapplied = Effect.fnUntraced(function* <
      Row extends { readonly user_id: UserId; readonly message_id: string; readonly recordedAt: number },
    >(rows: ReadonlyArray<Row>, records: ReadonlyMap<UserId, Read>) {
      const applied = yield* AppliedInteractions.findApplied(users, rows, records)
      const left = rows.filter(({ message_id }) => !applied.has(AppliedIds.prefix(message_id)))
      return {
        applied: rows.length - left.length,
        // What was recorded before the erasure counts no more; repeating the erasure removes the row.
        left: left.filter(({ recordedAt, user_id }) => recordedAt > (records.get(user_id)?.erased_at ?? -1)),
      }
    })

    /**
     * One user, id by id. The record is read before the log, whose rows come before what is applied of them; if it has
     * changed at the end, all is read anew, so that ids which move to the ledger are neither overlooked nor seen twice.
     */
    const readUser = Effect.fnUntraced(function* (user: UserId) {
      const records = yield* readOf([user])
      const record = records.get(user) ?? nothing
      let applied = 0
      const left: Array<LogRow> = []
      yield* log.stream({ user }).pipe(
        Stream.map((row) => ({ row, ...row.interaction, recordedAt: row.recordedAt })),
        Stream.grouped(page),
        Stream.runForEach((rows) =>
          Effect.map(unapplied(Chunk.toReadonlyArray(rows), records), (part) => {
            applied += part.applied
            for (const { row } of part.left) left.push(row)
          }),
        ),
      )
      const total = yield* AppliedInteractions.countApplied(users, user, record)
      const again = (yield* readOf([user])).get(user) ?? nothing
      return { record, left, total, extra: total - applied, settled: again.version === record.version }
    })

    const inspect = Effect.fnUntraced(function* (user: UserId) {
      const found = yield* readUser(user).pipe(
        Effect.repeat({ until: ({ settled }) => settled, times: mostReadings }),
      )
      const { record, total } = found
      if (found.extra > 0)
        yield* Stream.make([...record.onRecord]).pipe(
          Stream.concat(AppliedInteractions.overflowIds(users, user, record)),
          Stream.runForEach((ids) =>
            Effect.map(log.existingIds(ids), (known) => {
              for (const id of ids) if (!known.has(id)) extra(user, id)
            }),
          ),
        )
      // After a rebuild what is not in the log any more is not counted either.
      const miscounted = [total, total - found.extra].map((sum) => Math.abs(record.event_count - sum))
      if (found.settled) for (let i = 0; i < Math.min(...miscounted); i++) extra(user, "")
      const since = yield* products.knownSince(
        [...new Set(found.left.flatMap(({ interaction }) => interaction.product_id ?? []))],
        space,
      )
      for (const row of found.left) {
        const one = toOpen(row)
        const known = one.product_id === null ? 0 : since.get(one.product_id)
        if (!row.published) find("in_flight", one)
        else if (known === undefined || known > row.recordedAt) find("skipped", one)
        else if (open.length < mostOpen) open.push(one)
        else {
          beyond += 1
          inconsistent.add(user)
        }
      }
    })

    /**
     * Users of whom the log, the applied ids and their count don't say the same. An id that is on the record and in the
     * ledger counts twice here and cancels itself out, so that its user is looked at id by id.
     */
    const differing = Effect.fnUntraced(function* (some: ReadonlyArray<Both>) {
      const found = new Map(some.map(({ applied, user_id }) => [user_id, new Fingerprint(applied?.applied)]))
      const archived = some.filter(({ applied }) => applied !== undefined && applied.archived > 0)
      yield* Stream.runForEach(users.overflow(archived.map(({ user_id }) => user_id)), (entries) =>
        Effect.sync(() => {
          for (const { ids, user_id } of entries) found.get(user_id)?.add(AppliedIds.pack(ids))
        }),
      )
      return some.filter(({ applied, logged, user_id }) => {
        const ids = found.get(user_id) ?? new Fingerprint()
        return !ids.equals(logged?.ids ?? new Fingerprint()) || ids.count !== (applied?.event_count ?? 0)
      })
    })

    if (options.user !== undefined) {
      audited = 1
      yield* inspect(options.user)
    } else
      yield* joined(perUser(log.messageIds, options.progress ?? (() => Effect.void)), users.bookkeeping).pipe(
        Stream.filter(({ applied, logged }) => logged !== undefined || (applied?.event_count ?? 0) > 0),
        Stream.grouped(usersPerPage),
        Stream.runForEach((some) =>
          Effect.gen(function* () {
            audited += some.length
            const those = yield* differing(Chunk.toReadonlyArray(some))
            yield* Effect.forEach(those, ({ user_id }) => inspect(user_id), {
              concurrency: usersAtOnce,
              discard: true,
            })
          }),
        ),
      )

    /** Dead letters of the open ones. */
    const bury = Effect.gen(function* () {
      const wanted = new Set(open.map(({ message_id }) => message_id))
      const dead = new Set<string>()
      yield* Stream.runForEach(letters.list, (letter) =>
        Effect.sync(() => {
          const { message_id } = content(letter)
          if (message_id !== null && wanted.has(message_id)) dead.add(message_id)
        }),
      )
      const [alive, buried] = Arr.partition(open, ({ message_id }) => dead.has(message_id))
      for (const one of buried) find("dead", one)
      open = alive
    })

    /** The queues first: what is in none of them by then has been applied by the time of the next reading. */
    const look = Effect.gen(function* () {
      if (open.length === 0) return { consumers: 0, depth: 0, unacked: 0 }
      const depths = yield* queue.depths
      const left = yield* Effect.forEach(
        Arr.chunksOf(open, page),
        (some) =>
          Effect.flatMap(readOf([...new Set(some.map(({ user_id }) => user_id))]), (records) =>
            unapplied(some, records),
          ),
        { concurrency: usersAtOnce },
      )
      open = left.flatMap((part) => part.left)
      if (open.length > 0) yield* bury
      const { consumers, unacked } = depths.main
      return { consumers, depth: waiting(depths, queue.eventsPerMessage), unacked }
    })

    let found = yield* look
    const unexplained = () => open.length + beyond > found.depth
    // A message that moves from one place to another may be seen in neither, and what other processes hold in none.
    for (let looked = 1; unexplained() && looked < (found.consumers > 0 ? looks : 2); looked++) {
      yield* Effect.sleep(pause)
      found = yield* look
    }
    const held = unexplained() && found.consumers > 0 ? ((yield* queue.traffic)?.unacked ?? 0) : 0
    const waits = found.depth + Math.max(0, held * queue.eventsPerMessage - found.unacked)
    // A queue hands out its oldest first: what is missing is rather older than what still waits.
    open.sort((a, b) => a.recordedAt - b.recordedAt)
    const lost = Math.max(0, open.length + beyond - waits)
    const named = Math.max(0, lost - beyond)
    for (const [index, one] of open.entries()) find(index < named ? "missing" : "in_flight", one)
    counts.missing += lost - named
    counts.in_flight += beyond - (lost - named)
    const report: AuditReport = {
      users: audited,
      consistent: audited - inconsistent.size,
      ...counts,
      ...(options.details ? { details } : {}),
    }
    return report
  })

  return { audit }
})

export const layer = Layer.effect(Auditor, make)
