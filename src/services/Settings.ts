/**
 * Every environment variable, declared once: typed, with default, meaning and example. Adapters read them in
 * their `layerConfig`; `.env.example` and the command `config` are made from this list.
 */
import { Config, ConfigError, Duration, Either, Option, ParseResult, Redacted, Schema } from "effect"
import { builtInEventTypes, parseWeights } from "./model/EventTypes.ts"
import { describeIssues } from "./model/Interaction.ts"
import { History } from "./model/UserEmbedding.ts"

export interface Setting<A> extends Config.Config<A> {
  readonly variable: string
  readonly meaning: string
  /** A valid value, shown when a bad one stops the start. */
  readonly example: string
  /** The default as it would be written in the environment; absent when there is none. */
  readonly fallback?: string
  readonly secret: boolean
}

interface Declaration<A, I extends string = string> {
  readonly meaning: string
  readonly schema: Schema.Schema<A, I>
  readonly secret?: boolean
  /** Spaces at the ends are part of the value. */
  readonly keepsSpaces?: boolean
}

/** The text of a variable that is set and not empty. */
export const given = (variable: string) =>
  Config.string(variable).pipe(Config.option, Config.map(Option.filter((text) => text.trim() !== "")))

const declared: Array<Setting<unknown>> = []
/** All of them, in the order of documentation. */
export const all: ReadonlyArray<Setting<unknown>> = declared

const declare = <A, B, I extends string>(
  variable: string,
  {
    keepsSpaces = false,
    schema,
    secret = false,
    ...texts
  }: Declaration<A, I> & Pick<Setting<B>, "example" | "fallback">,
  read: (decode: (text: string) => Either.Either<A, ConfigError.ConfigError>) => Config.Config<B>,
): Setting<B> => {
  const decode = Schema.decodeUnknownEither(schema)
  const config = read((text) =>
    Either.mapLeft(decode(keepsSpaces ? text : text.trim()), (error) => {
      const shown = secret ? "" : ` ${JSON.stringify(text)}`
      return ConfigError.InvalidData(
        [variable],
        `${variable}${shown}: ${describeIssues(error)}. Example: ${variable}=${texts.example}`,
      )
    }),
  )
  const setting = Object.assign(config, { variable, secret, ...texts })
  declared.push(setting)
  return setting
}

/** A variable with a default, which is its example too. An empty value counts as unset. */
const withDefault = <A, I extends string>(
  variable: string,
  declaration: Declaration<A, I> & { readonly fallback: string; readonly example?: string },
) =>
  declare(variable, { example: declaration.fallback, ...declaration }, (decode) =>
    Config.mapOrFail(given(variable), (text) => decode(Option.getOrElse(text, () => declaration.fallback))),
  )

/** A variable that may be left out. */
const optional = <A, I extends string>(
  variable: string,
  declaration: Declaration<A, I> & { readonly example: string },
) =>
  declare(variable, declaration, (decode) =>
    Config.mapOrFail(
      given(variable),
      Option.match({
        onNone: () => Either.right(Option.none<A>()),
        onSome: (text) => Either.map(decode(text), Option.some),
      }),
    ),
  )

const number = (accepts: (n: number) => boolean, message: string) =>
  Schema.NumberFromString.pipe(
    Schema.annotations({ message: () => message }),
    Schema.filter((n) => (Number.isFinite(n) && accepts(n)) || message),
  )
const positive = number((n) => n > 0, "must be a number greater than 0")
const notNegative = number((n) => n >= 0, "must be a number, 0 or greater")
const integer = (least: number, most = Number.MAX_SAFE_INTEGER) =>
  number(
    (n) => Number.isInteger(n) && n >= least && n <= most,
    most === Number.MAX_SAFE_INTEGER
      ? `must be an integer, ${least} or greater`
      : `must be an integer from ${least} to ${most}`,
  )
const port = integer(0, 65_535)
const oneOf = <const Values extends ReadonlyArray<string>>(...values: Values) =>
  Schema.Literal(...values).annotations({
    message: () => ({ message: `must be one of ${values.join(", ")}`, override: true }),
  })
const boolean = Schema.transform(oneOf("true", "false", "1", "0"), Schema.Boolean, {
  strict: true,
  decode: (text) => text === "true" || text === "1",
  encode: (value) => (value ? "true" : "false"),
})
const seconds = Schema.transform(positive, Schema.DurationFromSelf, {
  strict: true,
  decode: Duration.seconds,
  encode: Duration.toSeconds,
})
const milliseconds = Schema.transform(integer(1), Schema.DurationFromSelf, {
  strict: true,
  decode: Duration.millis,
  encode: Duration.toMillis,
})
/** Several hosts, as MongoDB has them, are no URL to the URL parser. */
const url = (...protocols: ReadonlyArray<string>) =>
  Schema.String.pipe(
    Schema.filter(
      (text) =>
        (protocols.some((name) => text.startsWith(`${name}//`) && text.length > name.length + 2) &&
          (URL.canParse(text) || text.startsWith("mongodb"))) ||
        `must be a URL that starts with ${protocols.map((name) => `${name}//`).join(" or ")}`,
    ),
  )
