/**
 * User embeddings in MongoDB: one document per user in `user_embeddings`. Its applied ids overflow to
 * `user_embedding_ledger`. `_id` is the user id, so a user is unique even before `setup` has run.
 */
import { Array as Arr, Chunk, Effect, Layer, Stream } from "effect"
import {
  type AnyBulkWriteOperation,
  Binary,
  BSONRegExp,
  type Collection,
  type Document,
  type Double,
  Long,
} from "mongodb"
import { idInLedger, type LedgerKind, ledgerPrefix, none } from "../../services/model/AppliedIds.ts"
import type { Erasure } from "../../services/model/Erasure.ts"
import type { UserId } from "../../services/model/Interaction.ts"
import type { RecentEvent, UserEmbedding } from "../../services/model/UserEmbedding.ts"
import { portError } from "../../services/ports/PortFailure.ts"
import {
  type Bookkeeping,
  type Generation,
  type LedgerEntry,
  UserEmbeddings,
  UserEmbeddingsError,
  type UserRecord,
  type Write,
} from "../../services/ports/UserEmbeddings.ts"
import * as Settings from "../../services/Settings.ts"
import {
  type Calls,
  decodeEach,
  duplicateKey,
  fromStored,
  isDuplicateKey,
  Mongo,
  refusals,
  type Storage,
  type StoredVector,
  toDouble,
  toStored,
} from "./Mongo.ts"
import { names } from "./MongoCollections.ts"

type StoredEvent = Pick<RecentEvent, "event_type" | "message_id"> & {
  readonly occurred_at: Date
  readonly search_phrase?: string
  readonly product_id?: string
}

/** The fields of `user_embeddings` that a write sets. */
type Fields = Omit<
  UserEmbedding,
  | "user_id"
  | "embedding"
  | "last_updated"
  | "mass"
  | "total_weight"
  | "created_at"
  | "updated_at"
  | "recent"
  | "metadata"
> & {
  readonly embedding: StoredVector
  readonly dimension_count: number
  readonly last_updated: Date
  readonly mass: number | Double
  readonly total_weight: number | Double
  readonly created_at: Date
  readonly updated_at: Date
  readonly recent: ReadonlyArray<StoredEvent>
  readonly metadata: Omit<UserEmbedding["metadata"], "decay_lambda" | "last_recalculation"> & {
    readonly decay_lambda: number | Double
    readonly last_recalculation: Date
  }
  readonly version: number
  readonly applied: Binary
  readonly archived: number
  readonly erased_at: Date | null
  readonly erased_to?: number | Long
  /** Left out while it is 0. */
  readonly generation?: number
}

interface Identity {
  readonly _id: UserId
  readonly user_id: UserId
}
type Tombstone = Pick<Fields, "version" | "erased_to"> & {
  readonly erased_at: Date
  readonly embedding?: never
  readonly archived?: never
  readonly generation?: never
}
type UserDocument = Identity & (Fields | Tombstone)

const toEvent = (event: RecentEvent): StoredEvent => ({
  event_type: event.event_type,
  ...(event.search_phrase !== null && { search_phrase: event.search_phrase }),
  ...(event.product_id !== null && { product_id: event.product_id }),
  occurred_at: new Date(event.occurred_at),
  message_id: event.message_id,
})

const fromEvent = (event: StoredEvent): RecentEvent => ({
  event_type: event.event_type,
  search_phrase: event.search_phrase ?? null,
  product_id: event.product_id ?? null,
  occurred_at: event.occurred_at.toISOString(),
  message_id: event.message_id,
})

const toFields = ({ embedding, ...record }: Write["record"], storage: Storage): Fields => ({
  embedding: toStored(embedding.embedding, storage),
  dimension_count: embedding.embedding.length,
  last_updated: new Date(embedding.last_updated),
  event_count: embedding.event_count,
  last_event_type: embedding.last_event_type,
  last_event_id: embedding.last_event_id,
  mass: toDouble(embedding.mass),
  total_weight: toDouble(embedding.total_weight),
  space: embedding.space,
  history: embedding.history,
  created_at: new Date(embedding.created_at),
  updated_at: new Date(embedding.updated_at),
  version: record.version,
  recent: embedding.recent.map(toEvent),
  metadata: {
    ...embedding.metadata,
    decay_lambda: toDouble(embedding.metadata.decay_lambda),
    last_recalculation: new Date(embedding.metadata.last_recalculation),
  },
  applied: new Binary(record.applied),
  archived: record.archived,
  erased_at: record.erased_at === 0 ? null : new Date(record.erased_at),
  ...(record.erased_to !== null && { erased_to: Long.fromNumber(record.erased_to) }),
  ...(record.generation > 0 && { generation: record.generation }),
})

