/**
 * Step: compares the log with the embeddings, user by user. Both sides are read in the order of users and compared by
 * count and fingerprint (the XOR of the ids), so memory stays bounded. Only users who differ are compared id by id. The
 * outbox, the queues, the dead letters and products without an embedding explain why an interaction is not applied. An
 * interaction that nothing explains, even when the audit checks again later, is missing.
 */
import { Array as Arr, Chunk, Context, Effect, Layer, Option, Order, Schema, Stream } from "effect"
import { type Alias, hasAlias, ledgersOf } from "../model/Aliases.ts"
import * as AppliedIds from "../model/AppliedIds.ts"
import type { PrunedIds } from "../model/Checkpoint.ts"
import { type Erasure, isErased, type Recorded } from "../model/Erasure.ts"
import { isReferenceEventType } from "../model/EventTypes.ts"
import { Fingerprint } from "../model/Fingerprint.ts"
import { type EventType, type Interaction, isMerge, isRetraction, type UserId } from "../model/Interaction.ts"
import { content, DeadLetters, type DeadLettersError } from "../ports/DeadLetters.ts"
import { InteractionLog, type InteractionLogError, type LogRow } from "../ports/InteractionLog.ts"
import { type Depths, InteractionQueue, type InteractionQueueError } from "../ports/InteractionQueue.ts"
import { PhraseEmbedder } from "../ports/PhraseEmbedder.ts"
import { ProductEmbeddings, type ProductEmbeddingsError } from "../ports/ProductEmbeddings.ts"
import { postedUnder } from "../ports/PrunedRows.ts"
import type { Bookkeeping, UserEmbeddingsError, UserRecord } from "../ports/UserEmbeddings.ts"
import { loadReadable, UserEmbeddings } from "../ports/UserEmbeddings.ts"
import * as AppliedInteractions from "../update/AppliedInteractions.ts"

/** One interaction about which log and embedding disagree, or about which they will agree later. */
export interface Finding {
  readonly user_id: UserId
  /** Only the first 32 digits of an extra interaction: the record keeps no more. */
  readonly message_id: string
  readonly state: "missing" | "extra" | "not_erased" | "in_flight" | "dead" | "skipped"
  readonly event_type: EventType | null
  readonly product_id: string | null
  readonly occurred_at: string | null
}

export interface AuditReport {
  /** Users with interactions in the log or in an embedding: none if the given user is unknown. */
  readonly users: number
  /** Users without missing, extra and unerased interactions. */
  readonly consistent: number
  /** In the log or pruned, not applied, and explained by none of the states below. */
  readonly missing: number
  /** Applied but not in the log, or counted in `event_count` without an id. */
  readonly extra: number
  /** In the log, though an erasure of the user covers them: it was not finished, or the log was restored. */
  readonly not_erased: number
  /** Waiting in the outbox or in a queue. */
  readonly in_flight: number
  /** In the queue `failed`. */
  readonly dead: number
  /** The product has no embedding, or had none when a worker received the interaction: a replay applies the latter. */
  readonly skipped: number
  /** At most {@link mostDetails} of each state. */
  readonly details?: ReadonlyArray<Finding>
}

export const mostDetails = 10_000

type AuditError =
  | InteractionLogError
  | UserEmbeddingsError
  | InteractionQueueError
  | DeadLettersError
  | ProductEmbeddingsError

interface AuditOptions {
  readonly user?: UserId | undefined
  readonly details?: boolean
  /** Receives the number of log rows read so far. */
  readonly progress?: (rows: number) => Effect.Effect<void>
}

export class Auditor extends Context.Tag("user-embeddings/Auditor")<
  Auditor,
  { readonly audit: (options: AuditOptions) => Effect.Effect<AuditReport, AuditError> }
>() {}

export class Inconsistent extends Schema.TaggedError<Inconsistent>()("Inconsistent", {
  missing: Schema.Number,
  extra: Schema.Number,
  not_erased: Schema.Number,
}) {
  override get message() {
    const left = this.not_erased === 0 ? "" : `, ${this.not_erased} are not erased`
    return `${this.missing} interactions are missing, ${this.extra} are extra${left}`
  }
}

