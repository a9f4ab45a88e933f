/**
 * Decodes a request or a bulk item into a {@link Submission}. Path, header and body are decoded together, so
 * that one problem names every wrong field by the name that the client used.
 */
import { Either, type ParseResult, Predicate, Schema } from "effect"
import {
  type EventTypes,
  isPhraseEventType,
  phraseEventTypes,
  referenceEventTypes,
} from "../model/EventTypes.ts"
import * as Interaction from "../model/Interaction.ts"
import { type FieldIssue, fieldIssue, shapeProblem } from "../model/Problem.ts"
import type { Submission } from "./InteractionRecorder.ts"

export type Decoded = Either.Either<Submission, ReadonlyArray<FieldIssue>>

/** A request to take an interaction back, which the log must find: see RetractionRequests.ts. */
export interface RetractionRequest extends Pick<Submission, "idempotencyKey"> {
  readonly user_id: Interaction.UserId
  readonly reference: Interaction.MessageId
  /** If the client sent it, it must be that of the interaction. */
  readonly occurred_at: string | undefined
  readonly metadata: Interaction.Metadata
}
export type Requested = Submission | RetractionRequest

/** All further fields of a body become the metadata. */
const metadata = {
  key: Schema.String,
  value: Schema.Unknown.annotations({ jsonSchema: { type: ["string", "number", "boolean", "null"] } }),
}
/** `null` means absent. */
const optional = <A, I>(schema: Schema.Schema<A, I>) => Schema.optionalWith(schema, { nullable: true })

/** Body of the search route: `{"query", "occurred_at"?, …metadata}`. */
export const SearchBody = Schema.Struct(
  { query: Interaction.SearchPhrase, occurred_at: Schema.optional(Interaction.Timestamp) },
  metadata,
).annotations({ identifier: "SearchBody" })

/** Body of the product routes, optional: `{"occurred_at"?, …metadata}`. */
export const ProductBody = Schema.Struct(
  { occurred_at: Schema.optional(Interaction.Timestamp) },
  metadata,
).annotations({ identifier: "ProductBody" })

/** Body of the retraction route: `{"message_id", "reason"?, …metadata}`. */
export const RetractionBody = Schema.Struct({ message_id: Interaction.MessageId }, metadata).annotations({
  identifier: "RetractionBody",
})

/** Body of the merge route: `{"from", "occurred_at"?, …metadata}`. */
export const MergeBody = Schema.Struct(
  { from: Interaction.UserId, occurred_at: Schema.optional(Interaction.Timestamp) },
  metadata,
).annotations({ identifier: "MergeBody" })

const keyPattern = /^[\x20-\x7e]{1,255}$/
const common = {
  user_id: Interaction.UserId,
  occurred_at: optional(Interaction.Timestamp),
  idempotency_key: optional(
    Schema.String.pipe(
      Schema.pattern(keyPattern, {
        message: () => "must be 1 to 255 printable ASCII characters",
      }),
    ),
  ),
  metadata: optional(Interaction.Metadata),
}
const absent = Schema.optional(
  Schema.Null.annotations({ message: () => "must not be set for this event_type" }),
)
const SearchItem = Schema.Struct({
  ...common,
  event_type: Schema.Literal(...phraseEventTypes),
  search_phrase: Interaction.SearchPhrase,
  product_id: absent,
  reference: absent,
})
const ProductItem = Schema.Struct({
  ...common,
  event_type: Interaction.ProductEventType,
  search_phrase: absent,
  product_id: Interaction.ProductId,
  reference: absent,
})
const RetractionItem = Schema.Struct({
  ...common,
  event_type: Schema.Literal("retraction"),
  search_phrase: absent,
  product_id: absent,
  reference: Interaction.MessageId,
})
const MergeItem = Schema.Struct({
  ...common,
  event_type: Schema.Literal("merge"),
  search_phrase: absent,
  product_id: absent,
  reference: Interaction.UserId,
})
const EventItem = Schema.Union(SearchItem, ProductItem)
/** One item of the bulk route. */
export const BulkItem = Schema.Union(SearchItem, ProductItem, RetractionItem, MergeItem).annotations({
  identifier: "BulkItem",
})

