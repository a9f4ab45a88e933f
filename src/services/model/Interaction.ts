/**
 * An interaction is one thing a user did. Its fields carry the names of the wire, the log and the documents,
 * so that no mapping stands between them. `message_id` identifies it everywhere.
 */
import { hash } from "node:crypto"
import { Either, ParseResult, Schema } from "effect"

export const EventType = Schema.Literal("search", "product_view", "product_click", "product_purchase")
export type EventType = typeof EventType.Type
export const eventTypes = EventType.literals

const idPattern = /^[A-Za-z0-9._:-]{1,64}$/
const idText = Schema.String.pipe(
  Schema.pattern(idPattern, {
    message: () => "must be 1 to 64 characters of A-Z a-z 0-9 . _ : - (an integer is accepted too)",
  }),
)
/** 1–64 characters of `[A-Za-z0-9._:-]`; integers are accepted and become their decimal string. */
const identifier = Schema.transform(Schema.Union(Schema.String, Schema.Int), idText, {
  strict: true,
  decode: String,
  encode: (id) => id,
}).annotations({
  message: () => ({
    message: "must be 1 to 64 characters of A-Z a-z 0-9 . _ : - (an integer is accepted too)",
    override: true,
  }),
  jsonSchema: { type: "string", pattern: idPattern.source },
})
export const UserId = identifier.annotations({ identifier: "UserId" })
export type UserId = typeof UserId.Type
export const ProductId = identifier.annotations({ identifier: "ProductId" })
export type ProductId = typeof ProductId.Type

/** Text, whose refusal does not repeat what was given instead. */
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
/** The usual case, without regular expression and parts. */
const isCanonical = (text: string): boolean => {
  if (text.length !== 24 || !text.endsWith("Z")) return false
  const epoch = Date.parse(text)
  return epochIsKnown(epoch) && new Date(epoch).toISOString() === text
}
/**
 * The canonical form of an ISO 8601 date-time with offset: UTC with exactly three decimals, finer digits cut.
 * `undefined` when it isn't one, has no offset, names no real day, or lies outside the years 1970–9999.
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
/** What JSON may hold at a key; `null` says that nothing is known and is dropped. */
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
/** Flat facts about an interaction: strings, numbers and booleans; nulls are dropped. At most 4 KiB as JSON. */
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
const product = <Type extends EventType>(type: Type) =>
  Schema.Struct({ ...common, event_type: Schema.Literal(type), search_phrase: absent, product_id: ProductId })

export const Search = Schema.Struct({
  ...common,
  event_type: Schema.Literal("search"),
  search_phrase: SearchPhrase,
  product_id: absent,
})
export const ProductView = product("product_view")
export const ProductClick = product("product_click")
export const ProductPurchase = product("product_purchase")

/** One of the four kinds, told apart by `event_type`. */
export const Interaction = Schema.Union(Search, ProductView, ProductClick, ProductPurchase).annotations({
  identifier: "Interaction",
})
export type Interaction = typeof Interaction.Type

/** What the interaction is about: the search phrase or the product id. */
export const reference = (interaction: Pick<Interaction, "search_phrase" | "product_id">): string =>
  interaction.search_phrase ?? interaction.product_id ?? ""

/** `sha256(user_id|event_type|reference|occurred_at)` in lower-case hex. */
export const messageId = (interaction: Omit<Interaction, "message_id" | "metadata">): MessageId =>
  hash(
    "sha256",
    `${interaction.user_id}|${interaction.event_type}|${reference(interaction)}|${interaction.occurred_at}`,
  )

// ---------------------------------------------------------------------------------------------------------
// The usual case: what the schemas above would answer unchanged, told without them (measured: a tenth of the time).
// Whatever these do not recognise is for the schemas to accept, change or refuse.

const isUsualId = (value: unknown): value is string => typeof value === "string" && idPattern.test(value)
/** Printable ASCII without blanks around it. */
const isUsualPhrase = (value: unknown): value is string =>
  typeof value === "string" && /^[!-~](?:[ -~]{0,253}[!-~])?$/.test(value)
