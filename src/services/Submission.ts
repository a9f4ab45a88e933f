/** What a client sent → {@link Submission}: pure decoding, shared by every route that records interactions. */
import { Either, type ParseResult, Schema } from "effect"
import * as Interaction from "./Interaction.ts"
import type { Submission } from "./InteractionRecorder.ts"
import type { FieldIssue } from "./Problem.ts"

export type Decoded = Either.Either<Submission, ReadonlyArray<FieldIssue>>

/** Facts of any kind beside the fields that a route names: they become the metadata. */
const facts = { key: Schema.String, value: Schema.Unknown }

/** Body of the search route: `{"query", "occurred_at"?, …metadata}`. */
export const SearchBody = Schema.Struct(
  { query: Interaction.SearchPhrase, occurred_at: Schema.optional(Interaction.Timestamp) },
  facts,
).annotations({ identifier: "SearchBody" })

/** Body of the product routes, optional: `{"occurred_at"?, …metadata}`. */
export const ProductBody = Schema.Struct(
  { occurred_at: Schema.optional(Interaction.Timestamp) },
  facts,
).annotations({ identifier: "ProductBody" })

const bulkCommon = {
  user_id: Interaction.UserId,
  occurred_at: Schema.optional(Interaction.Timestamp),
  idempotency_key: Schema.optional(
    Schema.String.pipe(Schema.pattern(/^[\x20-\x7e]{1,255}$/, { message: () => keyRule })),
  ),
  metadata: Schema.optionalWith(Interaction.Metadata, { default: () => ({}), nullable: true }),
}
const keyRule = "must be 1 to 255 printable ASCII characters"

const BulkSearch = Schema.Struct({
  ...bulkCommon,
  event_type: Schema.Literal("search"),
  search_phrase: Interaction.SearchPhrase,
})
const BulkProduct = Schema.Struct({
  ...bulkCommon,
  event_type: Schema.Literal("product_view", "product_click", "product_purchase"),
  product_id: Interaction.ProductId,
})
/** One item of the bulk route. */
export const BulkItem = Schema.Union(BulkSearch, BulkProduct).annotations({ identifier: "BulkItem" })

const options = { errors: "all", onExcessProperty: "error" } as const
const decodeSearch = Schema.decodeUnknownEither(SearchBody, { errors: "all" })
const decodeProduct = Schema.decodeUnknownEither(ProductBody, { errors: "all" })
const decodeMetadata = Schema.decodeUnknownEither(Interaction.Metadata, { errors: "all" })
const decodeKind = Schema.decodeUnknownEither(Schema.Struct({ event_type: Interaction.EventType }))
const decodeBulkSearch = Schema.decodeUnknownEither(BulkSearch, options)
const decodeBulkProduct = Schema.decodeUnknownEither(BulkProduct, options)

const toIssues = (error: ParseResult.ParseError): ReadonlyArray<FieldIssue> =>
  Interaction.issues(error).map(({ field, problem }) => ({
    field,
    detail:
      field === "" ? "must be a JSON object" : problem.replace(/^is unexpected.*/, "is not a known field"),
  }))

/** The instant of the interaction: as given, or now; not more than 60 s in the future. */
const instant = (given: string | undefined, now: number): Either.Either<string, ReadonlyArray<FieldIssue>> =>
  given !== undefined && Date.parse(given) > now + Interaction.maxFutureMillis
    ? Either.left([{ field: "occurred_at", detail: "must not be more than 60 s in the future" }])
    : Either.right(given ?? new Date(now).toISOString())

const submission = (
  interaction: Parameters<typeof Interaction.make>[0],
  idempotencyKey: string | null,
  occurredAtGiven: boolean,
): Submission => ({ interaction: Interaction.make(interaction), idempotencyKey, occurredAtGiven })

/** `body` is parsed JSON; a search must have one. `now` in Unix ms. */
export const ofSearch = (user_id: string, body: unknown, key: string | null, now: number): Decoded =>
  Either.gen(function* () {
    const { occurred_at: given, query, ...rest } = yield* Either.mapLeft(decodeSearch(body), toIssues)
    const metadata = yield* Either.mapLeft(decodeMetadata(rest), toIssues)
    const occurred_at = yield* instant(given, now)
    const event = { event_type: "search", search_phrase: query } as const
    return submission({ user_id, ...event, occurred_at, metadata }, key, given !== undefined)
  })

/** `body` is parsed JSON, or `{}` where the request had none. */
export const ofProduct = (
  user_id: string,
  product_id: string,
  event_type: Exclude<Interaction.EventType, "search">,
  body: unknown,
  key: string | null,
  now: number,
): Decoded =>
  Either.gen(function* () {
    const { occurred_at: given, ...rest } = yield* Either.mapLeft(decodeProduct(body), toIssues)
    const metadata = yield* Either.mapLeft(decodeMetadata(rest), toIssues)
    const occurred_at = yield* instant(given, now)
    return submission({ user_id, event_type, product_id, occurred_at, metadata }, key, given !== undefined)
  })

export const ofBulkItem = (item: unknown, now: number): Decoded =>
  Either.gen(function* () {
    // The kind first, so that the issues are those of the one that was meant.
    const { event_type } = yield* Either.mapLeft(decodeKind(item), toIssues)
    const decode: (item: unknown) => Either.Either<typeof BulkItem.Type, ParseResult.ParseError> =
      event_type === "search" ? decodeBulkSearch : decodeBulkProduct
    const {
      idempotency_key = null,
      occurred_at: given,
      ...event
    } = yield* Either.mapLeft(decode(item), toIssues)
    const occurred_at = yield* instant(given, now)
    return submission({ ...event, occurred_at }, idempotency_key, given !== undefined)
  })

/** The header `Idempotency-Key`, if there is one. */
export const ofKeyHeader = (
  header: string | undefined,
): Either.Either<string | null, ReadonlyArray<FieldIssue>> =>
  header === undefined || /^[\x20-\x7e]{1,255}$/.test(header)
    ? Either.right(header ?? null)
    : Either.left([{ field: "Idempotency-Key", detail: keyRule }])