type StoredErasure = Pick<Fields, "version" | "erased_at" | "erased_to" | "generation"> &
  Partial<Pick<Fields, "archived">>

/**
 * Release 0.1.0 stored no generation, and it may have left ids in the ledger when it erased a user. These do not count
 * unless the user's record has moved ids there since.
 */
const toErasure = (stored: StoredErasure): Erasure & Pick<UserRecord, "generation"> => ({
  erased_at: stored.erased_at?.getTime() ?? 0,
  erased_to: stored.erased_to === undefined ? null : Number(stored.erased_to),
  generation:
    stored.generation ?? (stored.erased_at !== null && (stored.archived ?? 0) === 0 ? stored.version : 0),
})

const toRecord = (document: UserDocument): UserRecord => {
  const { user_id, version } = document
  if (document.embedding === undefined)
    return {
      user_id,
      embedding: undefined,
      version,
      applied: new Uint8Array(0),
      archived: 0,
      ...toErasure(document),
    }
  return {
    user_id,
    embedding: {
      user_id,
      embedding: fromStored(document.embedding),
      last_updated: document.last_updated.getTime(),
      event_count: document.event_count,
      last_event_type: document.last_event_type,
      last_event_id: document.last_event_id,
      mass: Number(document.mass),
      total_weight: Number(document.total_weight),
      space: document.space,
      history: document.history,
      created_at: document.created_at.getTime(),
      updated_at: document.updated_at.getTime(),
      recent: document.recent.map(fromEvent),
      metadata: {
        ...document.metadata,
        decay_lambda: Number(document.metadata.decay_lambda),
        last_recalculation: document.metadata.last_recalculation.getTime(),
      },
    },
    version,
    applied: new Uint8Array(document.applied.value()),
    archived: document.archived,
    ...toErasure(document),
  }
}

const bookkeepingFields = {
  _id: 0,
  user_id: 1,
  version: 1,
  applied: 1,
  archived: 1,
  erased_at: 1,
  erased_to: 1,
  generation: 1,
  event_count: 1,
}
type BookkeepingDocument = StoredErasure & { readonly user_id: UserId } & Partial<
    Pick<Fields, "applied" | "event_count">
  >

const lastWriteFields = { ...bookkeepingFields, updated_at: 1 }

const toBookkeeping = (document: BookkeepingDocument): Bookkeeping => ({
  user_id: document.user_id,
  version: document.version,
  applied: document.applied === undefined ? none : new Uint8Array(document.applied.value()),
  archived: document.archived ?? 0,
  ...toErasure(document),
  event_count: document.event_count ?? 0,
})

const unstorable: Document = { _id: [] }
/** The error codes for it: in an update, and in an insert. */
const unstorableCodes = [53, 54]

/**
 * A bulk write counts its matches, but does not say which operations matched. So a compare-and-swap that finds another
 * version, or no document, tries to store a document with an invalid `_id`, and the server refuses this operation by its
 * index. The filter is `_id` alone, because planning a query would take a fifth of the time of the write.
 */
const compareAndSwap = (
  { record, expected }: Write,
  storage: Storage,
): AnyBulkWriteOperation<UserDocument> => {
  const _id = record.user_id
  const document = { _id, user_id: _id, ...toFields(record, storage) }
  if (expected === undefined) return { insertOne: { document } }
  const swapped = { $cond: [{ $eq: ["$version", expected] }, { $literal: document }, unstorable] }
  return { updateOne: { filter: { _id }, update: [{ $replaceWith: swapped }], upsert: true } }
}

/** User ids cannot contain `|`, so the keys of one user in the ledger form a range. */
const ledgerKeys = (kind: LedgerKind, entries: ReadonlyArray<LedgerEntry>): Array<string> =>
  entries.flatMap(({ generation, ids, user_id }) => {
    const prefix = `${user_id}|${ledgerPrefix(kind, generation)}`
    return ids.map((id) => prefix + id)
  })
const afterBar = "}"
const idsByUser = (documents: Iterable<{ readonly _id: string }>): ReadonlyMap<UserId, Array<string>> => {
  const byUser = new Map<UserId, Array<string>>()
  for (const { _id } of documents) {
    const user = _id.slice(0, _id.indexOf("|"))
    const ids = byUser.get(user)
    if (ids === undefined) byUser.set(user, [idInLedger(_id)])
    else ids.push(idInLedger(_id))
  }
  return byUser
}
/** The server turns anchored patterns into index bounds, and reads all of them in one index scan. */
const ledgerPattern = (kind: LedgerKind, { generation, user_id }: Generation) => {
  const before = `${user_id}|${ledgerPrefix(kind, generation)}`.replaceAll(/[.|]/g, "\\$&")
  return new BSONRegExp(`^${before}[0-9a-f]{32}$`)
}
/** Documents per batch of the server. Its default is 16 MB. */
const usersPerBatch = 500
const idsPerBatch = 2_000
/** Larger commands are no faster. With two at a time, one is serialised while the server writes the other. */
const writesPerCommand = 100
const commandsAtOnce = 2

