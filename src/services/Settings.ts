/**
 * Every environment variable, declared once: typed, with default, meaning and example. Adapters read them in
 * their `layerConfig`; `.env.example` and the command `config` are made from this list.
 */
import { readFileSync } from "node:fs"
import { Config, ConfigError, Duration, Either, Option, ParseResult, Redacted, Schema } from "effect"
import { parseTokens } from "./AccessTokens.ts"
import { FeedMode } from "./model/EmbeddingChange.ts"
import { builtInEventTypes, parseWeights } from "./model/EventTypes.ts"
import { describeIssues } from "./model/Interaction.ts"
import { History } from "./model/UserEmbedding.ts"
import { nodeUrls } from "./NodeUrls.ts"

export interface Setting<A> extends Config.Config<A> {
  readonly variable: string
  readonly meaning: string
  /** A valid value, shown when a bad one stops the start. */
  readonly example: string
  /** The default as it would be written in the environment; absent when there is none. */
  readonly fallback?: string
  readonly secret: boolean
}

type Texts<Required extends "example" | "fallback"> = Pick<Setting<unknown>, "meaning" | Required> &
  Partial<Pick<Setting<unknown>, "example" | "fallback" | "secret">> & {
    /** Spaces at the ends are part of the value. */
    readonly keepsSpaces?: boolean
  }

/** The text of a variable that is set and not empty. */
export const given = (variable: string) =>
  Config.string(variable).pipe(Config.option, Config.map(Option.filter((text) => text.trim() !== "")))

/** Settings that a file may hold, as Docker and Kubernetes mount secrets: `NAME_FILE` names it. */
export const mayBeFile = ({ secret, variable }: Pick<Setting<unknown>, "secret" | "variable">): boolean =>
  secret || /_(URL|DSN|ENDPOINT)$/.test(variable)

const readFile = (variable: string, path: string): Either.Either<string, ConfigError.ConfigError> => {
  const refused = (problem: string) =>
    Either.left(ConfigError.InvalidData([variable], `${variable} ${JSON.stringify(path)}: ${problem}`))
  try {
    const text = readFileSync(path, "utf8").replace(/\r?\n$/, "")
    return text.trim() === "" ? refused("the file is empty") : Either.right(text)
  } catch (error) {
    return refused(`the file cannot be read: ${error instanceof Error ? error.message : error}`)
  }
}

/** The text of a variable, or of the file that `NAME_FILE` names. */
const givenOrFile = (variable: string) =>
  Config.zip(given(variable), given(`${variable}_FILE`)).pipe(
    Config.mapOrFail(([text, path]) => {
      if (Option.isNone(path)) return Either.right(text)
      if (Option.isNone(text)) return Either.map(readFile(`${variable}_FILE`, path.value.trim()), Option.some)
      return Either.left(
        ConfigError.InvalidData(
          [variable],
          `${variable} and ${variable}_FILE are both set: unset one of them`,
        ),
      )
    }),
  )

/** As a setting reads it. */
export const textOf = (setting: Pick<Setting<unknown>, "secret" | "variable">) =>
  mayBeFile(setting) ? givenOrFile(setting.variable) : given(setting.variable)

const declared: Array<Setting<unknown>> = []
/** All of them, in the order of documentation. */
export const all: ReadonlyArray<Setting<unknown>> = declared