const isUsualMetadata = (value: unknown): value is Metadata => {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return false
  for (const [key, fact] of Object.entries(value)) {
    if (key === "__proto__") return false
    if (typeof fact !== "string" && typeof fact !== "boolean" && !Number.isFinite(fact)) return false
  }
  const text = JSON.stringify(value)
  // Lone surrogates are escaped in JSON.
  return Buffer.byteLength(text) <= maxMetadataBytes && !text.includes("\\u")
}

/** Everything that makes an interaction, of unknown origin. */
export type RawFields = {
  readonly [Part in Exclude<keyof Interaction, "message_id">]?: unknown
}

/** The parts as they stand, if that is what the schemas would make of them. Absent is `null` or `undefined`. */
export const fastDecode = ({
  event_type,
  metadata,
  occurred_at,
  product_id,
  search_phrase,
  user_id,
}: RawFields): DecodedFields | undefined => {
  if (!isUsualId(user_id) || !isUsualMetadata(metadata)) return undefined
  if (typeof occurred_at !== "string" || !isCanonical(occurred_at)) return undefined
  const facts = { user_id, occurred_at, metadata }
  switch (event_type) {
    case "search":
      return isUsualPhrase(search_phrase) && (product_id ?? null) === null
        ? { ...facts, event_type, search_phrase }
        : undefined
    case "product_view":
    case "product_click":
    case "product_purchase":
      return isUsualId(product_id) && (search_phrase ?? null) === null
        ? { ...facts, event_type, product_id }
        : undefined
    default:
      return undefined
  }
}

type Facts = Pick<Interaction, "user_id" | "occurred_at" | "metadata">
/** Decoded parts of an interaction. */
export type DecodedFields = Facts &
  (
    | { readonly event_type: "search"; readonly search_phrase: string }
    | { readonly event_type: Exclude<EventType, "search">; readonly product_id: ProductId }
  )
/** Builds an interaction and gives it its `message_id`. */
export const make = (facts: DecodedFields): Interaction => {
  const { user_id, occurred_at, metadata } = facts
  const what =
    facts.event_type === "search"
      ? { event_type: facts.event_type, search_phrase: facts.search_phrase, product_id: null }
      : { event_type: facts.event_type, search_phrase: null, product_id: facts.product_id }
  const interaction = { user_id, ...what, occurred_at, metadata }
  return { ...interaction, message_id: messageId(interaction) }
}

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

// ---------------------------------------------------------------------------------------------------------
// The update message (JSON, snake_case) that asks for one interaction to be folded in.

export const messageVersion = "1.0"
/** The body as it is sent. Consumers take any version 1.x and further fields; absent references and metadata count as null. */
export const UpdateMessage = Schema.extend(
  Interaction,
  Schema.Struct({
    version: Schema.String.pipe(Schema.pattern(/^1\.\d+$/)).annotations({
      description: "1.x",
      examples: [messageVersion],
    }),
  }),
).annotations({ identifier: "UpdateMessage" })

/** Greatest size of a message body in bytes; a larger one is a dead letter. */
export const maxMessageBytes = 256 * 1024
/** How far in the future `occurred_at` may lie, in milliseconds. */
export const maxFutureMillis = 60_000

/** The message can never be processed: it is a dead letter at once. */
export class InvalidMessage extends Schema.TaggedError<InvalidMessage>()("InvalidMessage", {
  reason: Schema.Literal(
    "too_large",
    "not_json",
    "schema_violation",
    "unsupported_version",
    "message_id_mismatch",
    "in_the_future",
  ),
  detail: Schema.String,
}) {
  override get message() {
    return `${this.reason}: ${this.detail}`
  }
}

const invalid = (reason: InvalidMessage["reason"], detail: string) =>
  Either.left(new InvalidMessage({ reason, detail }))

export const encodeMessage = (interaction: Interaction): Uint8Array => {
  const { user_id, event_type, search_phrase, product_id, occurred_at, metadata, message_id } = interaction
  const body = { user_id, event_type, search_phrase, product_id, occurred_at, metadata, message_id }
  return Buffer.from(JSON.stringify({ ...body, version: messageVersion }))
}

const decodeInteraction = Schema.decodeUnknownEither(Interaction, { errors: "all" })
const utf8 = new TextDecoder("utf-8", { fatal: true })