/** Majority reads see only data that cannot be rolled back: the ids in such a document are applied for good. */
const durable = { readConcern: { level: "majority" } } as const

interface Store extends Calls<UserEmbeddingsError> {
  readonly users: Collection<UserDocument>
  readonly ledger: Collection<{ readonly _id: string }>
  readonly storage: Storage
}

const load = ({ call, users }: Store, wanted: ReadonlyArray<UserId>) =>
  call("find", names.userEmbeddings, async () => {
    const found = await users
      .find({ _id: { $in: [...wanted] } }, { ...durable, batchSize: wanted.length })
      .toArray()
    return new Map(
      decodeEach(names.userEmbeddings, found, toRecord).map((record) => [record.user_id, record]),
    )
  })

const saveSome = ({ call, storage, users }: Store, writes: ReadonlyArray<Write>) =>
  call("bulkWrite", names.userEmbeddings, async () => {
    const refused = await users
      .bulkWrite(
        writes.map((write) => compareAndSwap(write, storage)),
        { ordered: false },
      )
      .then(
        () => new Set<number>(),
        (error) => refusals(error, [duplicateKey, ...unstorableCodes]),
      )
    return writes.map((_, index) => !refused.has(index))
  })

const insertIntoLedger = ({ call, ledger }: Store, keys: ReadonlyArray<string>) =>
  call("insert", names.appliedOverflow, () =>
    ledger
      .insertMany(
        keys.map((_id) => ({ _id })),
        { ordered: false },
      )
      .then(
        () => {},
        (error) => void refusals(error, [duplicateKey]),
      ),
  )

const findInLedger = ({ call, ledger }: Store, keys: Array<string>) =>
  call("find", names.appliedOverflow, async () => {
    const cursor = ledger.find({ _id: { $in: keys } }, { ...durable, batchSize: keys.length })
    const found = idsByUser(await cursor.toArray())
    return new Map(Array.from(found, ([user, ids]) => [user, new Set(ids)]))
  })

/** The generation of a ledger key, 0 for a key that has none. */
const generationOfKey = {
  $convert: {
    input: { $ltrim: { input: { $arrayElemAt: [{ $split: ["$_id", "|"] }, 1] }, chars: "s" } },
    to: "long",
    onError: 0,
  },
}

/**
 * Generation 0 is the first one, so nothing is stale then. A later generation stays: another erasure may have begun it
 * meanwhile.
 */
const removeOlderGenerations = ({ call, ledger }: Store, { generation, user_id }: Generation) =>
  generation === 0
    ? Effect.void
    : call("delete", names.appliedOverflow, () =>
        ledger.deleteMany({
          _id: { $gte: `${user_id}|`, $lt: `${user_id}${afterBar}` },
          $expr: { $lt: [generationOfKey, generation] },
        }),
      )

const erase = (
  store: Store,
  user_id: UserId,
  { erased_at, erased_to }: { readonly erased_at: number; readonly erased_to: number },
) =>
  Effect.gen(function* () {
    const { call, users } = store
    const before = yield* call("findAndModify", names.userEmbeddings, () =>
      users.findOneAndUpdate(
        { _id: user_id },
        [
          {
            $replaceWith: {
              _id: user_id,
              user_id,
              erased_at: { $max: ["$erased_at", new Date(erased_at)] },
              erased_to: { $max: ["$erased_to", Long.fromNumber(erased_to)] },
              version: { $add: [{ $ifNull: ["$version", 0] }, 1] },
            },
          },
        ],
        { upsert: true, returnDocument: "before", projection: { space: 1, version: 1 } },
      ),
    ).pipe(Effect.retry({ times: 3, while: ({ cause }) => isDuplicateKey(cause) }))
    yield* removeOlderGenerations(store, { user_id, generation: (before?.version ?? 0) + 1 })
    return before !== null && "space" in before
  })

const usersAfter = ({ call, users }: Store, user: UserId, limit: number) =>
  call("find", names.userEmbeddings, async () => {
    const found = await users
      .find<Identity>({ _id: { $gt: user }, space: { $exists: true } }, { projection: { _id: 1 } })
      .sort({ _id: 1 })
      .limit(limit)
      .toArray()
    return found.map(({ _id }) => _id)
  })