/** Unexplained interactions kept to be checked again; of any beyond these only the number is known. */
const mostUnexplained = 200_000
const page = 1_000
const usersPerPage = 1_000
const usersAtOnce = 4
/** Consumers hold messages that no queue shows, so while there are consumers the audit checks this often. */
const mostChecks = 7
const pause = "1 second"
/** How often a user is read again because a worker changed the record meanwhile. */
const mostReadings = 10

const services = Effect.all({
  log: InteractionLog,
  users: UserEmbeddings,
  queue: InteractionQueue,
  deadLetters: DeadLetters,
  products: ProductEmbeddings,
  embedder: PhraseEmbedder,
})
type Services = Effect.Effect.Success<typeof services>

/** Which ids are one person, by the merges of the log. */
class People {
  private readonly aliasesOf: ReadonlyMap<UserId, ReadonlyArray<UserId>>

  /** `owners`: the user that each alias leads to. */
  constructor(private readonly owners: ReadonlyMap<UserId, UserId>) {
    this.aliasesOf = Map.groupBy(owners.keys(), (alias) => owners.get(alias)!)
  }

  ownerOf(id: UserId): UserId {
    return this.owners.get(id) ?? id
  }

  idsOf(owner: UserId): ReadonlyArray<UserId> {
    return [owner, ...(this.aliasesOf.get(owner) ?? [])]
  }
}

const readPeople = ({ log }: Services) => Effect.map(log.aliases, (owners) => new People(owners))

/** `user_id` is that of the person. */
interface Unapplied extends Omit<Finding, "state">, Recorded {
  readonly posted_as: UserId
}

const toUnapplied = ({ id, interaction, recordedAt }: LogRow, user_id: UserId): Unapplied => {
  const { event_type, message_id, occurred_at, product_id, user_id: posted_as } = interaction
  return { user_id, posted_as, message_id, event_type, product_id, occurred_at, recordedAt, logId: id }
}

class Findings {
  users = 0
  /** Users with rows that an erasure covers: it may be in progress, so they are audited again at the end. */
  readonly behindErasures: Array<UserId> = []
  /** Published, not applied, and not explained by anything checked so far. */
  unexplained: Array<Unapplied> = []
  /** How many more there were than {@link mostUnexplained}. */
  private beyond = 0
  private readonly counts = { missing: 0, extra: 0, not_erased: 0, in_flight: 0, dead: 0, skipped: 0 }
  private readonly inconsistent = new Set<UserId>()
  private readonly details: Array<Finding> | undefined

  constructor(withDetails: boolean) {
    this.details = withDetails ? [] : undefined
  }

  add(state: Finding["state"], { logId: _, posted_as: __, recordedAt: ___, ...facts }: Unapplied): void {
    this.counts[state] += 1
    if (state === "missing" || state === "extra" || state === "not_erased")
      this.inconsistent.add(facts.user_id)
    if (this.counts[state] <= mostDetails) this.details?.push({ ...facts, state })
  }

  /** Of an interaction without a row. */
  addUnknown(state: "missing" | "extra", user_id: UserId, message_id: string): void {
    const unknown = { event_type: null, product_id: null, occurred_at: null, logId: null, recordedAt: 0 }
    this.add(state, { user_id, posted_as: user_id, message_id, ...unknown })
  }

  addUnexplained(row: Unapplied): void {
    if (this.unexplained.length < mostUnexplained) this.unexplained.push(row)
    else {
      this.beyond += 1
      this.inconsistent.add(row.user_id)
    }
  }

  get unexplainedCount(): number {
    return this.unexplained.length + this.beyond
  }