const parseJson = (body: Uint8Array): unknown => {
  try {
    return JSON.parse(utf8.decode(body))
  } catch {
    return undefined
  }
}

/** No metadata: left out, `null`, or the `[]` that PHP's `json_encode` makes of an empty array. */
const metadataOf = (json: object): unknown => {
  const metadata = "metadata" in json ? json.metadata : undefined
  return Array.isArray(metadata) && metadata.length === 0 ? {} : (metadata ?? {})
}

/** Fields that a producer may leave out are filled in before decoding: a schema with defaults decodes twice. */
const withDefaults = (json: object) => ({
  search_phrase: null,
  product_id: null,
  ...json,
  metadata: metadataOf(json),
})

/** A message whose parts are the usual ones and give its id; `undefined` = ask the schema. */
const fastDecodeMessage = (json: object): Either.Either<Interaction> | undefined => {
  const parts: RawFields & { readonly message_id?: unknown } = withDefaults(json)
  const made = fastDecode(parts)
  if (made === undefined) return undefined
  const interaction = make(made)
  return interaction.message_id === parts.message_id ? Either.right(interaction) : undefined
}

const decodeChecked = (json: object): Either.Either<Interaction, InvalidMessage> => {
  const decoded = decodeInteraction(withDefaults(json))
  if (Either.isLeft(decoded)) return invalid("schema_violation", describeIssues(decoded.left))
  const interaction = decoded.right
  const expected = messageId(interaction)
  return interaction.message_id === expected
    ? Either.right(interaction)
    : invalid("message_id_mismatch", `message_id is ${interaction.message_id}, its content gives ${expected}`)
}

/** Refuses an interaction that occurred after `latest` (Unix ms). */
export const refuseAfter = (
  decoded: Either.Either<Interaction, InvalidMessage>,
  latest: number,
): Either.Either<Interaction, InvalidMessage> =>
  Either.isRight(decoded) && Date.parse(decoded.right.occurred_at) > latest
    ? invalid("in_the_future", `occurred_at ${decoded.right.occurred_at} is more than 60 s in the future`)
    : decoded

/**
 * Decodes a message body. Unknown extra fields and any version `1.x` are accepted. `latest` (Unix ms) is the
 * greatest `occurred_at` still believed.
 */
export const decodeMessage = (
  body: Uint8Array,
  latest: number,
): Either.Either<Interaction, InvalidMessage> => {
  if (body.byteLength > maxMessageBytes)
    return invalid("too_large", `${body.byteLength} bytes, at most ${maxMessageBytes} are accepted`)
  const json = parseJson(body)
  if (json === undefined) return invalid("not_json", "the body is not JSON in UTF-8")
  if (typeof json !== "object" || json === null || Array.isArray(json))
    return invalid("schema_violation", "the body must be a JSON object")
  const version = "version" in json ? json.version : undefined
  if (typeof version !== "string" || !/^\d+\.\d+$/.test(version))
    return invalid("schema_violation", `version: must be "${messageVersion}"`)
  if (!version.startsWith("1."))
    return invalid("unsupported_version", `version ${version}, this worker reads 1.x`)
  return refuseAfter(fastDecodeMessage(json) ?? decodeChecked(json), latest)
}

/** One line that names the offending fields. */
export const describeIssues = (error: ParseResult.ParseError): string =>
  issues(error)
    .map(({ field, problem }) => (field === "" ? problem : `${field}: ${problem}`))
    .join("; ")

/** A hostile body must not become an even longer answer, log line or dead letter. */
const mostIssues = 100
const longestProblem = 300

/** The offending fields (dotted path, empty for the whole) with what is wrong with each; at most 100. */
export const issues = (
  error: ParseResult.ParseError,
): ReadonlyArray<{ readonly field: string; readonly problem: string }> =>
  ParseResult.ArrayFormatter.formatErrorSync(error)
    .filter(({ message }) => !/^Expected (null|undefined), actual/.test(message))
    .slice(0, mostIssues)
    .map(({ path, message }) => ({ field: path.join("."), problem: message.slice(0, longestProblem) }))