const options = { errors: "all", onExcessProperty: "error" } as const
const decodeSearch = Schema.decodeUnknownEither(SearchItem, options)
const decodeProduct = Schema.decodeUnknownEither(ProductItem, options)
const decodeRetraction = Schema.decodeUnknownEither(RetractionItem, options)
const decodeMerge = Schema.decodeUnknownEither(MergeItem, options)

const issue = (field: string, detail: string) => Either.left([{ field, detail }])

const knownFields = new Set([...Object.keys(SearchItem.fields), ...Object.keys(ProductItem.fields)])
const isKey = (value: unknown): value is string => typeof value === "string" && keyPattern.test(value)

interface DecodedItem {
  readonly fields: Interaction.DecodedFields
  readonly idempotencyKey: string | null
  readonly occurredAtGiven: boolean
}

/** Decodes an item that its schema would not change; `undefined`: the item needs its schema. */
const decodedFast = (item: Readonly<Record<string, unknown>>, instant: string): DecodedItem | undefined => {
  for (const field in item) if (!knownFields.has(field)) return undefined
  const { event_type, idempotency_key = null, product_id, reference, search_phrase, user_id } = item
  if (idempotency_key !== null && !isKey(idempotency_key)) return undefined
  const given = item.occurred_at ?? undefined
  const occurred_at = given ?? instant
  const metadata = item.metadata ?? {}
  const decoded = Interaction.fastDecode({
    event_type,
    metadata,
    occurred_at,
    product_id,
    reference,
    search_phrase,
    user_id,
  })
  return decoded && { fields: decoded, idempotencyKey: idempotency_key, occurredAtGiven: given !== undefined }
}

/** Decodes by the schema of its event type, so that the issues are about that type. */
const decodedBySchema = (
  item: Readonly<Record<string, unknown>>,
  instant: string,
): Either.Either<DecodedItem, ReadonlyArray<FieldIssue>> => {
  const problem = shapeProblem(item)
  if (problem !== undefined) return issue("", problem)
  const decoded: Either.Either<typeof EventItem.Type, ParseResult.ParseError> = isPhraseEventType(
    item.event_type,
  )
    ? decodeSearch(item)
    : decodeProduct(item)
  return Either.mapBoth(decoded, {
    onLeft: (error) => Interaction.issues(error).map(fieldIssue),
    onRight: (sent) => {
      const { idempotency_key = null, metadata = {}, occurred_at: given, user_id } = sent
      const common = { user_id, occurred_at: given ?? instant, metadata }
      const fields =
        typeof sent.search_phrase === "string"
          ? { ...common, event_type: sent.event_type, search_phrase: sent.search_phrase }
          : { ...common, event_type: sent.event_type, product_id: sent.product_id }
      return { fields, idempotencyKey: idempotency_key, occurredAtGiven: given !== undefined }
    },
  })
}

const ofEvent = (item: Readonly<Record<string, unknown>>, now: number): Decoded => {
  const instant = new Date(now).toISOString()
  const fast = decodedFast(item, instant)
  const sent = fast ? Either.right(fast) : decodedBySchema(item, instant)
  return Either.flatMap(sent, ({ fields, ...rest }) =>
    notInTheFuture({ interaction: Interaction.make(fields), ...rest }, now),
  )
}

const notInTheFuture = (submission: Submission, now: number): Decoded =>
  Date.parse(submission.interaction.occurred_at) > now + Interaction.maxFutureMillis
    ? issue("occurred_at", "must not be more than 60 s in the future")
    : Either.right(submission)

const ofMergeItem = (item: Readonly<Record<string, unknown>>, now: number): Decoded => {
  const problem = shapeProblem(item)
  if (problem !== undefined) return issue("", problem)
  const decoded = Either.mapLeft(decodeMerge(item), (error) => Interaction.issues(error).map(fieldIssue))
  return Either.flatMap(decoded, ({ idempotency_key = null, metadata, occurred_at, reference, user_id }) => {
    if (reference === user_id) return issue("reference", "must be another id than that of the user")
    const instant = occurred_at ?? new Date(now).toISOString()
    const interaction = Interaction.merge(user_id, reference, instant, metadata)
    const occurredAtGiven = occurred_at !== undefined
    return notInTheFuture({ interaction, idempotencyKey: idempotency_key, occurredAtGiven }, now)
  })
}