  /** Of the unexplained interactions at most `waiting` are in flight. The others are missing. */
  conclude(waiting: number): void {
    // A queue delivers its oldest message first, so a missing interaction is more likely an old one.
    this.unexplained.sort((a, b) => a.recordedAt - b.recordedAt)
    const missing = Math.max(0, this.unexplainedCount - waiting)
    const missingBeyond = Math.min(missing, this.beyond)
    for (const [index, row] of this.unexplained.entries())
      this.add(index < missing - missingBeyond ? "missing" : "in_flight", row)
    this.counts.missing += missingBeyond
    this.counts.in_flight += this.beyond - missingBeyond
  }

  report(): AuditReport {
    return {
      users: this.users,
      consistent: this.users - this.inconsistent.size,
      ...this.counts,
      ...(this.details && { details: this.details }),
    }
  }
}

// ---------------------------------------------------------------------------------------------------------
// All users: which of them differ

/** The rows of a user: those in the log, and those that are pruned. */
interface Logged {
  readonly user_id: UserId
  readonly ids: Fingerprint
  /** How many of the ids are of no event that counts: merges, retractions and what they take back. */
  uncounted: number
}

/** Adds the pruned rows. An id that is in both cancels itself out of the XOR, so its user is compared id by id. */
const withPruned = <E1, E2>(log: Stream.Stream<Logged, E1>, pruned: Stream.Stream<PrunedIds, E2>) => {
  const toLogged = ({ fingerprint, retractions, rows, user_id }: PrunedIds): Logged => {
    const ids = new Fingerprint()
    ids.addSet(rows, fingerprint)
    return { user_id, ids, uncounted: 2 * retractions }
  }
  return Stream.map(log, (one) => [one.user_id, one] as const).pipe(
    Stream.zipAllSortedByKeyWith({
      other: Stream.map(pruned, (one) => [one.user_id, toLogged(one)] as const),
      order: Order.string,
      onSelf: (logged: Logged) => logged,
      onOther: (logged: Logged) => logged,
      onBoth: (logged: Logged, pruned: Logged): Logged => {
        logged.ids.addAll(pruned.ids)
        return { ...logged, uncounted: logged.uncounted + pruned.uncounted }
      },
    }),
    Stream.map(([, logged]) => logged),
  )
}

/** Ids in the order of users → one fingerprint per user. */
const fingerprintUsers = <E>(
  pages: Stream.Stream<ReadonlyArray<Pick<Interaction, "user_id" | "message_id" | "event_type">>, E>,
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
        current = { user_id, ids: new Fingerprint(), uncounted: 0 }
      }
      current.ids.add(ids, from, to)
      for (let at = from; at < to; at++) {
        const { event_type } = identities[at]!
        if (isReferenceEventType(event_type)) current.uncounted += event_type === "retraction" ? 2 : 1
      }
    }
    rows += identities.length
    return Effect.as(progress(rows), Chunk.unsafeFromArray(done))
  })
  return Stream.concat(
    Stream.flattenChunks(complete),
    Stream.suspend(() => Stream.fromIterable(current === undefined ? [] : [current])),
  )
}

/** What the log and the embeddings say about one user. */
interface Both {
  readonly user_id: UserId
  readonly logged: Logged | undefined
  readonly applied: Bookkeeping | undefined
}