const lastWrites = ({ call, users }: Store, wanted: ReadonlyArray<UserId>) =>
  call("find", names.userEmbeddings, async () => {
    const found = await users
      .find<BookkeepingDocument & Pick<Fields, "updated_at"> & Identity>(
        { _id: { $in: [...wanted] }, embedding: { $exists: true } },
        { ...durable, projection: lastWriteFields, batchSize: wanted.length },
      )
      .toArray()
    return new Map(
      found.map((document) => [
        document.user_id,
        { ...toBookkeeping(document), updated_at: document.updated_at.getTime() },
      ]),
    )
  })

export const make = (options: { readonly storage: Storage }) =>
  Effect.map(Mongo, ({ database, failingWith }): UserEmbeddings["Type"] => {
    const users = database.collection<UserDocument>(names.userEmbeddings)
    const ledger = database.collection<{ readonly _id: string }>(names.appliedOverflow)
    const { call, stream } = failingWith(portError(UserEmbeddingsError))
    const store: Store = { call, stream, users, ledger, storage: options.storage }
    return {
      load: (wanted) => (wanted.length === 0 ? Effect.succeed(new Map()) : load(store, wanted)),

      save: (writes) =>
        Effect.map(
          Effect.forEach(Arr.chunksOf(writes, writesPerCommand), (some) => saveSome(store, some), {
            concurrency: commandsAtOnce,
          }),
          Arr.flatten,
        ),

      saveToLedger: (kind, entries) => {
        const keys = ledgerKeys(kind, entries)
        return keys.length === 0 ? Effect.void : insertIntoLedger(store, keys)
      },

      findInLedger: (kind, entries) => {
        const keys = ledgerKeys(kind, entries)
        return keys.length === 0 ? Effect.succeed(new Map()) : findInLedger(store, keys)
      },

      // A write waits for all writes before it, even if it matches nothing: for the majority in a replica set, for the
      // journal in a single server, where reads may return data that is not journaled yet.
      awaitDurable: call("update", names.userEmbeddings, () =>
        users.updateOne({ _id: "|" }, { $set: { user_id: "|" } }),
      ).pipe(Effect.asVoid),

      erase: (user, erasure) => erase(store, user, erasure),

      removeStaleLedger: (user) =>
        Effect.flatMap(load(store, [user]), (records) =>
          removeOlderGenerations(store, records.get(user) ?? { user_id: user, generation: 0 }),
        ),

      lastWrites: (wanted) => (wanted.length === 0 ? Effect.succeed(new Map()) : lastWrites(store, wanted)),

      // Tombstones have no last_updated, so its index is enough for the count.
      count: call("count", names.userEmbeddings, () =>
        users.countDocuments({ last_updated: { $gte: new Date(0) } }),
      ),

      // A tombstone has no space.
      countInOtherSpaces: (space) =>
        call("count", names.userEmbeddings, () =>
          users.countDocuments({ space: { $type: "string", $ne: space } }),
        ),

      stream: stream(names.userEmbeddings, () => users.find().sort({ _id: 1 })).pipe(
        Stream.mapChunks((found) => Chunk.unsafeFromArray(decodeEach(names.userEmbeddings, found, toRecord))),
      ),

      bookkeeping: stream(names.userEmbeddings, () =>
        users
          .find<BookkeepingDocument>({}, { projection: bookkeepingFields, batchSize: usersPerBatch })
          .sort({ _id: 1 }),
      ).pipe(Stream.map(toBookkeeping)),

      usersAfter: (user, limit) => usersAfter(store, user, limit),

      overflow: (wanted) =>
        wanted.length === 0
          ? Stream.empty
          : stream(names.appliedOverflow, () =>
              ledger.find(
                { _id: { $in: wanted.map((one) => ledgerPattern("applied", one)) } },
                { projection: { _id: 1 }, batchSize: idsPerBatch },
              ),
            ).pipe(
              Stream.chunks,
              Stream.map((documents) =>
                Array.from(idsByUser(documents), ([user_id, ids]) => ({ user_id, ids })),
              ),
            ),
    }
  })

export const layer = (options: { readonly storage: Storage }) => Layer.effect(UserEmbeddings, make(options))

/** EMBEDDING_STORAGE decides how vectors are written. Both ways are read. */
export const layerConfig = Layer.effect(
  UserEmbeddings,
  Effect.flatMap(Settings.EMBEDDING_STORAGE, (storage) => make({ storage })),
)
