/**
 * User embeddings in MongoDB: one document per user in `user_embeddings`. Its applied ids overflow to
 * `user_embedding_ledger`. `_id` is the user id, so a user is unique even before `setup` has run.
 */
import { Array as Arr, Chunk, Effect, Layer, Schema, Stream } from "effect"
import {
  type AnyBulkWriteOperation,
  Binary,
  BSONRegExp,
  type Collection,
  type Document,
  type Double,
  Long,
} from "mongodb"
import type { Alias, Links } from "../../services/model/Aliases.ts"
import {
  idInLedger,
  type LedgerKind,
  ledgerPrefix,
  none,
  prefixBytes,
} from "../../services/model/AppliedIds.ts"
import type { Erasure } from "../../services/model/Erasure.ts"
import { UserId } from "../../services/model/Interaction.ts"
import { History, type RecentEvent, type UserEmbedding } from "../../services/model/UserEmbedding.ts"
import { portError, textOf } from "../../services/ports/PortFailure.ts"
import {
  type Bookkeeping,
  type Generation,
  type LedgerEntry,
  type RecordVersion,
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
  toNumber,
  toStored,
} from "./Mongo.ts"
import { names, userEmbeddingValidator } from "./MongoCollections.ts"

type StoredEvent = Pick<RecentEvent, "event_type" | "message_id"> & {
  readonly occurred_at: Date
  readonly search_phrase?: string
  readonly product_id?: string
}

/** The fields of `user_embeddings` that a write sets. */
type Fields = Bookkept &
  Omit<
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
  }

/** Each is left out where it does not apply. */
interface StoredLinks {
  readonly alias_of?: UserId
  readonly aliases?: ReadonlyArray<Alias>
  readonly merging_into?: {
    readonly user_id: UserId
    readonly message_id: string
    readonly log_id: Long | null
    readonly recorded_at: Date
  }
}

interface Bookkept extends StoredLinks {
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
} & { readonly [Field in keyof StoredLinks]?: never }
/** Of a user whose events are all taken back, and of an alias. */
type Emptied = Bookkept & { readonly event_count: 0; readonly embedding?: never }
type UserDocument = Identity & (Fields | Emptied | Tombstone)
type FoundDocument = Found<Fields & Identity>

const toEvent = (event: RecentEvent): StoredEvent => ({
  event_type: event.event_type,
  ...(event.search_phrase !== null && { search_phrase: event.search_phrase }),
  ...(event.product_id !== null && { product_id: event.product_id }),
  occurred_at: new Date(event.occurred_at),
  message_id: event.message_id,
})

/** As any program may have stored it. */
type Found<Document> = { readonly [Field in keyof Document]?: unknown }

const isUserId = Schema.is(UserId)
const toId = ({ _id }: { readonly _id?: unknown }): UserId => {
  if (!isUserId(_id)) throw new TypeError("no event can name this user")
  return _id
}

/** Reads one field each; a `TypeError` names a field that this program could not have stored. */
const readers = (document: Found<Record<string, unknown>>) => {
  const reader =
    <A>(what: string, convert: (value: unknown) => A | undefined) =>
    (field: string): A => {
      const value = convert(document[field])
      if (value === undefined) throw new TypeError(`${field} is not ${what}`)
      return value
    }
  return {
    number: reader("a number", (value) => {
      const number = toNumber(value)
      return Number.isFinite(number) ? number : undefined
    }),
    count: reader("a count", (value) => {
      const number = toNumber(value)
      return Number.isSafeInteger(number) && number >= 0 ? number : undefined
    }),
    text: reader("a text", (value) => (typeof value === "string" ? value : undefined)),
    instant: reader("a date", (value) => {
      const millis = value instanceof Date ? value.getTime() : Number.NaN
      return Number.isNaN(millis) ? undefined : millis
    }),
    ids: reader("binary data of whole ids", (value) => {
      const bytes = value instanceof Binary ? new Uint8Array(value.value()) : undefined
      return bytes !== undefined && bytes.length % prefixBytes === 0 ? bytes : undefined
    }),
    vector: reader("a vector of dimension_count numbers", (value) => {
      const vector = fromStored(value)
      const isWhole = vector.length > 0 && vector.length === document.dimension_count
      return isWhole && vector.every(Number.isFinite) ? vector : undefined
    }),
    list: reader("a list", (value) => (Array.isArray(value) ? value : undefined)),
    object: reader("a document", (value) =>
      typeof value === "object" && value !== null ? (value as Record<string, unknown>) : undefined,
    ),
  }
}

const fromEvent = (stored: Found<StoredEvent> | null): RecentEvent => {
  const event = stored ?? {}
  const { instant, text } = readers(event)
  return {
    event_type: text("event_type"),
    search_phrase: event.search_phrase === undefined ? null : text("search_phrase"),
    product_id: event.product_id === undefined ? null : text("product_id"),
    occurred_at: new Date(instant("occurred_at")).toISOString(),
    message_id: text("message_id"),
  }
}

const toStoredLinks = ({ merging_into, ...others }: Links): StoredLinks => {
  if (merging_into === undefined) return others
  const { logId, message_id, recordedAt, user_id } = merging_into
  const log_id = logId === null ? null : Long.fromNumber(logId)
  return { ...others, merging_into: { user_id, message_id, log_id, recorded_at: new Date(recordedAt) } }
}