/** Joins two streams that are in the order of users. */
const joinByUser = <E1, E2>(log: Stream.Stream<Logged, E1>, records: Stream.Stream<Bookkeeping, E2>) => {
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

/** The figures of one person. */
interface Tally {
  readonly user_id: UserId
  readonly logged: Fingerprint
  readonly applied: Fingerprint
  readonly ledgers: Array<Alias>
  uncounted: number
  event_count: number
}

/** Adds what is known of one id. */
const addTo = (tally: Tally, { applied, logged }: Both): Tally => {
  if (logged !== undefined) {
    tally.logged.addAll(logged.ids)
    tally.uncounted += logged.uncounted
  }
  if (applied !== undefined) {
    tally.applied.add(applied.applied)
    tally.ledgers.push(...ledgersOf(applied))
    tally.event_count += applied.event_count
  }
  return tally
}

const emptyTally = (user_id: UserId): Tally => ({
  user_id,
  logged: new Fingerprint(),
  applied: new Fingerprint(),
  ledgers: [],
  uncounted: 0,
  event_count: 0,
})

const isKnown = ({ applied, event_count, logged }: Tally) =>
  logged.count > 0 || applied.count > 0 || event_count > 0

/**
 * Users of whom the log, the applied ids and the number of events disagree. An id that is both on the record and in the
 * overflow counts twice and cancels itself out of the XOR, so its user differs and is compared id by id.
 */
const differing = Effect.fnUntraced(function* ({ users }: Services, some: ReadonlyArray<Tally>) {
  const byLedger = new Map(some.flatMap((tally) => tally.ledgers.map(({ user_id }) => [user_id, tally])))
  yield* Stream.runForEach(users.overflow(some.flatMap(({ ledgers }) => ledgers)), (entries) =>
    Effect.sync(() => {
      for (const { ids, user_id } of entries) byLedger.get(user_id)?.applied.add(AppliedIds.pack(ids))
    }),
  )
  return some.filter(
    ({ applied, event_count, logged, uncounted }) =>
      !applied.equals(logged) || applied.count - uncounted !== event_count,
  )
})

const auditAllUsers = Effect.fnUntraced(function* (
  services: Services,
  findings: Findings,
  progress: (rows: number) => Effect.Effect<void>,
) {
  const compare = Effect.fnUntraced(function* (some: ReadonlyArray<Tally>) {
    findings.users += some.length
    yield* Effect.forEach(
      yield* differing(services, some),
      ({ user_id }) => auditUser(services, findings, user_id),
      { concurrency: usersAtOnce, discard: true },
    )
  })
  const people = yield* readPeople(services)
  /** People with several ids, which stand apart in the order of ids. */
  const merged = new Map<UserId, Tally>()
  const { log, users } = services
  const logged = withPruned(fingerprintUsers(log.messageIds, progress), log.pruned.allIds)
  yield* joinByUser(logged, users.bookkeeping).pipe(
    Stream.mapConcat((both) => {
      const owner = people.ownerOf(both.user_id)
      const tally = addTo(merged.get(owner) ?? emptyTally(owner), both)
      if (people.idsOf(owner).length === 1) return isKnown(tally) ? [tally] : []
      merged.set(owner, tally)
      return []
    }),
    Stream.grouped(usersPerPage),
    Stream.runForEach((some) => compare(Chunk.toReadonlyArray(some))),
  )
  yield* Effect.forEach(Arr.chunksOf([...merged.values()].filter(isKnown), usersPerPage), compare)
})

// ---------------------------------------------------------------------------------------------------------
// One user, id by id

/** What the records of a person say of applied interactions, read at one instant. */
const toState = (ids: ReadonlyArray<UserId>, found: ReadonlyMap<UserId, UserRecord>) => {
  const records = ids.flatMap((id) => found.get(id) ?? [])
  // What another record has taken is there until the merge ends.
  const own = records.filter(({ user_id }) => !records.some((other) => hasAlias(other, user_id)))
  return {
    onRecord: new Set(own.flatMap(({ applied }) => [...AppliedIds.toSet(applied)])),
    ledgers: own.flatMap(ledgersOf),
    /** Where workers note what they skip. */
    skippedIn: ids.map((user_id) => ({ user_id, generation: found.get(user_id)?.generation ?? 0 })),
    /** Changes with every write. */
    version: records.reduce((sum, { version }) => sum + version, 0),
    event_count: own.reduce((sum, { embedding }) => sum + (embedding?.event_count ?? 0), 0),
    erasures: new Map<UserId, Erasure>(records.map((record) => [record.user_id, record])),
  }
}
type State = ReturnType<typeof toState>

/** `wanted`: ids by person. */
const loadStates = ({ users }: Services, wanted: ReadonlyMap<UserId, ReadonlyArray<UserId>>) =>
  Effect.map(
    loadReadable(users, [...wanted.values()].flat()),
    (records) => new Map(Array.from(wanted, ([owner, ids]) => [owner, toState(ids, records)])),
  )

/** Splits rows of one or more users: those that are applied, those that an erasure covers, and the others. */
const splitApplied = Effect.fnUntraced(function* <
  Row extends Recorded & Pick<Unapplied, "user_id" | "posted_as" | "message_id">,
>({ users }: Services, rows: ReadonlyArray<Row>, states: ReadonlyMap<UserId, State>) {
  const ids = yield* AppliedInteractions.findApplied(users, rows, states)
  const [left, applied] = Arr.partition(rows, ({ message_id }) => ids.has(AppliedIds.prefix(message_id)))
  const [unapplied, erased] = Arr.partition(left, (row) => {
    const erasure = states.get(row.user_id)?.erasures.get(row.posted_as)
    return erasure !== undefined && isErased(erasure, row)
  })
  return { applied, unapplied, erased }
})

/** The person's pruned rows. */
const readPruned = Effect.fnUntraced(function* ({ log }: Services, ids: ReadonlyArray<UserId>) {
  const checkpoints = yield* log.pruned.checkpoints(ids)
  const rows = checkpoints.reduce((sum, { rows }) => sum + rows, 0)
  return {
    ids,
    rows,
    retractions: checkpoints.reduce((sum, { retractions }) => sum + retractions, 0),
    /** The prefixes of those of these ids that are pruned. */
    among: (wanted: ReadonlyArray<string>) =>
      rows === 0
        ? Effect.succeed<ReadonlySet<string>>(new Set())
        : log.pruned.among(postedUnder(ids, wanted)),
  }
})

/**
 * The records are read before the log, because a row is written before it is applied. `unchanged` is false when a record
 * or a checkpoint has changed at the end: then ids may have moved to the overflow, or rows to the checkpoint, and would be
 * overlooked or counted twice. Rows of events that were pruned and posted again are left out.
 */
const readUser = Effect.fnUntraced(function* (services: Services, user: UserId) {
  const { log, users } = services
  const { ids } = yield* log.person(user)
  const wanted = new Map([[user, ids]])
  const states = yield* loadStates(services, wanted)
  const state = states.get(user)!
  const pruned = yield* readPruned(services, ids)
  let applied = 0
  const unapplied: Array<LogRow> = []
  const erased: Array<LogRow> = []
  let merges = 0
  /** Prefixes of the interactions that applied retractions take back. */
  const retracted: Array<string> = []
  yield* log.stream({ user }).pipe(
    Stream.map((row) => ({ row, ...toUnapplied(row, user) })),
    Stream.grouped(page),
    Stream.map(Chunk.toReadonlyArray),
    Stream.mapEffect((rows) =>
      Effect.map(pruned.among(rows.map(({ message_id }) => message_id)), (again) =>
        rows.filter(({ message_id }) => !again.has(AppliedIds.prefix(message_id))),
      ),
    ),
    Stream.runForEach((rows) =>
      Effect.map(splitApplied(services, rows, states), (part) => {
        applied += part.applied.length
        for (const { row } of part.applied) {
          if (isRetraction(row.interaction)) retracted.push(AppliedIds.prefix(row.interaction.reference))
          if (isMerge(row.interaction)) merges += 1
        }
        for (const { row } of part.unapplied) unapplied.push(row)
        for (const { row } of part.erased) erased.push(row)
      }),
    ),
  )
  const total = yield* AppliedInteractions.countApplied(users, state)
  // An erasure during the retraction may have deleted the row of what it takes back.
  const existing = (yield* log.existingIds(retracted)).union(yield* pruned.among(retracted))
  const withoutRow = new Set(retracted.filter((id) => !existing.has(id)))
  const { version } = (yield* loadStates(services, wanted)).get(user)!
  const { rows } = yield* readPruned(services, ids)
  return {
    state,
    pruned,
    unapplied,
    erased,
    withoutRow,
    events: total - 2 * (retracted.length + pruned.retractions) - merges,
    extra: total - applied - withoutRow.size - pruned.rows,
    unchanged: version === state.version && rows === pruned.rows,
  }
})

const findExtraIds = (
  { log, users }: Services,
  findings: Findings,
  user: UserId,
  { pruned, state, withoutRow }: Effect.Effect.Success<ReturnType<typeof readUser>>,
) =>
  Stream.make([...state.onRecord]).pipe(
    Stream.concat(AppliedInteractions.overflowIds(users, state)),
    Stream.runForEach((ids) =>
      Effect.zipWith(log.existingIds(ids), pruned.among(ids), (existing, pruned) => {
        for (const id of ids)
          if (!existing.has(id) && !pruned.has(id) && !withoutRow.has(id))
            findings.addUnknown("extra", user, id)
      }),
    ),
  )

/** MongoDB was restored from a backup that is older than the prune. A rebuild takes the sums over. */
const findUnappliedPruned = (
  { log, users }: Services,
  findings: Findings,
  user: UserId,
  { pruned, state }: Effect.Effect.Success<ReturnType<typeof readUser>>,
) =>
  Stream.runForEach(log.pruned.idsOf(pruned.ids), (ids) =>
    Effect.map(
      AppliedInteractions.findApplied(users, postedUnder([user], ids), new Map([[user, state]])),
      (applied) => {
        for (const id of ids) if (!applied.has(id)) findings.addUnknown("missing", user, id)
      },
    ),
  )

const auditUser = Effect.fnUntraced(function* (
  services: Services,
  findings: Findings,
  user: UserId,
  finishedErasures?: ReadonlySet<UserId>,
) {
  const read = yield* readUser(services, user).pipe(
    Effect.repeat({ until: ({ unchanged }) => unchanged, times: mostReadings }),
  )
  const { erased, events, extra, state, unapplied, unchanged } = read
  if (erased.length > 0 && finishedErasures === undefined) return void findings.behindErasures.push(user)
  // A row that survived a finished erasure will be published under a new id.
  const stateOfErased = finishedErasures?.has(user) ? "in_flight" : "not_erased"
  for (const row of erased) findings.add(stateOfErased, toUnapplied(row, user))
  if (extra > 0) yield* findExtraIds(services, findings, user, read)
  if (extra < 0 && unchanged) yield* findUnappliedPruned(services, findings, user, read)
  // A rebuild does not count interactions that the log no longer has, so either count is right.
  const miscounted = [events, events - extra].map((sum) => Math.abs(state.event_count - sum))
  if (unchanged) for (let i = 0; i < Math.min(...miscounted); i++) findings.addUnknown("extra", user, "")
  const ids = unapplied.map(({ interaction }) => AppliedIds.prefix(interaction.message_id))
  const inLedger = yield* services.users.findInLedger(
    "skipped",
    state.skippedIn.map((ledger) => ({ ...ledger, ids })),
  )
  const skipped = new Set([...inLedger.values()].flatMap((some) => [...some]))
  const products = yield* services.products.knownSince(
    [...new Set(unapplied.flatMap(({ interaction }) => interaction.product_id ?? []))],
    services.embedder.space,
  )
  for (const row of unapplied) {
    const one = toUnapplied(row, user)
    // A retraction is applied whether or not its product has an embedding.
    const isUnknown =
      one.event_type !== "retraction" && one.product_id !== null && !products.has(one.product_id)
    if (!row.published) findings.add("in_flight", one)
    else if (isUnknown || skipped.has(AppliedIds.prefix(one.message_id))) findings.add("skipped", one)
    else findings.addUnexplained(one)
  }
})

// ---------------------------------------------------------------------------------------------------------
// Unexplained interactions: checked against the embeddings, the dead letters and the queues

/** Interactions that may be in a queue, at most. */
const queued = ({ main, quarantined, retry }: Depths, eventsPerMessage: number): number =>
  main.ready * eventsPerMessage +
  main.unacked +
  quarantined +
  Object.values(retry).reduce((sum, depth) => sum + depth, 0)

const explainByDeadLetters = Effect.fnUntraced(function* ({ deadLetters }: Services, findings: Findings) {
  const wanted = new Set(findings.unexplained.map(({ message_id }) => message_id))
  const dead = new Set<string>()
  yield* Stream.runForEach(deadLetters.list, (deadLetter) =>
    Effect.sync(() => {
      const { message_id } = content(deadLetter)
      if (message_id !== null && wanted.has(message_id)) dead.add(message_id)
    }),
  )
  const [others, found] = Arr.partition(findings.unexplained, ({ message_id }) => dead.has(message_id))
  for (const one of found) findings.add("dead", one)
  findings.unexplained = others
})

/** The queues are read first: an interaction that has left them by then is on its user's record, which is read later. */
const checkAgain = Effect.fnUntraced(function* (services: Services, findings: Findings) {
  if (findings.unexplained.length === 0) return { consumers: 0, queued: 0, unacked: 0 }
  const { queue } = services
  const depths = yield* queue.depths
  const people = yield* readPeople(services)
  const parts = yield* Effect.forEach(
    Arr.chunksOf(findings.unexplained, page),
    (some) => {
      const rows = some.map((row) => ({ ...row, user_id: people.ownerOf(row.posted_as) }))
      const wanted = new Map(rows.map(({ user_id }) => [user_id, people.idsOf(user_id)]))
      return Effect.flatMap(loadStates(services, wanted), (states) => splitApplied(services, rows, states))
    },
    { concurrency: usersAtOnce },
  )
  findings.unexplained = parts.flatMap(({ unapplied }) => unapplied)
  if (findings.unexplained.length > 0) yield* explainByDeadLetters(services, findings)
  const { consumers, unacked } = depths.main
  return { consumers, queued: queued(depths, queue.eventsPerMessage), unacked }
})

/**
 * Answers how many of the unexplained interactions may be in flight. A message that moves between queues may be seen in
 * neither, and a message held by another process is in none, so the audit checks several times.
 */
const explainByQueues = Effect.fnUntraced(function* (services: Services, findings: Findings) {
  const { queue } = services
  let found = yield* checkAgain(services, findings)
  const tooMany = () => findings.unexplainedCount > found.queued
  for (let checks = 1; tooMany() && checks < (found.consumers > 0 ? mostChecks : 2); checks++) {
    yield* Effect.sleep(pause)
    found = yield* checkAgain(services, findings)
  }
  const held = tooMany() && found.consumers > 0 ? ((yield* queue.traffic)?.unacked ?? 0) : 0
  return found.queued + Math.max(0, held * queue.eventsPerMessage - found.unacked)
})

/** Again, because an erasure may have been in progress. */
const auditBehindErasures = Effect.fnUntraced(function* (services: Services, findings: Findings) {
  if (findings.behindErasures.length === 0) return
  yield* Effect.sleep(pause)
  const finished = new Set((yield* services.log.finishedErasures).map(({ user_id }) => user_id))
  yield* Effect.forEach(findings.behindErasures, (user) => auditUser(services, findings, user, finished), {
    concurrency: usersAtOnce,
    discard: true,
  })
})

const isKnownId = Effect.fnUntraced(function* ({ log, users }: Services, user: UserId) {
  const { ids } = yield* log.person(user)
  if ((yield* loadReadable(users, ids)).size > 0 || (yield* log.pruned.checkpoints(ids)).length > 0)
    return true
  return Option.isSome(yield* Stream.runHead(log.stream({ user })))
})

const audit = Effect.fn("Auditor.audit")(function* (services: Services, options: AuditOptions) {
  const findings = new Findings(options.details ?? false)
  if (options.user === undefined)
    yield* auditAllUsers(services, findings, options.progress ?? (() => Effect.void))
  else if (yield* isKnownId(services, options.user)) {
    findings.users = 1
    const { user_id } = yield* services.log.person(options.user)
    yield* auditUser(services, findings, user_id)
  }
  yield* auditBehindErasures(services, findings)
  findings.conclude(yield* explainByQueues(services, findings))
  return findings.report()
})

export const layer = Layer.effect(
  Auditor,
  Effect.map(services, (services) => ({ audit: (options: AuditOptions) => audit(services, options) })),
)
