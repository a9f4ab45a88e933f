/** Compares the log with the embedding of one user, id by id. */
import { Array as Arr, Chunk, Effect, Stream } from "effect"
import { hasAlias, ledgersOf } from "../model/Aliases.ts"
import * as AppliedIds from "../model/AppliedIds.ts"
import { type Erasure, isErased, type Recorded } from "../model/Erasure.ts"
import { isMerge, isRetraction, type UserId } from "../model/Interaction.ts"
import { DeadLetters } from "../ports/DeadLetters.ts"
import { InteractionLog, type LogRow } from "../ports/InteractionLog.ts"
import { InteractionQueue } from "../ports/InteractionQueue.ts"
import { PhraseEmbedder } from "../ports/PhraseEmbedder.ts"
import { ProductEmbeddings } from "../ports/ProductEmbeddings.ts"
import { postedUnder } from "../ports/PrunedRows.ts"
import { loadReadable, UserEmbeddings, type UserRecord } from "../ports/UserEmbeddings.ts"
import * as AppliedInteractions from "../update/AppliedInteractions.ts"
import { type Findings, toUnapplied, type Unapplied } from "./AuditFindings.ts"

/** Rows read together. */
const page = 1_000
/** How often a user is read again because a worker changed the record meanwhile. */
const mostReadings = 10

export const services = Effect.all({
  log: InteractionLog,
  users: UserEmbeddings,
  queue: InteractionQueue,
  deadLetters: DeadLetters,
  products: ProductEmbeddings,
  embedder: PhraseEmbedder,
})
export type Services = Effect.Effect.Success<typeof services>

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
export const loadStates = ({ users }: Services, wanted: ReadonlyMap<UserId, ReadonlyArray<UserId>>) =>
  Effect.map(
    loadReadable(users, [...wanted.values()].flat()),
    (records) => new Map(Array.from(wanted, ([owner, ids]) => [owner, toState(ids, records)])),
  )

/** Splits rows of one or more users: those that are applied, those that an erasure covers, and the others. */
export const splitApplied = Effect.fnUntraced(function* <
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

export const auditUser = Effect.fnUntraced(function* (
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