const secretOf = (schema: Schema.Schema<string, string>) => Schema.Redacted(schema)
const text = Schema.String
const tokens = secretOf(
  Schema.String.pipe(
    Schema.filter(
      (list) =>
        list.split(",").every((token) => /^[!-~]+$/.test(token.trim())) ||
        "must be tokens of printable ASCII without spaces, separated by commas",
    ),
  ),
)

export const RABBITMQ_DSN = optional("RABBITMQ_DSN", {
  meaning:
    "RabbitMQ server; set together with MYSQL_URL and MONGODB_URL, or none of them for the embedded stack",
  example: "amqp://guest:guest@127.0.0.1:5672",
  schema: secretOf(url("amqp:", "amqps:")),
  secret: true,
})
export const RABBITMQ_MANAGEMENT_URL = optional("RABBITMQ_MANAGEMENT_URL", {
  meaning:
    "RabbitMQ's management API, for rates; default: port 15672 (15671 with amqps) of RABBITMQ_DSN's host, with its user",
  example: "http://127.0.0.1:15672",
  schema: secretOf(url("http:", "https:")),
  secret: true,
})
export const MYSQL_URL = optional("MYSQL_URL", {
  meaning: "MySQL 8 or MariaDB 10.6+ database of the interaction log",
  example: "mysql://user:password@127.0.0.1:3306/user_embeddings",
  schema: secretOf(url("mysql:", "mariadb:")),
  secret: true,
})
export const MONGODB_URL = optional("MONGODB_URL", {
  meaning: "MongoDB server of the embeddings",
  example: "mongodb://127.0.0.1:27017",
  schema: secretOf(url("mongodb:", "mongodb+srv:")),
  secret: true,
})
export const MONGODB_DATABASE = withDefault("MONGODB_DATABASE", {
  meaning: "Name of the MongoDB database",
  fallback: "user_embeddings",
  schema: text,
})
export const DATA_DIR = withDefault("DATA_DIR", {
  meaning: "Folder of the embedded stack's files",
  fallback: "./data",
  schema: text,
})
export const OPENAI_API_KEY = optional("OPENAI_API_KEY", {
  meaning: "Key of the OpenAI service; unset = phrases are embedded locally",
  example: "sk-your-key",
  schema: secretOf(
    Schema.String.pipe(
      Schema.pattern(/^[!-~]+$/, { message: () => "must be printable ASCII without spaces" }),
    ),
  ),
  secret: true,
})
export const OPENAI_BASE_URL = withDefault("OPENAI_BASE_URL", {
  meaning: "Address of the OpenAI service or of one that speaks its protocol",
  fallback: "https://api.openai.com/v1",
  schema: url("http:", "https:"),
})
export const OPENAI_EMBEDDING_MODEL = withDefault("OPENAI_EMBEDDING_MODEL", {
  meaning: "Embedding model of the OpenAI service",
  fallback: "text-embedding-3-small",
  schema: text,
})
export const OPENAI_REQUESTS_AT_ONCE = withDefault("OPENAI_REQUESTS_AT_ONCE", {
  meaning: "Requests for embeddings that a process has open at once; fewer while the service refuses them",
  fallback: "4",
  schema: integer(1, 64),
})
export const OPENAI_PHRASES_PER_REQUEST = withDefault("OPENAI_PHRASES_PER_REQUEST", {
  meaning: "Phrases of one request for embeddings, at the most",
  fallback: "2048",
  schema: integer(1, 2048),
})
export const OPENAI_QUERY_PREFIX = optional("OPENAI_QUERY_PREFIX", {
  meaning:
    "Text before each search phrase, for models that want one; it names another vector space, so import products and rebuild after a change",
  example: '"query: "',
  schema: text,
  keepsSpaces: true,
})
export const OPENAI_DOCUMENT_PREFIX = optional("OPENAI_DOCUMENT_PREFIX", {
  meaning: "The same before each text of a product",
  example: '"passage: "',
  schema: text,
  keepsSpaces: true,
})
export const OPENAI_SEND_DIMENSIONS = optional("OPENAI_SEND_DIMENSIONS", {
  meaning:
    "Whether requests ask for EMBEDDING_DIMENSIONS; default true for text-embedding-3-*, false for other models",
  example: "true",
  schema: boolean,
})
export const EMBEDDING_DIMENSIONS = withDefault("EMBEDDING_DIMENSIONS", {
  meaning: "Dimensions of every vector",
  fallback: "1536",
  schema: integer(1, 16_384),
})
export const EMBEDDING_DECAY_LAMBDA = withDefault("EMBEDDING_DECAY_LAMBDA", {
  meaning: "Decay of old interactions, per day: exp(-λ · days); 0.023 halves them in 30 days",
  fallback: "0.023",
  schema: notNegative,
})
export const EMBEDDING_HISTORY = withDefault("EMBEDDING_HISTORY", {
  meaning:
    "cumulative = decayed weighted mean of all interactions, whatever their order; recency = each one counts fully against all before",
  fallback: "cumulative",
  schema: oneOf(...History.literals),
})
/** The weights of the built-in event types, in the order of their table. */
export const eventTypeWeights = builtInEventTypes.map(({ route, variable, weight }) =>
  withDefault(variable, {
    meaning: `Weight of a ${route}`,
    fallback: String(weight),
    schema: positive,
  }),
)
export const EVENT_WEIGHTS = optional("EVENT_WEIGHTS", {
  meaning:
    "Event types of your own, all about products, and other weights of the built-in ones: name:weight, comma-separated; -1 to 1, not 0. A negative weight moves taste away. The same for every process",
  example: "add_to_cart:0.8,wishlist:0.6,dislike:-0.4",
  schema: Schema.transformOrFail(Schema.String, Schema.Record({ key: Schema.String, value: Schema.Number }), {
    strict: true,
    decode: (text, _, ast) =>
      Either.mapLeft(parseWeights(text), (problem) => new ParseResult.Type(ast, text, problem)),
    encode: (weights) =>
      ParseResult.succeed(
        Object.entries(weights)
          .map(([name, weight]) => `${name}:${weight}`)
          .join(","),
      ),
  }),
})
export const EMBEDDING_STORAGE = withDefault("EMBEDDING_STORAGE", {
  meaning:
    "How MongoDB keeps embeddings: vector = BSON float32 vector, array = array of doubles (3 times larger)",
  fallback: "vector",
  schema: oneOf("vector", "array"),
})
export const EMBEDDING_BATCH_ENABLED = withDefault("EMBEDDING_BATCH_ENABLED", {
  meaning: "true = interactions of one user that arrive within EMBEDDING_BATCH_WINDOW become one update",
  fallback: "false",
  schema: boolean,
})
export const EMBEDDING_BATCH_WINDOW = withDefault("EMBEDDING_BATCH_WINDOW", {
  meaning:
    "Length of that window in seconds; a worker that holds WORKER_PREFETCH messages does not wait for its end",
  fallback: "5",
  schema: seconds,
})
export const EMBEDDING_CACHE_TTL = withDefault("EMBEDDING_CACHE_TTL", {
  meaning: "How long phrase vectors stay in memory, in seconds",
  fallback: "3600",
  schema: seconds,
})
export const PHRASE_TTL_DAYS = withDefault("PHRASE_TTL_DAYS", {
  meaning: "How long stored phrase vectors are kept after their last use, in days",
  fallback: "30",
  schema: positive,
})
export const POPULARITY_WEIGHT = withDefault("POPULARITY_WEIGHT", {
  meaning: "Share of popularity in a recommendation's score",
  fallback: "0.2",
  schema: notNegative,
})
export const RATE_LIMIT_PER_USER = withDefault("RATE_LIMIT_PER_USER", {
  meaning: "Interactions accepted per user and second; 0 = no limit",
  fallback: "100",
  schema: integer(0),
})
export const WORKER_MAX_RETRIES = withDefault("WORKER_MAX_RETRIES", {
  meaning: "Retries before a message becomes a dead letter",
  fallback: "5",
  schema: integer(0, 20),
})
export const WORKER_RETRY_DELAY = withDefault("WORKER_RETRY_DELAY", {
  meaning: "Delay of the first retry in ms; it doubles up to 60 s",
  fallback: "5000",
  schema: milliseconds,
})
export const WORKER_PREFETCH = withDefault("WORKER_PREFETCH", {
  meaning: "Messages that a worker holds unacknowledged",
  fallback: "8000",
  schema: integer(1, 65_535),
})
export const EVENTS_PER_MESSAGE = withDefault("EVENTS_PER_MESSAGE", {
  meaning:
    "Interactions of one type that share a RabbitMQ message under load, at most; the same for every process. Queue depths count messages then",
  example: "50",
  fallback: "1",
  schema: integer(1, 500),
})
export const WORKER_NICENESS = withDefault("WORKER_NICENESS", {
  meaning:
    "Scheduling priority of a worker, 0 to 19: it yields to servers on its machine, and batches grow meanwhile",
  fallback: "10",
  schema: integer(0, 19),
})
export const WORKER_PORT = withDefault("WORKER_PORT", {
  meaning: "Port of a worker's /livez, /readyz and /metrics",
  fallback: "9464",
  schema: port,
})
export const API_HOST = optional("API_HOST", {
  meaning: "Address the API listens on; default 127.0.0.1, or 0.0.0.0 when API_TOKENS is set",
  example: "127.0.0.1",
  schema: text,
})
export const API_PORT = withDefault("API_PORT", {
  meaning: "Port of the API",
  fallback: "3000",
  schema: port,
})
export const API_TOKENS = optional("API_TOKENS", {
  meaning: "Bearer tokens that the API accepts, comma-separated; unset = open to everybody who reaches it",
  example: "token-one,token-two",
  schema: tokens,
  secret: true,
})
export const OTEL_EXPORTER_OTLP_ENDPOINT = optional("OTEL_EXPORTER_OTLP_ENDPOINT", {
  meaning: "OTLP/HTTP endpoint for traces and metrics; unset = none are exported",
  example: "http://127.0.0.1:4318",
  schema: url("http:", "https:"),
})
const protocol = oneOf("http/json", "http/protobuf")
export type OtlpProtocol = typeof protocol.Type
export const OTEL_EXPORTER_OTLP_PROTOCOL = withDefault("OTEL_EXPORTER_OTLP_PROTOCOL", {
  meaning: "How spans are encoded; JSON costs a third of the CPU, protobuf half of the bytes",
  example: "http/protobuf",
  fallback: "http/json",
  schema: protocol,
})
export const OTEL_SERVICE_NAME = optional("OTEL_SERVICE_NAME", {
  meaning:
    "service.name of traces and metrics; default user-embeddings-api, -worker or -relay, else user-embeddings",
  example: "user-embeddings",
  schema: text,
})
const sampler = oneOf(
  "always_on",
  "always_off",
  "traceidratio",
  "parentbased_always_on",
  "parentbased_always_off",
  "parentbased_traceidratio",
)
export type TracesSampler = typeof sampler.Type
export const OTEL_TRACES_SAMPLER = withDefault("OTEL_TRACES_SAMPLER", {
  meaning: "Which traces are exported; parentbased_* follow the decision in a client's traceparent",
  example: "parentbased_traceidratio",
  fallback: "parentbased_always_on",
  schema: sampler,
})
export const OTEL_TRACES_SAMPLER_ARG = optional("OTEL_TRACES_SAMPLER_ARG", {
  meaning: "Share of traces that a *traceidratio sampler exports, 0 to 1",
  example: "0.01",
  schema: number((n) => n >= 0 && n <= 1, "must be a number from 0 to 1"),
})
export const OTEL_BSP_MAX_QUEUE_SIZE = withDefault("OTEL_BSP_MAX_QUEUE_SIZE", {
  meaning: "Ended spans that may wait to be sent, more are dropped; a large batch ends thousands at once",
  fallback: "32768",
  schema: integer(1),
})
export const OTEL_BSP_MAX_EXPORT_BATCH_SIZE = withDefault("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", {
  meaning: "Spans of one request to the OTLP endpoint",
  fallback: "2048",
  schema: integer(1),
})
export const OTEL_METRIC_EXPORT_INTERVAL = withDefault("OTEL_METRIC_EXPORT_INTERVAL", {
  meaning: "How often metrics are sent to the OTLP endpoint, in ms",
  fallback: "60000",
  schema: milliseconds,
})
export const TRACES_URL = optional("TRACES_URL", {
  meaning: "Address of Jaeger's pages, which the page at / links to; unset = no links",
  example: "http://127.0.0.1:16686",
  schema: url("http:", "https:").pipe((address) =>
    Schema.transform(address, Schema.String, {
      strict: true,
      decode: (text) => text.replace(/\/+$/, ""),
      encode: (text) => text,
    }),
  ),
})
export const LOG_LEVEL = optional("LOG_LEVEL", {
  meaning: "Least level that is logged; default info, and warn for commands that answer and end",
  example: "info",
  schema: oneOf("debug", "info", "warn", "error"),
})
export const LOG_FORMAT = optional("LOG_FORMAT", {
  meaning: "json = one object a line, pretty = for people; default pretty on a terminal",
  example: "json",
  schema: oneOf("json", "pretty"),
})
export const NO_COLOR = optional("NO_COLOR", {
  meaning: "Anything: no colours, not on a terminal either",
  example: "1",
  schema: Schema.String,
})

/** The variable as a line of `.env.example`. */
export const toEnvExample = (setting: Setting<unknown>): string =>
  `# ${setting.meaning}\n# ${setting.variable}=${setting.fallback ?? setting.example}\n`

/** What `config` shows for a value: secrets never appear. */
export const display = (setting: Setting<unknown>, value: string): string =>
  setting.secret ? String(Redacted.make(value)) : value
