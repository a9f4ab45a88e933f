/**
 * User embeddings in MongoDB: one document per user in `user_embeddings`. Its applied ids overflow to
 * `user_embedding_ledger`. `_id` is the user id, so a user is unique even before `setup` has run.
 */
import { Array as Arr, Chunk, Effect, Layer, Stream } from "effect"
import { type AnyBulkWriteOperation, BSONRegExp, type Collection, type Document, Long } from "mongodb"
import { idInLedger, type LedgerKind, ledgerPrefix } from "../../services/model/AppliedIds.ts"
import type { UserId } from "../../services/model/Interaction.ts"
import { portError, textOf } from "../../services/ports/PortFailure.ts"
import {
  type Generation,
  type LedgerEntry,
  UserEmbeddings,
  UserEmbeddingsError,
  type Write,
} from "../../services/ports/UserEmbeddings.ts"
import * as Settings from "../../services/Settings.ts"
import {
  type Calls,
  decodeEach,
  duplicateKey,
  isDuplicateKey,
  Mongo,
  refusals,
  type Storage,
} from "./Mongo.ts"
import { names, userEmbeddingValidator } from "./MongoCollections.ts"
import {
  bookkeepingFields,
  type FoundDocument,
  type Identity,
  lastWriteFields,
  readers,
  toBookkeeping,
  toBookkept,
  toFields,
  toRecord,
  toRecordOrNamed,
  toVersion,
  type UserDocument,
} from "./MongoUserDocument.ts"

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
  const { embedding } = record
  const fields = embedding === undefined ? { event_count: 0 as const } : toFields(embedding, storage)
  const document = { _id, user_id: _id, ...fields, ...toBookkept(record) }
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
/** Documents per batch of the server. Its default is 16 MB, which the driver decodes in one go. */
const usersPerBatch = 100
const idsPerBatch = 2_000
/** Larger commands are no faster. With two at a time, one is serialised while the server writes the other. */
const writesPerCommand = 100
const commandsAtOnce = 2

/** Majority reads see only data that cannot be rolled back: the ids in such a document are applied for good. */
const durable = { readConcern: { level: "majority" } } as const

/** Documents that `doctor` checks: about two seconds of the server. */
const mostChecked = 100_000
/** The validator takes NaN and Infinity. */
const notAsStored = {
  $or: [
    { $nor: [{ $jsonSchema: userEmbeddingValidator }] },
    { embedding: { $in: [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY] } },
  ],
}

const whyUnreadable = (document: FoundDocument): string => {
  try {
    toRecord(document)
    return "differs from what this program stores"
  } catch (cause) {
    return textOf(cause)
  }
}

const decoded = <A>(documents: Chunk.Chunk<FoundDocument>, decode: (document: FoundDocument) => A) =>
  Chunk.unsafeFromArray(decodeEach(names.userEmbeddings, documents, decode))

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
    return new Map(found.map(toRecordOrNamed).map((record) => [record.user_id, record]))
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

/** `null` for a value that another program stored there: a user must be erased whatever the document holds. */
const ifOfType = (field: string, ...types: ReadonlyArray<string>) => ({
  $cond: [{ $in: [{ $type: `$${field}` }, types] }, `$${field}`, null],
})

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
              erased_at: { $max: [ifOfType("erased_at", "date"), new Date(erased_at)] },
              erased_to: { $max: [ifOfType("erased_to", "int", "long"), Long.fromNumber(erased_to)] },
              version: { $add: [{ $ifNull: [ifOfType("version", "int", "long"), 0] }, 1] },
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
      .find<FoundDocument>(
        { _id: { $in: [...wanted] }, embedding: { $exists: true } },
        { ...durable, projection: lastWriteFields, batchSize: wanted.length },
      )
      .toArray()
    const writes = decodeEach(names.userEmbeddings, found, (document) => ({
      ...toBookkeeping(document),
      updated_at: readers(document).instant("updated_at"),
    }))
    return new Map(writes.map((write) => [write.user_id, write]))
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
            concurrency: writes.length > writesPerCommand ? commandsAtOnce : 1,
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

      announce: () => Effect.void,

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

      // The driver decodes a batch at once, and one without a size has up to 16 MB.
      stream: stream(names.userEmbeddings, () =>
        users.find({}, { batchSize: usersPerBatch }).sort({ _id: 1 }),
      ).pipe(Stream.mapChunks((found) => decoded(found, toRecord))),

      bookkeeping: stream(names.userEmbeddings, () =>
        users
          .find<FoundDocument>({}, { projection: bookkeepingFields, batchSize: usersPerBatch })
          .sort({ _id: 1 }),
      ).pipe(Stream.mapChunks((found) => decoded(found, toBookkeeping))),

      versions: stream(names.userEmbeddings, () =>
        users
          .find<FoundDocument>({}, { projection: { version: 1, dimension_count: 1 }, batchSize: idsPerBatch })
          .sort({ _id: 1 }),
      ).pipe(Stream.mapChunks((found) => decoded(found, toVersion))),

      unreadable: stream(names.userEmbeddings, () =>
        users.aggregate<FoundDocument>([{ $limit: mostChecked }, { $match: notAsStored }]),
      ).pipe(Stream.map((document) => ({ user_id: String(document._id), detail: whyUnreadable(document) }))),

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
