/**
 * Step: feed → EmbeddingSink. It subscribes, makes the sink equal to what is stored, and then follows the feed. Whatever
 * fails, it starts from the beginning when the servers answer again: what it missed meanwhile waits in its queue, or is
 * found by comparing versions.
 */
import { Array as Arr, Clock, Effect, Option, Order, Schedule, Stream } from "effect"
import { EmbeddingConfig } from "../EmbeddingConfig.ts"
import { type EmbeddingChange, newest } from "../model/EmbeddingChange.ts"
import type { UserId } from "../model/Interaction.ts"
import type { UserEmbedding } from "../model/UserEmbedding.ts"
import * as Vector from "../model/Vector.ts"
import { EmbeddingFeed, type EmbeddingFeedError, FeedIsOff, feedExchange } from "../ports/EmbeddingFeed.ts"
import {
  EmbeddingSink,
  type EmbeddingSinkError,
  type SinkChanges,
  type SinkConnection,
  type SinkRow,
} from "../ports/EmbeddingSink.ts"
import {
  loadReadable,
  UserEmbeddings,
  type UserEmbeddingsError,
  type UserRecord,
} from "../ports/UserEmbeddings.ts"
import * as RetryPolicies from "../RetryPolicies.ts"
import { Catalogue, type CatalogueError } from "../recommend/Catalogue.ts"
import { type Read, readTastes } from "../recommend/EmbeddingReads.ts"
import * as Telemetry from "../Telemetry.ts"
import { EventVectors } from "../update/EventVectors.ts"

type SinkFailure = EmbeddingSinkError | EmbeddingFeedError | UserEmbeddingsError | CatalogueError

/** Changes taken from the feed together. */
const changesAtOnce = 500
/** Users compared or filled together. */
const page = 200
/** Of a queue. */
const longestName = 255

const services = Effect.all({
  users: UserEmbeddings,
  catalogue: Catalogue,
  config: EmbeddingConfig,
  vectors: EventVectors,
})
type Services = Effect.Effect.Success<typeof services>

/** What the sink must have of these records. A user without a vector in the configured space has no row. */
const toChanges = Effect.fnUntraced(function* (
  sources: Services,
  records: ReadonlyArray<UserRecord>,
  read: Read,
) {
  const { space } = sources.catalogue
  const { dimensions } = sources.config
  const usable: Array<UserRecord & { readonly embedding: UserEmbedding }> = []
  for (const { embedding, ...record } of records)
    if (
      embedding?.space === space &&
      embedding.embedding.length === dimensions &&
      record.links?.alias_of === undefined
    )
      usable.push({ ...record, embedding })
  const tastes =
    read === "stored"
      ? usable.map(({ embedding }) => embedding.embedding)
      : (yield* readTastes(
          sources,
          usable.map(({ embedding }) => embedding),
        )).map(({ taste }) => taste?.direction)
  const rows = new Map<UserId, SinkRow>()
  for (const [position, { embedding, user_id, version }] of usable.entries()) {
    const vector = tastes[position]
    if (vector === undefined) continue
    const { event_count, updated_at } = embedding
    rows.set(user_id, {
      user_id,
      version,
      space,
      updated_at: new Date(updated_at).toISOString(),
      event_count,
      embedding: vector,
    })
  }
  const removals = records.filter(({ user_id }) => !rows.has(user_id))
  return { rows: [...rows.values()], removals } satisfies SinkChanges
})

/** A change that has what the sink needs; `undefined` if the record must be read. */
const rowOf = (
  { catalogue, config }: Services,
  change: EmbeddingChange,
  read: Read,
): SinkChanges | undefined => {
  if (change.type !== "updated") return { rows: [], removals: [change] }
  const { embedding, space, ...row } = change
  if (space !== catalogue.space || change.dimension_count !== config.dimensions)
    return { rows: [], removals: [change] }
  if (embedding === undefined || read === "taste") return undefined
  return { rows: [{ ...row, space, embedding }], removals: [] }
}

const write = (connection: SinkConnection, changes: SinkChanges) =>
  Effect.tap(connection.apply(changes), () =>
    Effect.sync(() => {
      Telemetry.count(Telemetry.sinkChanges("written"), changes.rows.length)
      Telemetry.count(Telemetry.sinkChanges("removed"), changes.removals.length)
    }),
  )

