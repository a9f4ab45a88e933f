/**
 * An interaction is one thing a user did. Its fields have the same names in messages, rows and documents. `message_id`
 * identifies it everywhere.
 */
import { hash } from "node:crypto"
import { ParseResult, Schema } from "effect"
import * as EventTypes from "./EventTypes.ts"

/** The name of a product type. Whether the type is configured is checked where an interaction enters. */
export const ProductEventType: Schema.Schema<EventTypes.ProductEventType, string> = Schema.String.pipe(
  Schema.filter(EventTypes.isProductEventType, {
    message: () => "must be the name of an event type that refers to a product",
  }),
).annotations({
  jsonSchema: {
    type: "string",
    pattern: EventTypes.namePattern.source,
    examples: EventTypes.builtInEventTypes.flatMap(({ kind, name }) => (kind === "product" ? [name] : [])),
  },
})
const PhraseEventType = Schema.Literal(...EventTypes.phraseEventTypes)
const ReferenceEventType = Schema.Literal(...EventTypes.referenceEventTypes)
export const EventType = Schema.Union(PhraseEventType, ProductEventType, ReferenceEventType).annotations({
  identifier: "EventType",
})
export type EventType = EventTypes.EventType

/** In a URL, `.` and `..` mean folders. The pattern has no lookahead, because many generators of clients refuse that. */
export const idPattern =
  /^([A-Za-z0-9_:-][A-Za-z0-9._:-]{0,63}|[.][A-Za-z0-9_:-][A-Za-z0-9._:-]{0,62}|[.]{2}[A-Za-z0-9._:-]{1,62})$/
const idProblem =
  "must be 1 to 64 characters of A-Z a-z 0-9 . _ : -, and neither . nor .. (an integer is accepted too)"
const idText = Schema.String.pipe(Schema.pattern(idPattern, { message: () => idProblem }))
/** Integers are accepted and become their decimal string. */
const identifier = Schema.transform(Schema.Union(Schema.String, Schema.Int), idText, {
  strict: true,
  decode: String,
  encode: (id) => id,
}).annotations({
  message: () => ({ message: idProblem, override: true }),
  jsonSchema: { type: "string", pattern: idPattern.source },
})
export const UserId = identifier.annotations({ identifier: "UserId" })
export type UserId = typeof UserId.Type
export const ProductId = identifier.annotations({ identifier: "ProductId" })
export type ProductId = typeof ProductId.Type

/** A string. The error does not repeat the value, which may be long. */
const text = Schema.String.annotations({ message: () => "must be a string" })

const phraseProblem = (phrase: string): string | undefined => {
  if (!phrase.isWellFormed()) return "must not contain lone surrogates"
  if (/\p{Cc}/u.test(phrase)) return "must not contain control characters"
  const length = [...phrase].length
  return length >= 1 && length <= 255 ? undefined : `must be 1 to 255 characters, has ${length}`
}
/** Trimmed, NFC, 1–255 code points, no control characters (Cc), no lone surrogates. */
export const SearchPhrase = Schema.transformOrFail(text, Schema.String, {
  strict: true,
  decode: (text, _, ast) => {
    const phrase = text.trim().normalize("NFC")
    const problem = phraseProblem(phrase)
    return problem === undefined
      ? ParseResult.succeed(phrase)
      : ParseResult.fail(new ParseResult.Type(ast, text, problem))
  },
  encode: ParseResult.succeed,
}).annotations({ identifier: "SearchPhrase", jsonSchema: { type: "string", minLength: 1, maxLength: 255 } })

const timestampPattern =
  /^(\d{4})-(\d{2})-(\d{2})T([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d)(?:[.,](\d+))?)?(Z|[+-](?:[01]\d|2[0-3]):?[0-5]\d)$/
const epochIsKnown = (epoch: number): boolean => epoch >= 0 && epoch < 253_402_300_800_000
/** Recognises the canonical form without a regular expression: most timestamps have it. */
const isCanonical = (text: string): boolean => {
  if (text.length !== 24 || !text.endsWith("Z")) return false
  const epoch = Date.parse(text)
  return epochIsKnown(epoch) && new Date(epoch).toISOString() === text
}
/**
 * The canonical form of an ISO 8601 date-time with offset: UTC with exactly three decimals; finer digits are cut.
 * `undefined` for text that is no such date-time, has no offset, names no real day, or lies outside the years 1970–9999.
 */