const ofRetractionItem = (
  item: Readonly<Record<string, unknown>>,
): Either.Either<RetractionRequest, ReadonlyArray<FieldIssue>> => {
  const problem = shapeProblem(item)
  if (problem !== undefined) return issue("", problem)
  return Either.mapBoth(decodeRetraction(item), {
    onLeft: (error) => Interaction.issues(error).map(fieldIssue),
    onRight: ({
      idempotency_key: idempotencyKey = null,
      metadata = {},
      occurred_at,
      reference,
      user_id,
    }) => ({
      user_id,
      reference,
      occurred_at,
      metadata,
      idempotencyKey,
    }),
  })
}

/** `item` is parsed JSON, without unknown keys. `now` is Unix ms. */
export const ofBulkItem = (
  item: unknown,
  now: number,
  types: EventTypes,
): Either.Either<Requested, ReadonlyArray<FieldIssue>> => {
  if (!Predicate.isRecord(item)) return issue("", "must be a JSON object")
  const { event_type } = item
  if (event_type === "retraction") return ofRetractionItem(item)
  if (event_type === "merge") return ofMergeItem(item, now)
  return typeof event_type === "string" && types.has(event_type)
    ? ofEvent(item, now)
    : issue("event_type", `must be one of ${[...types.names, ...referenceEventTypes].join(", ")}`)
}

const names: Readonly<Record<string, string>> = {
  user_id: "userId",
  product_id: "productId",
  search_phrase: "query",
  idempotency_key: "Idempotency-Key",
}
/** Decodes the request of a route as a bulk item, and gives its issues the names of the route. */
const ofRoute = <A>(
  body: unknown,
  decode: (body: Readonly<Record<string, unknown>>) => Either.Either<A, ReadonlyArray<FieldIssue>>,
  fieldNames = names,
): Either.Either<A, ReadonlyArray<FieldIssue>> =>
  Predicate.isRecord(body)
    ? Either.mapLeft(decode(body), (issues) =>
        issues.map(({ field, detail }) => ({
          field: fieldNames[field] ?? field.replace(/^metadata\./, ""),
          detail,
        })),
      )
    : issue("", "must be a JSON object")

/** `body` is parsed JSON, `key` the header `Idempotency-Key`. */
export const ofSearch = (user_id: string, body: unknown, key: string | undefined, now: number): Decoded =>
  ofRoute(body, ({ occurred_at, query, ...metadata }) =>
    ofEvent(
      {
        user_id,
        event_type: "search",
        search_phrase: query,
        occurred_at,
        idempotency_key: key,
        metadata,
      },
      now,
    ),
  )

/** `body` is parsed JSON, or `{}` for a request without body. */
export const ofProduct = (
  user_id: string,
  product_id: string,
  event_type: Interaction.EventType,
  body: unknown,
  key: string | undefined,
  now: number,
): Decoded =>
  ofRoute(body, ({ occurred_at, ...metadata }) =>
    ofEvent({ user_id, event_type, product_id, occurred_at, idempotency_key: key, metadata }, now),
  )

/** `body` is parsed JSON. */
export const ofRetraction = (user_id: string, body: unknown, key: string | undefined) =>
  ofRoute(
    body,
    ({ message_id, occurred_at, ...metadata }) =>
      ofRetractionItem({
        user_id,
        event_type: "retraction",
        reference: message_id,
        occurred_at,
        idempotency_key: key,
        metadata,
      }),
    { ...names, reference: "message_id" },
  )

/** `body` is parsed JSON. */
export const ofMerge = (user_id: string, body: unknown, key: string | undefined, now: number): Decoded =>
  ofRoute(
    body,
    ({ from, occurred_at, ...metadata }) =>
      ofMergeItem(
        { user_id, event_type: "merge", reference: from, occurred_at, idempotency_key: key, metadata },
        now,
      ),
    { ...names, reference: "from" },
  )