const toBookkept = ({
  applied,
  archived,
  erased_at,
  erased_to,
  generation,
  links = {},
  version,
}: UserRecord): Bookkept => ({
  version,
  applied: new Binary(applied),
  archived,
  erased_at: erased_at === 0 ? null : new Date(erased_at),
  ...(erased_to !== null && { erased_to: Long.fromNumber(erased_to) }),
  ...(generation > 0 && { generation }),
  ...toStoredLinks(links),
})

const toFields = (embedding: UserEmbedding, storage: Storage): Omit<Fields, keyof Bookkept> => ({
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
  recent: embedding.recent.map(toEvent),
  metadata: {
    ...embedding.metadata,
    decay_lambda: toDouble(embedding.metadata.decay_lambda),
    last_recalculation: new Date(embedding.metadata.last_recalculation),
  },
})

/**
 * Release 0.1.0 stored no generation, and it may have left ids in the ledger when it erased a user. These do not count
 * unless the user's record has moved ids there since.
 */
const toErasure = (document: Found<Fields>): Erasure & Pick<UserRecord, "generation"> => {
  const { count, instant } = readers(document)
  const { archived, erased_at, erased_to, generation } = document
  const isErased = erased_at !== null && erased_at !== undefined
  return {
    erased_at: isErased ? instant("erased_at") : 0,
    erased_to: erased_to === undefined ? null : count("erased_to"),
    generation:
      generation !== undefined
        ? count("generation")
        : isErased && (archived === undefined || count("archived") === 0)
          ? count("version")
          : 0,
  }
}

const isHistory = Schema.is(History)

const toEmbedding = (user_id: UserId, document: Found<Fields>): UserEmbedding => {
  const { count, instant, list, number, object, text, vector } = readers(document)
  const { history } = document
  if (!isHistory(history)) throw new TypeError("history is unknown")
  const metadata = object("metadata")
  const ofMetadata = readers(metadata)
  const counters = Object.keys(metadata).filter((name) => name.endsWith("_count"))
  return {
    user_id,
    embedding: vector("embedding"),
    last_updated: instant("last_updated"),
    event_count: count("event_count"),
    last_event_type: text("last_event_type"),
    last_event_id: text("last_event_id"),
    mass: number("mass"),
    total_weight: number("total_weight"),
    space: text("space"),
    history,
    created_at: instant("created_at"),
    updated_at: instant("updated_at"),
    recent: list("recent").map(fromEvent),
    metadata: {
      ...Object.fromEntries(counters.map((name) => [name, ofMetadata.count(name)])),
      decay_lambda: ofMetadata.number("decay_lambda"),
      last_recalculation: ofMetadata.instant("last_recalculation"),
      ...(metadata.weights !== undefined && { weights: ofMetadata.text("weights") }),
    },
  }
}

const toLinks = (document: Found<StoredLinks>): Pick<UserRecord, "links"> => {
  const { list, object, text } = readers(document)
  const links: { -readonly [Field in keyof Links]: Links[Field] } = {}
  if (document.alias_of !== undefined) links.alias_of = text("alias_of")
  if (document.aliases !== undefined)
    links.aliases = list("aliases").map((alias: Found<Alias> | null) => {
      const { count, text } = readers(alias ?? {})
      return { user_id: text("user_id"), generation: count("generation"), archived: count("archived") }
    })
  if (document.merging_into !== undefined) {
    const merging = object("merging_into")
    const { count, instant, text } = readers(merging)
    links.merging_into = {
      user_id: text("user_id"),
      message_id: text("message_id"),
      logId: merging.log_id === null ? null : count("log_id"),
      recordedAt: instant("recorded_at"),
    }
  }
  return Object.keys(links).length === 0 ? {} : { links }
}

/** Applied ids of any document but a tombstone. */
const toApplied = (document: FoundDocument) => {
  const { count, ids } = readers(document)
  const isTombstone = document.dimension_count === undefined && document.applied === undefined
  return {
    version: count("version"),
    applied: isTombstone ? none : ids("applied"),
    archived: isTombstone ? 0 : count("archived"),
    ...toErasure(document),
    ...toLinks(document),
  }
}

const toRecord = (document: FoundDocument): UserRecord => {
  const user_id = toId(document)
  const hasEmbedding = document.dimension_count !== undefined
  return {
    user_id,
    embedding: hasEmbedding ? toEmbedding(user_id, document) : undefined,
    ...toApplied(document),
  }
}

/** What a message for this user fails with: a record that cannot be read must not be replaced. */
const toRecordOrNamed = (document: FoundDocument): UserRecord => {
  try {
    return toRecord(document)
  } catch (cause) {
    throw new TypeError(`the document of user ${String(document._id)} cannot be read: ${textOf(cause)}`)
  }
}

const bookkeepingFields = {
  version: 1,
  applied: 1,
  archived: 1,
  erased_at: 1,
  erased_to: 1,
  generation: 1,
  event_count: 1,
  dimension_count: 1,
  alias_of: 1,
  aliases: 1,
  merging_into: 1,
}
const lastWriteFields = { ...bookkeepingFields, updated_at: 1 }

const toBookkeeping = (document: FoundDocument): Bookkeeping => ({
  user_id: toId(document),
  event_count: document.dimension_count === undefined ? 0 : readers(document).count("event_count"),
  ...toApplied(document),
})

const toVersion = (document: FoundDocument): RecordVersion => ({
  user_id: toId(document),
  version: readers(document).count("version"),
  hasEmbedding: document.dimension_count !== undefined,
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
/** Documents per batch of the server. Its default is 16 MB. */
const usersPerBatch = 500
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

      stream: stream(names.userEmbeddings, () => users.find().sort({ _id: 1 })).pipe(
        Stream.mapChunks((found) => decoded(found, toRecord)),
      ),

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