const applyChanges = Effect.fnUntraced(function* (
  sources: Services,
  connection: SinkConnection,
  changes: ReadonlyArray<EmbeddingChange>,
  read: Read,
) {
  const direct: Array<SinkChanges> = []
  const unread: Array<UserId> = []
  for (const change of newest(changes)) {
    const row = rowOf(sources, change, read)
    if (row === undefined) unread.push(change.user_id)
    else direct.push(row)
  }
  const records = unread.length === 0 ? [] : [...(yield* loadReadable(sources.users, unread)).values()]
  const loaded = yield* toChanges(sources, records, read)
  yield* write(connection, {
    rows: [...direct.flatMap(({ rows }) => rows), ...loaded.rows],
    removals: [...direct.flatMap(({ removals }) => removals), ...loaded.removals],
  })
})

/** Users whose versions differ in store and sink. */
const differing = ({ users }: Services, connection: SinkConnection) =>
  Stream.zipAllSortedByKeyWith(
    Stream.map(users.versions, (one) => [one.user_id, one] as const),
    {
      other: Stream.map(connection.versions, (one) => [one.user_id, one.version] as const),
      order: Order.string,
      onSelf: ({ hasEmbedding }) => hasEmbedding,
      onOther: () => true,
      onBoth: ({ hasEmbedding, version }, inSink) => !hasEmbedding || version !== inSink,
    },
  ).pipe(Stream.filterMap(([user_id, differs]) => (differs ? Option.some(user_id) : Option.none())))

/** Makes the sink equal to what is stored. Answers how many users differed. */
const fill = Effect.fnUntraced(function* (sources: Services, connection: SinkConnection, read: Read) {
  let differed = 0
  yield* differing(sources, connection).pipe(
    Stream.grouped(page),
    Stream.runForEach((group) =>
      Effect.gen(function* () {
        const wanted = [...group]
        differed += wanted.length
        const records = yield* loadReadable(sources.users, wanted)
        yield* write(connection, yield* toChanges(sources, [...records.values()], read))
        const gone = wanted.filter((user) => !records.has(user))
        if (gone.length > 0) yield* connection.forget(gone)
      }),
    ),
  )
  return differed
})

const session = (sources: Services, read: Read, opened: () => void) =>
  Effect.gen(function* () {
    const sink = yield* EmbeddingSink
    const feed = yield* EmbeddingFeed
    const connection = yield* sink.connect
    yield* connection.prepare
    opened()
    // Before the fill, so that no change falls between the two.
    const subscription = yield* feed.subscribe(`${feedExchange}.sink.${sink.name}`.slice(0, longestName))
    const began = yield* Clock.currentTimeMillis
    const users = yield* fill(sources, connection, read)
    const duration_ms = (yield* Clock.currentTimeMillis) - began
    yield* Effect.annotateLogs(Effect.logInfo("sink.filled"), { users, duration_ms })
    const withoutIndex = yield* connection.index
    if (withoutIndex !== undefined)
      yield* Effect.annotateLogs(Effect.logWarning("sink.no_index"), { detail: withoutIndex })
    return yield* Effect.forever(
      Effect.gen(function* () {
        yield* applyChanges(sources, connection, yield* subscription.take(changesAtOnce), read)
        yield* subscription.acknowledge
      }),
    )
  }).pipe(Effect.scoped)

/** Waiting does not help: the address, the rights or the table are wrong. */
const isWrong = (error: SinkFailure): boolean =>
  error._tag === "EmbeddingSinkError" && (error.reason === "rejected" || error.reason === "not_set_up")

/** Follows the feed for ever. Fails only if the feed is off, or if the sink could not be opened the first time. */
export const follow = Effect.fnUntraced(function* (read: Read) {
  if ((yield* EmbeddingFeed).mode === "off") return yield* new FeedIsOff()
  const sources = yield* services
  let wasOpened = false
  let waits = false
  const log = (error: SinkFailure) =>
    Effect.suspend(() => {
      if (waits) return Effect.void
      waits = true
      return Effect.annotateLogs(Effect.logWarning("sink.waiting"), Telemetry.described(error))
    })
  const opened = () => {
    wasOpened = true
    waits = false
  }
  return yield* session(sources, read, opened).pipe(
    Effect.tapError((error) => (isWrong(error) && !wasOpened ? Effect.void : log(error))),
    Effect.retry({
      schedule: Schedule.resetAfter(RetryPolicies.reconnectRetry, "30 seconds"),
      while: (error) => wasOpened || !isWrong(error),
    }),
  )
})