const declare = <A, B, I extends string>(
  variable: string,
  schema: Schema.Schema<A, I>,
  { keepsSpaces = false, secret = false, ...texts }: Texts<"example">,
  read: (
    text: Config.Config<Option.Option<string>>,
    decode: (text: string) => Either.Either<A, ConfigError.ConfigError>,
  ) => Config.Config<B>,
): Setting<B> => {
  const decode = Schema.decodeUnknownEither(schema)
  const config = read(textOf({ variable, secret }), (text) =>
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
  schema: Schema.Schema<A, I>,
  texts: Texts<"fallback"> & { readonly fallback: string },
) =>
  declare(variable, schema, { example: texts.fallback, ...texts }, (given, decode) =>
    Config.mapOrFail(given, (text) => decode(Option.getOrElse(text, () => texts.fallback))),
  )

/** A variable that may be left out. */
const optional = <A, I extends string>(
  variable: string,
  schema: Schema.Schema<A, I>,
  texts: Texts<"example">,
) =>
  declare(variable, schema, texts, (given, decode) =>
    Config.mapOrFail(
      given,
      Option.match({
        onNone: () => Either.right(Option.none<A>()),
        onSome: (text) => Either.map(decode(text), Option.some),
      }),
    ),
  )

/** `scheme://user[:password]@`, once for each node of a list. */
const userInUrl = /(:\/\/[^:@/,?#]+)(?::[^@/,]*)?@/g

/** A URL whose password may come from a variable of its own, as it is: a URL needs `@`, `/` and `:` encoded. */
const optionalUrl = (
  variable: string,
  schema: Schema.Schema<string, string>,
  passwordVariable: string,
  texts: Pick<Texts<"example">, "meaning" | "example">,
) =>
  declare(variable, schema, { ...texts, secret: true }, (given, decode) =>
    Config.zip(given, givenOrFile(passwordVariable)).pipe(
      Config.mapOrFail(([url, password]) =>
        Option.match(url, {
          onNone: () => Either.right(Option.none<Redacted.Redacted>()),
          onSome: (text) => {
            const userOf = (_: string, user: string) =>
              `${user}:${encodeURIComponent(Option.getOrElse(password, () => ""))}@`
            const complete = Option.isNone(password) ? text : text.replace(userInUrl, userOf)
            return Either.map(decode(complete), (valid) => Option.some(Redacted.make(valid)))
          },
        }),
      ),
    ),
  )

const number = (accepts: (n: number) => boolean, message: string) =>
  Schema.NumberFromString.pipe(
    Schema.annotations({ message: () => message }),
    Schema.filter((n) => (Number.isFinite(n) && accepts(n)) || message),
  )
/** Every number has a greatest value: a timer, a weight or a memory beyond it would fail in a way that is hard to see. */
const positive = (most: number) =>
  number((n) => n > 0 && n <= most, `must be a number greater than 0, and at most ${most}`)
const notNegative = (most: number) => number((n) => n >= 0 && n <= most, `must be a number from 0 to ${most}`)
const integer = (least: number, most: number) =>
  number((n) => Number.isInteger(n) && n >= least && n <= most, `must be an integer from ${least} to ${most}`)
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
const seconds = (most: number) =>
  Schema.transform(positive(most), Schema.DurationFromSelf, {
    strict: true,
    decode: Duration.seconds,
    encode: Duration.toSeconds,
  })
/** Longer than any request waits for a server. Bun allows no more. */
const idleSeconds = Schema.transform(integer(30, 255), Schema.DurationFromSelf, {
  strict: true,
  decode: Duration.seconds,
  encode: Duration.toSeconds,
})
const milliseconds = (most: number) =>
  Schema.transform(integer(1, most), Schema.DurationFromSelf, {
    strict: true,
    decode: Duration.millis,
    encode: Duration.toMillis,
  })
/** Drivers decode user, password and path. */
const isDecodable = (text: string): boolean => {
  try {
    decodeURIComponent(text)
    return true
  } catch {
    return false
  }
}
const percentDecodable = Schema.String.pipe(
  Schema.filter(
    (text) =>
      isDecodable(text) ||
      "has a % that begins no percent-encoded character: write it as %25, or put the password into the variable for it",
  ),
)
/** Several hosts, as MongoDB has them, are no URL to the URL parser. */
const url = (...protocols: ReadonlyArray<string>) =>
  percentDecodable.pipe(
    Schema.filter(
      (text) =>
        (protocols.some((name) => text.startsWith(`${name}//`) && text.length > name.length + 2) &&
          (URL.canParse(text) || text.startsWith("mongodb"))) ||
        `must be a URL that starts with ${protocols.map((name) => `${name}//`).join(" or ")}`,
    ),
  )
/** One URL, or those of several nodes. */
const urls = (...protocols: ReadonlyArray<string>) =>
  percentDecodable.pipe(
    Schema.filter((text) =>
      Either.match(nodeUrls(text, protocols), { onLeft: (problem) => problem, onRight: () => true }),
    ),
  )
const secretOf = (schema: Schema.Schema<string, string>) => Schema.Redacted(schema)
const text = Schema.String
const tokens = secretOf(
  Schema.String.pipe(
    Schema.filter((list) =>
      Either.match(parseTokens(list), { onLeft: (problem) => problem, onRight: () => true }),
    ),
  ),
)
const originsProblem = (list: ReadonlyArray<string>): string | undefined =>
  list.every(
    (one) => one === "*" || (/^https?:[^*]+$/.test(one) && URL.canParse(one) && new URL(one).origin === one),
  )
    ? undefined
    : "must be * or origins as https://shop.example, without a path, separated by commas"
const origins = Schema.transform(Schema.String, Schema.Array(Schema.String), {
  strict: true,
  decode: (list) => list.split(",").map((one) => one.trim()),
  encode: (list) => list.join(","),
}).pipe(Schema.filter((list) => originsProblem(list) ?? true))

export const amqpProtocols = ["amqp:", "amqps:"]
export const RABBITMQ_DSN = optionalUrl("RABBITMQ_DSN", urls(...amqpProtocols), "RABBITMQ_PASSWORD", {
  meaning:
    "RabbitMQ server, or the nodes of a cluster: amqp://u:p@a,amqp://u:p@b or amqp://u:p@a,b/vhost; set together with MYSQL_URL and MONGODB_URL, or none of them for the embedded stack",
  example: "amqp://guest:guest@127.0.0.1:5672",
})
const password = (variable: string, urlVariable: string) =>
  optional(variable, secretOf(Schema.String), {
    meaning: `Password of the user in ${urlVariable}, as it is; it replaces one in the URL, which must be percent-encoded`,
    example: "p@ss/word",
    secret: true,
  })
export const RABBITMQ_PASSWORD = password("RABBITMQ_PASSWORD", "RABBITMQ_DSN")
export const managementProtocols = ["http:", "https:"]
export const RABBITMQ_MANAGEMENT_URL = optional(
  "RABBITMQ_MANAGEMENT_URL",
  secretOf(urls(...managementProtocols)),
  {
    meaning:
      "RabbitMQ's management API, for rates, bindings and policies; several nodes as in RABBITMQ_DSN; default: port 15672 (15671 with amqps) of RABBITMQ_DSN's hosts, with its user",
    example: "http://127.0.0.1:15672",
    secret: true,
  },
)
export const MYSQL_URL = optionalUrl("MYSQL_URL", url("mysql:", "mariadb:"), "MYSQL_PASSWORD", {
  meaning:
    "MySQL 8.0 to 9.7 or MariaDB 10.6 to 11.8 database of the interaction log; ?ssl-mode=VERIFY_IDENTITY for TLS",
  example: "mysql://user:password@127.0.0.1:3306/user_embeddings",
})
export const MYSQL_PASSWORD = password("MYSQL_PASSWORD", "MYSQL_URL")
export const MONGODB_URL = optionalUrl("MONGODB_URL", url("mongodb:", "mongodb+srv:"), "MONGODB_PASSWORD", {
  meaning: "MongoDB server of the embeddings",
  example: "mongodb://127.0.0.1:27017",
})
export const MONGODB_PASSWORD = password("MONGODB_PASSWORD", "MONGODB_URL")
export const MONGODB_DATABASE = withDefault("MONGODB_DATABASE", text, {
  meaning: "Name of the MongoDB database",
  fallback: "user_embeddings",
})
export const DATA_DIR = withDefault("DATA_DIR", text, {
  meaning: "Folder of the embedded stack's files",
  fallback: "./data",
})
const apiKey = secretOf(
  Schema.String.pipe(Schema.pattern(/^[!-~]+$/, { message: () => "must be printable ASCII without spaces" })),
)
export const OPENAI_API_KEY = optional("OPENAI_API_KEY", apiKey, {
  meaning:
    "Key of the OpenAI service; unset = phrases are embedded locally if EMBEDDING_DIMENSIONS is a multiple of 384, else not at all",
  example: "sk-your-key",
  secret: true,
})
export const OPENAI_BASE_URL = withDefault("OPENAI_BASE_URL", url("http:", "https:"), {
  meaning: "Address of the OpenAI service or of one that speaks its protocol",
  fallback: "https://api.openai.com/v1",
})
export const OPENAI_EMBEDDING_MODEL = withDefault("OPENAI_EMBEDDING_MODEL", text, {
  meaning: "Embedding model of the OpenAI service",
  fallback: "text-embedding-3-small",
})
export const OPENAI_REQUESTS_AT_ONCE = withDefault("OPENAI_REQUESTS_AT_ONCE", integer(1, 64), {
  meaning: "Requests for embeddings that a process has open at once; fewer while the service refuses them",
  fallback: "4",
})
export const OPENAI_PHRASES_PER_REQUEST = withDefault("OPENAI_PHRASES_PER_REQUEST", integer(1, 2048), {
  meaning: "Phrases of one request for embeddings, at the most",
  fallback: "2048",
})
export const OPENAI_QUERY_PREFIX = optional("OPENAI_QUERY_PREFIX", text, {
  meaning:
    "Text before each search phrase, for models that want one; it names another vector space, so import products and rebuild after a change",
  example: '"query: "',
  keepsSpaces: true,
})
export const OPENAI_DOCUMENT_PREFIX = optional("OPENAI_DOCUMENT_PREFIX", text, {
  meaning: "The same before each text of a product",
  example: '"passage: "',
  keepsSpaces: true,
})
export const OPENAI_SEND_DIMENSIONS = optional("OPENAI_SEND_DIMENSIONS", boolean, {
  meaning:
    "Whether requests ask for EMBEDDING_DIMENSIONS; default true for text-embedding-3-*, false for other models",
  example: "true",
})
export const EMBEDDING_DIMENSIONS = withDefault("EMBEDDING_DIMENSIONS", integer(1, 16_384), {
  meaning: "Dimensions of every vector",
  fallback: "1536",
})
export const EMBEDDING_DECAY_LAMBDA = withDefault("EMBEDDING_DECAY_LAMBDA", notNegative(100), {
  meaning: "Decay of old interactions, per day: exp(-λ · days); 0.023 halves them in 30 days",
  fallback: "0.023",
})
export const EMBEDDING_HISTORY = withDefault("EMBEDDING_HISTORY", oneOf(...History.literals), {
  meaning:
    "cumulative = decayed weighted mean of all interactions, whatever their order; recency = each one counts fully against all before",
  fallback: "cumulative",
})
/** The weights of the built-in event types, in the order of their table. */
export const eventTypeWeights = builtInEventTypes.map(({ route, variable, weight }) =>
  withDefault(variable, positive(1000), { meaning: `Weight of a ${route}`, fallback: String(weight) }),
)
const eventWeights = Schema.transformOrFail(
  Schema.String,
  Schema.Record({ key: Schema.String, value: Schema.Number }),
  {
    strict: true,
    decode: (text, _, ast) =>
      Either.mapLeft(parseWeights(text), (problem) => new ParseResult.Type(ast, text, problem)),
    encode: (weights) =>
      ParseResult.succeed(
        Object.entries(weights)
          .map(([name, weight]) => `${name}:${weight}`)
          .join(","),
      ),
  },
)
export const EVENT_WEIGHTS = optional("EVENT_WEIGHTS", eventWeights, {
  meaning:
    "Event types of your own, all about products, and other weights of the built-in ones: name:weight, comma-separated; -1 to 1, not 0. A negative weight moves taste away. The same for every process",
  example: "add_to_cart:0.8,wishlist:0.6,dislike:-0.4",
})
export const EMBEDDING_STORAGE = withDefault("EMBEDDING_STORAGE", oneOf("vector", "array"), {
  meaning:
    "How MongoDB keeps embeddings: vector = BSON float32 vector, array = array of doubles (3 times larger)",
  fallback: "vector",
})
export const EMBEDDING_FEED = withDefault("EMBEDDING_FEED", oneOf(...FeedMode.literals), {
  meaning:
    "What is announced of each change of a user embedding: off = nothing, ids = user and version, vectors = the vector too. The same for every process",
  example: "ids",
  fallback: "off",
})
export const EMBEDDING_BATCH_ENABLED = withDefault("EMBEDDING_BATCH_ENABLED", boolean, {
  meaning: "true = interactions of one user that arrive within EMBEDDING_BATCH_WINDOW become one update",
  fallback: "false",
})
export const EMBEDDING_BATCH_WINDOW = withDefault("EMBEDDING_BATCH_WINDOW", seconds(300), {
  meaning:
    "Length of that window in seconds; a worker that holds WORKER_PREFETCH messages does not wait for its end",
  fallback: "5",
})
export const EMBEDDING_CACHE_TTL = withDefault("EMBEDDING_CACHE_TTL", seconds(2_592_000), {
  meaning: "How long phrase vectors stay in memory, in seconds",
  fallback: "3600",
})
export const PHRASE_TTL_DAYS = withDefault("PHRASE_TTL_DAYS", positive(10_000), {
  meaning: "How long stored phrase vectors are kept after their last use, in days",
  fallback: "30",
})
export const POPULARITY_WEIGHT = withDefault("POPULARITY_WEIGHT", notNegative(100), {
  meaning: "Share of popularity in a recommendation's score",
  fallback: "0.2",
})
export const TOGETHER_WEIGHT = withDefault("TOGETHER_WEIGHT", notNegative(100), {
  meaning:
    "Share of `together` in a recommendation's score: products that people interact with together with the user's newest ones. 0 = they are not counted either; the same for every process",
  fallback: "1",
})
export const AGAIN_WEIGHT = withDefault("AGAIN_WEIGHT", notNegative(100), {
  meaning:
    "Share of `again` in a recommendation's score: how often and how recently the user bought the product. Only with exclude=none",
  fallback: "1",
})
export const RATE_LIMIT_PER_USER = withDefault("RATE_LIMIT_PER_USER", integer(0, 1_000_000), {
  meaning: "Interactions accepted per user and second; 0 = no limit",
  fallback: "100",
})
export const WORKER_MAX_RETRIES = withDefault("WORKER_MAX_RETRIES", integer(0, 20), {
  meaning: "Retries before a message becomes a dead letter",
  fallback: "5",
})
export const WORKER_RETRY_DELAY = withDefault("WORKER_RETRY_DELAY", milliseconds(60_000), {
  meaning: "Delay of the first retry in ms; it doubles up to 60 s",
  fallback: "5000",
})
export const WORKER_PREFETCH = withDefault("WORKER_PREFETCH", integer(1, 65_535), {
  meaning: "Messages that a worker holds unacknowledged",
  fallback: "8000",
})
export const EVENTS_PER_MESSAGE = withDefault("EVENTS_PER_MESSAGE", integer(1, 500), {
  meaning:
    "Interactions of one type that share a RabbitMQ message under load, at most; the same for every process. Queue depths count messages then",
  example: "50",
  fallback: "1",
})
export const RABBITMQ_PARTITIONS = withDefault("RABBITMQ_PARTITIONS", integer(1, 64), {
  meaning:
    "Queues over which the update messages are spread by user; the same for every process. More than 1 needs RabbitMQ's plugin rabbitmq_consistent_hash_exchange",
  example: "4",
  fallback: "1",
})
const partitions = Schema.transform(
  Schema.String.pipe(
    Schema.filter((list) => /^\d+(\s*,\s*\d+)*$/.test(list) || "must be numbers from 0, separated by commas"),
  ),
  Schema.Array(Schema.Number),
  {
    strict: true,
    decode: (list) => [...new Set(list.split(",").map(Number))],
    encode: (numbers) => numbers.join(","),
  },
)
export const WORKER_PARTITIONS = optional("WORKER_PARTITIONS", partitions, {
  meaning: "Partitions that a worker consumes, from 0 to RABBITMQ_PARTITIONS - 1; unset = all",
  example: "0,2",
})
/** The `…_INTERVAL` of a lane whose items share work. */
const interval = (variable: string, round: string, fallback: number) =>
  withDefault(variable, integer(0, 1_000), {
    meaning: `Minimum time between the beginnings of two ${round} in ms; the first event after a quiet moment does not wait. 0 = no wait`,
    fallback: String(fallback),
  })
export const COMMIT_INTERVAL = interval("COMMIT_INTERVAL", "commits", 3)
export const PUBLISH_INTERVAL = interval("PUBLISH_INTERVAL", "publishes of committed interactions", 15)
export const MARK_INTERVAL = interval("MARK_INTERVAL", "statements that mark rows as published", 500)
export const WORKER_INTERVAL = interval("WORKER_INTERVAL", "batches of a worker", 50)
export const WORKER_NICENESS = withDefault("WORKER_NICENESS", integer(0, 19), {
  meaning:
    "Scheduling priority of a worker, 0 to 19: it yields to servers on its machine, and batches grow meanwhile",
  fallback: "10",
})
export const WORKER_PORT = withDefault("WORKER_PORT", port, {
  meaning: "Port of a worker's /livez, /readyz and /metrics",
  fallback: "9464",
})
export const API_HOST = optional("API_HOST", text, {
  meaning: "Address the API listens on; default 127.0.0.1, or 0.0.0.0 when API_TOKENS is set",
  example: "127.0.0.1",
})
export const API_PORT = withDefault("API_PORT", port, { meaning: "Port of the API", fallback: "3000" })
export const API_IDLE_TIMEOUT = withDefault("API_IDLE_TIMEOUT", idleSeconds, {
  meaning:
    "Seconds after which the API closes an idle connection; longer than a load balancer in front of it waits",
  fallback: "75",
})
export const API_TOKENS = optional("API_TOKENS", tokens, {
  meaning:
    "Bearer tokens that the API accepts, comma-separated: secret or scope=secret with scope write, person, read, catalogue, operate or several joined by +; unset = open to everybody who reaches it",
  example: "token-one,write=token-two,read+operate=token-three",
  secret: true,
})
export const API_CORS_ORIGINS = optional("API_CORS_ORIGINS", origins, {
  meaning:
    "Origins whose web pages may call the API, comma-separated, or * for all (only with API_TOKENS); unset = none",
  example: "https://shop.example,https://www.shop.example",
})
export const OTEL_EXPORTER_OTLP_ENDPOINT = optional("OTEL_EXPORTER_OTLP_ENDPOINT", url("http:", "https:"), {
  meaning: "OTLP endpoint for traces and metrics; unset = none are exported",
  example: "http://127.0.0.1:4318",
})
const exporter = oneOf("otlp", "none")
export const OTEL_SDK_DISABLED = withDefault("OTEL_SDK_DISABLED", boolean, {
  meaning: "true = neither traces nor metrics are exported, whatever the other variables say",
  fallback: "false",
})
export const OTEL_TRACES_EXPORTER = withDefault("OTEL_TRACES_EXPORTER", exporter, {
  meaning: "otlp = traces are sent to the OTLP endpoint, none = they are not",
  fallback: "otlp",
})
export const OTEL_METRICS_EXPORTER = withDefault("OTEL_METRICS_EXPORTER", exporter, {
  meaning: "otlp = metrics are sent to the OTLP endpoint, none = they are not; /metrics has them in any case",
  fallback: "otlp",
})
const protocol = oneOf("http/json", "http/protobuf", "grpc")
export type OtlpProtocol = typeof protocol.Type
export const OTEL_EXPORTER_OTLP_PROTOCOL = withDefault("OTEL_EXPORTER_OTLP_PROTOCOL", protocol, {
  meaning:
    "How traces and metrics are sent; JSON costs a third of the CPU, protobuf half of the bytes; grpc is for port 4317",
  example: "http/protobuf",
  fallback: "http/json",
})
export const OTEL_EXPORTER_OTLP_TRACES_PROTOCOL = optional("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol, {
  meaning: "The same for traces alone",
  example: "http/protobuf",
})
export const OTEL_EXPORTER_OTLP_METRICS_PROTOCOL = optional("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", protocol, {
  meaning: "The same for metrics alone",
  example: "http/protobuf",
})
export const OTEL_SERVICE_NAME = optional("OTEL_SERVICE_NAME", text, {
  meaning:
    "service.name of traces and metrics; default user-embeddings-api, -worker or -relay, else user-embeddings",
  example: "user-embeddings",
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
export const OTEL_TRACES_SAMPLER = withDefault("OTEL_TRACES_SAMPLER", sampler, {
  meaning: "Which traces are exported; parentbased_* follow the decision in a client's traceparent",
  example: "parentbased_traceidratio",
  fallback: "parentbased_always_on",
})
export const OTEL_TRACES_SAMPLER_ARG = optional(
  "OTEL_TRACES_SAMPLER_ARG",
  number((n) => n >= 0 && n <= 1, "must be a number from 0 to 1"),
  { meaning: "Share of traces that a *traceidratio sampler exports, 0 to 1", example: "0.01" },
)
export const OTEL_BSP_MAX_QUEUE_SIZE = withDefault("OTEL_BSP_MAX_QUEUE_SIZE", integer(1, 10_000_000), {
  meaning: "Ended spans that may wait to be sent, more are dropped; a large batch ends thousands at once",
  fallback: "32768",
})
export const OTEL_BSP_MAX_EXPORT_BATCH_SIZE = withDefault(
  "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
  integer(1, 10_000_000),
  {
    meaning: "Spans of one request to the OTLP endpoint",
    fallback: "2048",
  },
)
export const OTEL_METRIC_EXPORT_INTERVAL = withDefault(
  "OTEL_METRIC_EXPORT_INTERVAL",
  milliseconds(86_400_000),
  {
    meaning: "How often metrics are sent to the OTLP endpoint, in ms",
    fallback: "60000",
  },
)
const urlWithoutSlash = url("http:", "https:").pipe((address) =>
  Schema.transform(address, Schema.String, {
    strict: true,
    decode: (text) => text.replace(/\/+$/, ""),
    encode: (text) => text,
  }),
)
export const TRACES_URL = optional("TRACES_URL", urlWithoutSlash, {
  meaning: "Address of Jaeger's pages, which the page at / links to; unset = no links",
  example: "http://127.0.0.1:16686",
})
export const LOG_LEVEL = optional("LOG_LEVEL", oneOf("debug", "info", "warn", "error"), {
  meaning: "Least level that is logged; default info, and warn for commands that answer and end",
  example: "info",
})
export const JAEGER_URL = optional("JAEGER_URL", urlWithoutSlash, {
  meaning: "Jaeger's query API, which user-embeddings trace reads; default: TRACES_URL, else port 16686 here",
  example: "http://127.0.0.1:16686",
})
export const LOG_FORMAT = optional("LOG_FORMAT", oneOf("json", "pretty"), {
  meaning: "json = one object a line, pretty = for people; default pretty on a terminal",
  example: "json",
})
export const NO_COLOR = optional("NO_COLOR", Schema.String, {
  meaning: "Anything: no colours, not on a terminal either",
  example: "1",
})

/** The variable as a line of `.env.example`. */
export const toEnvExample = (setting: Setting<unknown>): string =>
  `# ${setting.meaning}\n# ${setting.variable}=${setting.fallback ?? setting.example}\n`

/** `.env.example`. */
export const envExample = `# Every secret and every URL may be in a file instead, which the variable with _FILE at its end names: MYSQL_URL_FILE.

${declared.map(toEnvExample).join("\n")}`

/** What `config` shows for a value: secrets never appear. */
export const display = (setting: Setting<unknown>, value: string): string =>
  setting.secret ? String(Redacted.make(value)) : value
