/** The update message: the JSON body on the queue that asks a worker to fold one interaction into its user's embedding. */
import { Either, type ParseResult, Schema } from "effect"
import { type EventTypes, isReferenceEventType } from "./EventTypes.ts"
import * as Interaction from "./Interaction.ts"
import { shapeProblem } from "./Problem.ts"

export const messageVersion = "1.0"
/**
 * The body. A consumer accepts every version 1.x and ignores unknown fields. A reference or metadata that is left out
 * counts as null.
 */
export const UpdateMessage = Schema.extend(
  Interaction.Interaction,
  Schema.Struct({
    version: Schema.String.pipe(Schema.pattern(/^1\.\d+$/)).annotations({
      description: "1.x",
      examples: [messageVersion],
    }),
  }),
).annotations({ identifier: "UpdateMessage" })

/** Greatest size of a body in bytes. */
export const maxMessageBytes = 256 * 1024

/** The message can never be processed. It becomes a dead letter at once. */
export class InvalidMessage extends Schema.TaggedError<InvalidMessage>()("InvalidMessage", {
  reason: Schema.Literal(
    "too_large",
    "not_json",
    "schema_violation",
    "unsupported_version",
    "unknown_event_type",
    "message_id_mismatch",
    "in_the_future",
  ),
  detail: Schema.String,
}) {
  override get message() {
    return `${this.reason}: ${this.detail}`
  }
}

type Decoded = Either.Either<Interaction.Interaction, InvalidMessage>

const invalid = (reason: InvalidMessage["reason"], detail: string) =>
  Either.left(new InvalidMessage({ reason, detail }))

export const encodeMessage = (interaction: Interaction.Interaction): Uint8Array => {
  const { user_id, event_type, search_phrase, product_id, occurred_at, metadata, message_id } = interaction
  const reference = interaction.reference === null ? {} : { reference: interaction.reference }
  const body = {
    user_id,
    event_type,
    search_phrase,
    product_id,
    ...reference,
    occurred_at,
    metadata,
    message_id,
  }
  return Buffer.from(JSON.stringify({ ...body, version: messageVersion }))
}

const utf8 = new TextDecoder("utf-8", { fatal: true })

const parseJson = (body: Uint8Array): unknown => {
  try {
    return JSON.parse(utf8.decode(body))
  } catch {
    return undefined
  }
}

/** Metadata that is left out, `null`, or the `[]` that PHP's `json_encode` makes of an empty array. */
const metadataOf = (json: object): unknown => {
  const metadata = "metadata" in json ? json.metadata : undefined
  return Array.isArray(metadata) && metadata.length === 0 ? {} : (metadata ?? {})
}

interface Fields extends Interaction.RawFields {
  readonly message_id?: unknown
}

/** Fills in what a producer may leave out. A schema with defaults would decode every message twice. */
const withDefaults = (json: object): Fields => ({
  search_phrase: null,
  product_id: null,
  ...json,
  metadata: metadataOf(json),
})

/** Skips the schema where its result is known. `undefined`: decode by the schema. */
const fastDecodeMessage = (fields: Fields): Either.Either<Interaction.Interaction> | undefined => {
  const decoded = Interaction.fastDecode(fields)
  if (decoded === undefined) return undefined
  const interaction = Interaction.make(decoded)
  return interaction.message_id === fields.message_id ? Either.right(interaction) : undefined
}

const decodeSearch = Schema.decodeUnknownEither(Interaction.Search, { errors: "all" })
const decodeProductEvent = Schema.decodeUnknownEither(Interaction.ProductEvent, { errors: "all" })
const decodeRetraction = Schema.decodeUnknownEither(Interaction.Retraction, { errors: "all" })
const decodeMerge = Schema.decodeUnknownEither(Interaction.Merge, { errors: "all" })

const decodeFields = (fields: Fields): Either.Either<Interaction.Interaction, ParseResult.ParseError> => {
  switch (fields.event_type) {
    case "search":
      return decodeSearch(fields)
    case "retraction":
      return decodeRetraction(fields)
    case "merge":
      return decodeMerge(fields)
    default:
      return decodeProductEvent(fields)
  }
}

/** Decodes by the schema of the message's own kind, so that the issues name only the fields of that kind. */
const decodeBySchema = (fields: Fields): Decoded => {
  const problem = shapeProblem(fields)
  if (problem !== undefined) return invalid("schema_violation", problem)
  const decoded = decodeFields(fields)
  if (Either.isLeft(decoded)) return invalid("schema_violation", Interaction.describeIssues(decoded.left))
  const interaction = decoded.right
  if (Interaction.isRetraction(interaction) && Interaction.retractedId(interaction) !== interaction.reference)
    return invalid(
      "schema_violation",
      "reference: must be the message_id of the other fields with metadata.retracted_type",
    )
  const expected = Interaction.messageId(interaction)
  return interaction.message_id === expected
    ? Either.right(interaction)
    : invalid("message_id_mismatch", `message_id is ${interaction.message_id}, its content gives ${expected}`)
}

const versionProblem = (version: unknown): InvalidMessage | undefined => {
  if (typeof version !== "string" || !/^\d+\.\d+$/.test(version))
    return new InvalidMessage({
      reason: "schema_violation",
      detail: `version: must be "${messageVersion}"`,
    })
  if (version.startsWith("1.")) return undefined
  return new InvalidMessage({
    reason: "unsupported_version",
    detail: `version ${version}, this worker reads 1.x`,
  })
}

/** Decodes a body. The messages of a type that `types` does not hold are refused. */
export const decodeMessage = (body: Uint8Array, types: EventTypes): Decoded => {
  if (body.byteLength > maxMessageBytes)
    return invalid("too_large", `${body.byteLength} bytes, at most ${maxMessageBytes} are accepted`)
  const json = parseJson(body)
  if (json === undefined) return invalid("not_json", "the body is not JSON in UTF-8")
  if (typeof json !== "object" || json === null || Array.isArray(json))
    return invalid("schema_violation", "the body must be a JSON object")
  const problem = versionProblem("version" in json ? json.version : undefined)
  if (problem !== undefined) return Either.left(problem)
  const fields = withDefaults(json)
  if (typeof fields.event_type !== "string")
    return invalid(
      "schema_violation",
      `event_type: ${fields.event_type === undefined ? "is missing" : "must be a string"}`,
    )
  if (!types.has(fields.event_type) && !isReferenceEventType(fields.event_type))
    return invalid(
      "unknown_event_type",
      `event_type ${JSON.stringify(fields.event_type.slice(0, 64))} is none of ${types.names.join(", ")}: add it to EVENT_WEIGHTS of every program`,
    )
  return fastDecodeMessage(fields) ?? decodeBySchema(fields)
}

/** The same interaction, or why it cannot have happened: `latest` (Unix ms) is the greatest `occurred_at` accepted. */
export const notInTheFuture = (interaction: Interaction.Interaction, latest: number): Decoded =>
  Date.parse(interaction.occurred_at) > latest
    ? invalid("in_the_future", `occurred_at ${interaction.occurred_at} is more than 60 s in the future`)
    : Either.right(interaction)