export interface SinkComparison {
  /** Users with an embedding in the configured space, and rows. */
  readonly stored: number
  readonly rows: number
  readonly missing: number
  readonly extra: number
  readonly versions: number
  /** Of the same version, with a cosine below 0.9999. A taste changes by itself, so tastes are not compared. */
  readonly vectors: number
  /** The first of these users. */
  readonly examples: ReadonlyArray<UserId>
}

type Verdict = "equal" | "neither" | "missing" | "extra" | "versions" | "vectors"
const leastCosine = 0.9999
const mostExamples = 10
/** A change on its way is no difference. So users of another version are compared again for so many seconds. */
const patienceSeconds = 10

const compareUsers = Effect.fnUntraced(function* (
  sources: Services,
  connection: SinkConnection,
  wanted: ReadonlyArray<UserId>,
  read: Read,
) {
  const records = yield* loadReadable(sources.users, wanted)
  const { rows } = yield* toChanges(sources, [...records.values()], read)
  const expected = new Map(rows.map((row) => [row.user_id, row]))
  const found = yield* connection.load(wanted)
  return wanted.map((user): readonly [UserId, Verdict] => {
    const [is, shall] = [found.get(user), expected.get(user)]
    if (is === undefined) return [user, shall === undefined ? "neither" : "missing"]
    if (shall === undefined) return [user, "extra"]
    if (is.version !== shall.version) return [user, "versions"]
    const isEqual = read === "taste" || Vector.cosine(is.embedding, shall.embedding) >= leastCosine
    return [user, isEqual ? "equal" : "vectors"]
  })
})

/** Compares all users. */
export const compare = Effect.fnUntraced(function* (
  read: Read,
  progress: (users: number) => Effect.Effect<void>,
  patience = patienceSeconds,
) {
  const sources = yield* services
  const connection = yield* (yield* EmbeddingSink).connect
  const verdicts: Record<Verdict, number> = {
    equal: 0,
    neither: 0,
    missing: 0,
    extra: 0,
    versions: 0,
    vectors: 0,
  }
  const different = new Map<UserId, Verdict>()
  let done = 0
  const look = (users: ReadonlyArray<UserId>) =>
    Effect.map(compareUsers(sources, connection, users, read), (compared) => {
      for (const [user, verdict] of compared) {
        different.delete(user)
        if (verdict === "equal" || verdict === "neither") verdicts[verdict] += 1
        else different.set(user, verdict)
      }
    })
  const all = Stream.zipAllSortedByKeyWith(
    Stream.map(sources.users.versions, ({ user_id }) => [user_id, null] as const),
    {
      other: Stream.map(connection.versions, ({ user_id }) => [user_id, null] as const),
      order: Order.string,
      onSelf: () => null,
      onOther: () => null,
      onBoth: () => null,
    },
  )
  yield* all.pipe(
    Stream.map(([user]) => user),
    Stream.grouped(page),
    Stream.runForEach((group) =>
      Effect.flatMap(look([...group]), () => {
        done += group.length
        return progress(done)
      }),
    ),
  )
  for (let second = 0; second < patience; second++) {
    const mayHeal = [...different].flatMap(([user, verdict]) => (verdict === "vectors" ? [] : [user]))
    if (mayHeal.length === 0) break
    yield* Effect.sleep("1 second")
    for (const users of Arr.chunksOf(mayHeal, page)) yield* look(users)
  }
  for (const verdict of different.values()) verdicts[verdict] += 1
  const { equal, extra, missing, vectors, versions } = verdicts
  return {
    stored: equal + missing + versions + vectors,
    rows: equal + extra + versions + vectors,
    missing,
    extra,
    versions,
    vectors,
    examples: [...different.keys()].slice(0, mostExamples),
  } satisfies SinkComparison
}, Effect.scoped)