export const canonicalTimestamp = (text: string): string | undefined => {
  if (isCanonical(text)) return text
  const match = timestampPattern.exec(text)
  if (match === null) return undefined
  const [, year, month, day, hour, minute, second = "00", fraction = "", offset] = match
  const utcDay = new Date(Date.UTC(Number(year), Number(month) - 1, Number(day)))
  if (utcDay.getUTCMonth() !== Number(month) - 1 || utcDay.getUTCDate() !== Number(day)) return undefined
  const milliseconds = fraction.slice(0, 3).padEnd(3, "0")
  const zone = offset === "Z" || offset!.includes(":") ? offset : `${offset!.slice(0, 3)}:${offset!.slice(3)}`
  const epoch = Date.parse(`${year}-${month}-${day}T${hour}:${minute}:${second}.${milliseconds}${zone}`)
  return epochIsKnown(epoch) ? new Date(epoch).toISOString() : undefined
}
/** ISO 8601 with offset, canonicalised to UTC milliseconds: `2026-02-10T12:34:56.789Z`. */
export const Timestamp = Schema.transformOrFail(text, Schema.String, {
  strict: true,
  decode: (text, _, ast) => {
    const canonical = canonicalTimestamp(text)
    return canonical === undefined
      ? ParseResult.fail(
          new ParseResult.Type(
            ast,
            text,
            "must be an ISO 8601 date-time with offset, as 2026-02-10T12:34:56.789Z",
          ),
        )
      : ParseResult.succeed(canonical)
  },
  encode: ParseResult.succeed,
}).annotations({ identifier: "Timestamp", jsonSchema: { type: "string", format: "date-time" } })

/** Greatest size of serialised metadata in bytes. */
export const maxMetadataBytes = 4096
type Fact = string | number | boolean
/** A value in JSON metadata. `null` means unknown and is dropped. */
const MetadataValue = Schema.declare(
  (value: unknown): value is Fact | null =>
    typeof value === "string"
      ? value.isWellFormed()
      : value === null || typeof value === "boolean" || Number.isFinite(value),
  {
    message: ({ actual }) =>
      typeof actual === "string"
        ? "must not contain lone surrogates"
        : "must be a string, a number or a boolean",
    jsonSchema: { type: ["string", "number", "boolean", "null"] },
  },
)
const metadataProblem = (metadata: Readonly<Record<string, Fact>>): string | undefined => {
  if (Buffer.byteLength(JSON.stringify(metadata)) > maxMetadataBytes)
    return `metadata must be at most ${maxMetadataBytes} bytes as JSON`
  return Object.keys(metadata).every((key) => key.isWellFormed())
    ? undefined
    : "metadata keys must not contain lone surrogates"
}
/** Flat facts about an interaction: strings, numbers and booleans. Nulls are dropped. At most 4 KiB as JSON. */
export const Metadata = Schema.transformOrFail(
  Schema.Record({ key: Schema.String, value: MetadataValue }).annotations({
    message: () => "must be an object of strings, numbers and booleans",
  }),
  Schema.Record({ key: Schema.String, value: Schema.Union(Schema.String, Schema.Number, Schema.Boolean) }),
  {
    strict: true,
    decode: (given, _, ast) => {
      const kept: Record<string, Fact> = {}
      for (const key in given) {
        const value = given[key]
        if (value !== null && value !== undefined) kept[key] = value
      }
      const problem = metadataProblem(kept)
      return problem === undefined
        ? ParseResult.succeed(kept)
        : ParseResult.fail(new ParseResult.Type(ast, given, problem))
    },
    encode: ParseResult.succeed,
  },
).annotations({ identifier: "Metadata" })
export type Metadata = typeof Metadata.Type

/** Lower-case hex SHA-256, 64 characters. */
export const MessageId = text.pipe(
  Schema.pattern(/^[0-9a-f]{64}$/, { message: () => "must be 64 lower-case hexadecimal digits" }),
  Schema.annotations({ identifier: "MessageId" }),
)
export type MessageId = typeof MessageId.Type

const common = {
  user_id: UserId,
  occurred_at: Timestamp,
  metadata: Metadata,
  message_id: MessageId,
}
const absent = Schema.Null.annotations({ message: () => "must not be set for this event_type" })
/** Producers of earlier releases leave it out. */
const noReference = Schema.optionalWith(absent, { default: () => null })

