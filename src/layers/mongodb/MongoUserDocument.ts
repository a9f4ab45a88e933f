/** The document of a user in `user_embeddings`: how it is written, and how what any program may have stored is read. */
import { Schema } from "effect"
import { Binary, type Double, Long } from "mongodb"
import type { Alias, Links } from "../../services/model/Aliases.ts"
import { none, prefixBytes } from "../../services/model/AppliedIds.ts"
import type { Erasure } from "../../services/model/Erasure.ts"
import { UserId } from "../../services/model/Interaction.ts"
import { History, type RecentEvent, type UserEmbedding } from "../../services/model/UserEmbedding.ts"
import { textOf } from "../../services/ports/PortFailure.ts"
import type { Bookkeeping, RecordVersion, UserRecord } from "../../services/ports/UserEmbeddings.ts"
import { fromStored, type Storage, type StoredVector, toDouble, toNumber, toStored } from "./Mongo.ts"

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

export interface Identity {
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
export type UserDocument = Identity & (Fields | Emptied | Tombstone)
export type FoundDocument = Found<Fields & Identity>

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
export const readers = (document: Found<Record<string, unknown>>) => {
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

export const toBookkept = ({
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

export const toFields = (embedding: UserEmbedding, storage: Storage): Omit<Fields, keyof Bookkept> => ({
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

export const toRecord = (document: FoundDocument): UserRecord => {
  const user_id = toId(document)
  const hasEmbedding = document.dimension_count !== undefined
  return {
    user_id,
    embedding: hasEmbedding ? toEmbedding(user_id, document) : undefined,
    ...toApplied(document),
  }
}

/** What a message for this user fails with: a record that cannot be read must not be replaced. */
export const toRecordOrNamed = (document: FoundDocument): UserRecord => {
  try {
    return toRecord(document)
  } catch (cause) {
    throw new TypeError(`the document of user ${String(document._id)} cannot be read: ${textOf(cause)}`)
  }
}

export const bookkeepingFields = {
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
export const lastWriteFields = { ...bookkeepingFields, updated_at: 1 }

export const toBookkeeping = (document: FoundDocument): Bookkeeping => ({
  user_id: toId(document),
  event_count: document.dimension_count === undefined ? 0 : readers(document).count("event_count"),
  ...toApplied(document),
})

export const toVersion = (document: FoundDocument): RecordVersion => ({
  user_id: toId(document),
  version: readers(document).count("version"),
  hasEmbedding: document.dimension_count !== undefined,
})
