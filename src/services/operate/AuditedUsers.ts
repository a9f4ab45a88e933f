/** Compares the log with the embeddings of all users by count and fingerprint. Those who differ are compared id by id. */
import { Array as Arr, Chunk, Effect, Order, Stream } from "effect"
import { type Alias, ledgersOf } from "../model/Aliases.ts"
import * as AppliedIds from "../model/AppliedIds.ts"
import type { PrunedIds } from "../model/Checkpoint.ts"
import { isReferenceEventType } from "../model/EventTypes.ts"
import { Fingerprint } from "../model/Fingerprint.ts"
import type { Interaction, UserId } from "../model/Interaction.ts"
import type { Bookkeeping } from "../ports/UserEmbeddings.ts"
import { auditUser, type Services } from "./AuditedUser.ts"
import type { Findings } from "./AuditFindings.ts"

const usersPerPage = 1_000
export const usersAtOnce = 4

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

export const readPeople = ({ log }: Services) => Effect.map(log.aliases, (owners) => new People(owners))

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

export const auditAllUsers = Effect.fnUntraced(function* (
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