/** An event that refers to a search phrase. */
export const Search = Schema.Struct({
  ...common,
  event_type: PhraseEventType,
  search_phrase: SearchPhrase,
  product_id: absent,
  reference: noReference,
})
/** An event that refers to a product. */
export const ProductEvent = Schema.Struct({
  ...common,
  event_type: ProductEventType,
  search_phrase: absent,
  product_id: ProductId,
  reference: noReference,
})
/**
 * Takes the interaction with the message id `reference` back. The other fields are those of that interaction, and
 * `metadata.retracted_type` is its type, so that `reference` can be checked.
 */
export const Retraction = Schema.Struct({
  ...common,
  event_type: Schema.Literal("retraction"),
  search_phrase: Schema.NullOr(SearchPhrase),
  product_id: Schema.NullOr(ProductId),
  reference: MessageId,
})
export type Retraction = typeof Retraction.Type
/** Says that the user with the id `reference` is the same person. */
export const Merge = Schema.Struct({
  ...common,
  event_type: Schema.Literal("merge"),
  search_phrase: absent,
  product_id: absent,
  reference: UserId,
})
export type Merge = typeof Merge.Type

export const Interaction = Schema.Union(Search, ProductEvent, Retraction, Merge).annotations({
  identifier: "Interaction",
})
export type Interaction = typeof Interaction.Type

interface Subject {
  readonly search_phrase: string | null
  readonly product_id: string | null
  readonly reference?: string | null
}
/** What the interaction refers to: a message id, a user id, a search phrase or a product id. */
export const referenceOf = ({ product_id, reference, search_phrase }: Subject): string =>
  reference ?? search_phrase ?? product_id ?? ""

/** `sha256(user_id|event_type|reference|occurred_at)` in lower-case hex. */
export const messageId = (
  interaction: Subject & Pick<Interaction, "user_id" | "event_type" | "occurred_at">,
): MessageId =>
  hash(
    "sha256",
    `${interaction.user_id}|${interaction.event_type}|${referenceOf(interaction)}|${interaction.occurred_at}`,
  )

// ---------------------------------------------------------------------------------------------------------
// Fast decoding. Most interactions pass the schemas above unchanged. These functions recognise them in a tenth of the
// time. They leave everything else to the schemas, which accept, change or refuse it.

const isPlainId = (value: unknown): value is string => typeof value === "string" && idPattern.test(value)
/** Printable ASCII without blanks around it. */
const isPlainPhrase = (value: unknown): value is string =>
  typeof value === "string" && /^[!-~](?:[ -~]{0,253}[!-~])?$/.test(value)
const isPlainMetadata = (value: unknown): value is Metadata => {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return false
  for (const [key, fact] of Object.entries(value)) {
    if (key === "__proto__") return false
    if (typeof fact !== "string" && typeof fact !== "boolean" && !Number.isFinite(fact)) return false
  }
  const text = JSON.stringify(value)
  // Lone surrogates are escaped in JSON.
  return Buffer.byteLength(text) <= maxMetadataBytes && !text.includes("\\u")
}

/** The fields of an interaction before decoding. */
export type RawFields = {
  readonly [Field in Exclude<keyof Interaction, "message_id">]?: unknown
}

/** The fields unchanged, if the schemas would not change them either. An absent reference is `null` or `undefined`. */
export const fastDecode = ({
  event_type,
  metadata,
  occurred_at,
  product_id,
  reference,
  search_phrase,
  user_id,
}: RawFields): DecodedFields | undefined => {
  if (!isPlainId(user_id) || !isPlainMetadata(metadata) || (reference ?? null) !== null) return undefined
  if (typeof occurred_at !== "string" || !isCanonical(occurred_at)) return undefined
  const facts = { user_id, occurred_at, metadata }
  if (event_type === "search")
    return isPlainPhrase(search_phrase) && (product_id ?? null) === null
      ? { ...facts, event_type, search_phrase }
      : undefined
  return EventTypes.isProductEventType(event_type) &&
    isPlainId(product_id) &&
    (search_phrase ?? null) === null
    ? { ...facts, event_type, product_id }
    : undefined
}

type Facts = Pick<Interaction, "user_id" | "occurred_at" | "metadata">
/** Decoded fields of an interaction; an absent reference is `null` or left out. */
export type DecodedFields = Facts &
  (
    | {
        readonly event_type: EventTypes.PhraseEventType
        readonly search_phrase: string
        readonly product_id?: null
      }
    | {
        readonly event_type: EventTypes.ProductEventType
        readonly search_phrase?: null
        readonly product_id: ProductId
      }
  )
/** Builds an interaction and gives it its `message_id`. */
export const make = (fields: DecodedFields): Interaction => {
  const { user_id, occurred_at, metadata } = fields
  const subject =
    typeof fields.search_phrase === "string"
      ? { event_type: fields.event_type, search_phrase: fields.search_phrase, product_id: null }
      : { event_type: fields.event_type, search_phrase: null, product_id: fields.product_id }
  const interaction = { user_id, ...subject, reference: null, occurred_at, metadata }
  return { ...interaction, message_id: messageId(interaction) }
}

/** Builds the retraction of an interaction. The hash needs `occurred_at`, so both occurred at the same instant. */
export const retract = (
  { event_type, message_id, occurred_at, product_id, search_phrase, user_id }: Interaction,
  metadata: Metadata = {},
): Retraction => {
  const retraction = {
    user_id,
    event_type: "retraction",
    search_phrase,
    product_id,
    reference: message_id,
    occurred_at,
    metadata: { ...metadata, retracted_type: event_type },
  } as const
  return { ...retraction, message_id: messageId(retraction) }
}

export const retractedType = ({ metadata }: Retraction): EventType => String(metadata.retracted_type)
/** The message id that the reference of a retraction must be, by its other fields. */
export const retractedId = (retraction: Retraction): MessageId =>
  messageId({ ...retraction, event_type: retractedType(retraction), reference: null })

/** Builds the interaction that makes `from` an alias of `user_id`. */
export const merge = (user_id: UserId, from: UserId, occurred_at: string, metadata: Metadata = {}): Merge => {
  const merge = {
    user_id,
    event_type: "merge",
    search_phrase: null,
    product_id: null,
    reference: from,
    occurred_at,
    metadata,
  } as const
  return { ...merge, message_id: messageId(merge) }
}

export const isMerge = (interaction: Interaction): interaction is Merge => interaction.event_type === "merge"
export const isRetraction = (interaction: Interaction): interaction is Retraction =>
  interaction.event_type === "retraction"

/** Oldest first; ties by message id. The order in which interactions of one user are folded. */
export const chronological = (
  a: Pick<Interaction, "occurred_at" | "message_id">,
  b: Pick<Interaction, "occurred_at" | "message_id">,
): number =>
  a.occurred_at < b.occurred_at
    ? -1
    : a.occurred_at > b.occurred_at
      ? 1
      : a.message_id < b.message_id
        ? -1
        : a.message_id > b.message_id
          ? 1
          : 0

/** How far in the future `occurred_at` may lie, in milliseconds. */
export const maxFutureMillis = 60_000

/** One line that names the offending fields. */
export const describeIssues = (error: ParseResult.ParseError): string =>
  issues(error)
    .map(({ field, problem }) => (field === "" ? problem : `${field}: ${problem}`))
    .join("; ")

/** Limits on the issues of one body: a hostile body must not cause an even longer answer, log line or dead letter. */
const mostIssues = 100
const longestProblem = 300

/** What the schemas of Effect say of a value of a wrong kind, in the words of the other problems. */
const kinds: ReadonlyArray<readonly [RegExp, string]> = [
  [/^string$/, "must be a string"],
  [/^boolean$/, "must be true or false"],
  [/^number$/, "must be a number"],
  [/^(ReadonlyArray<|readonly \[)/, "must be an array"],
  [/^(\(?\{|\w+( \(Encoded side\))?$)/, "must be a JSON object"],
]
const worded = (message: string): string => {
  const expected = /^Expected (.*), actual (?!undefined)/s.exec(message)?.[1]
  return kinds.find(([kind]) => expected !== undefined && kind.test(expected))?.[1] ?? message
}

/** The offending fields and the problem of each, at most 100. A field is a dotted path, empty for the whole body. */
export const issues = (
  error: ParseResult.ParseError,
): ReadonlyArray<{ readonly field: string; readonly problem: string }> =>
  ParseResult.ArrayFormatter.formatErrorSync(error)
    .filter(({ message }) => !/^Expected (null|undefined), actual/.test(message))
    .slice(0, mostIssues)
    .map(({ path, message }) => ({
      field: path.join("."),
      problem: worded(message).slice(0, longestProblem),
    }))
