/** Makes the contracts from the schemas and names of the program itself. */
import { OpenApi } from "@effect/platform"
import { Duration, JSONSchema, type Schema } from "effect"
import { userEmbeddingValidator } from "../../src/layers/mongodb/MongoCollections.ts"
import { quarantineQueueOf } from "../../src/layers/rabbitmq/RabbitTopology.ts"
import { Embedding } from "../../src/services/api/EmbeddingJson.ts"
import { api } from "../../src/services/api/InteractionApi.ts"
import { defaults as eventTypes } from "../../src/services/model/EventTypes.ts"
import { maxMessageBytes, messageVersion, UpdateMessage } from "../../src/services/model/UpdateMessage.ts"
import {
  companySizes,
  exchange,
  failedQueue,
  partitionedRetryQueue,
  partitionQueue,
  partitionsExchange,
  queue,
  retryQueue,
  routingKey,
  setAsideQueue,
} from "../../src/services/ports/InteractionQueue.ts"
import { retryDelays } from "../../src/services/RetryPolicies.ts"

const dialect = "https://json-schema.org/draft/2020-12/schema"

/** The JSON Schema of the encoded form. It allows additional properties, because every reader must ignore them. */
const jsonSchema = <A, I>(schema: Schema.Schema<A, I>, title: string, definitionPath = "#/$defs/") => {
  const definitions: Record<string, JSONSchema.JsonSchema7> = {}
  const root = JSONSchema.fromAST(schema.ast, {
    definitions,
    definitionPath,
    target: "jsonSchema2020-12",
    additionalPropertiesStrategy: "allow",
    topLevelReferenceStrategy: "skip",
  })
  return { title, ...root, $defs: definitions }
}

const updateMessage = jsonSchema(UpdateMessage, "Update message 1.0")

const string = (description: string) => ({ type: "string", description })
const instant = (description: string) => ({
  type: "integer",
  minimum: 0,
  description: `${description}, Unix ms`,
})
const iso = (description: string) => ({ type: "string", format: "date-time", description })
const trace = {
  traceparent: string("W3C trace context of the request that recorded the interaction"),
  tracestate: string("W3C trace state"),
}
const retries = { type: "integer", minimum: 0, description: "failed attempts so far" }
const origin = {
  "x-original-exchange": string("exchange of the first publish"),
  "x-original-routing-key": string("routing key of the first publish"),
}
const failure = {
  "x-error": string("kind of the error, for example schema_violation"),
  "x-error-message": string("at most 1 KiB"),
  "x-first-failed-at": iso("first failure"),
  "x-last-failed-at": iso("last failure"),
  "x-worker": string("the worker that republished it: host and process id"),
}

const logId = {
  type: "integer",
  description:
    "id of the interaction's row in the log; an erasure covers rows by it. Other programs leave it out, and their messages are compared by x-recorded-at",
}
const partition = string(
  "chooses the partition, only with RABBITMQ_PARTITIONS over 1: the user's id, or with message batches the name of a group of users",
)

const headers = {
  update: {
    type: "object",
    required: ["x-retry-count", "x-published-at", "x-recorded-at"],
    properties: {
      ...trace,
      "x-retry-count": retries,
      "x-published-at": instant("published"),
      "x-recorded-at": instant("recorded"),
      "x-log-id": logId,
      "user-id": partition,
    },
  },
  pack: {
    type: "object",
    required: ["x-retry-count", "x-published-at", "x-recorded-at"],
    properties: {
      "x-retry-count": retries,
      "x-published-at": instant("published"),
      "x-recorded-at": string("recorded, Unix ms, one line for each interaction"),
      "x-log-id": string("ids of the rows in the log, one line for each interaction, empty without a row"),
      "user-id": partition,
      "x-traces": string(
        "W3C trace contexts, one line for each interaction: traceparent, then after a space tracestate; an empty line without trace",
      ),
    },
  },
  retry: {
    type: "object",
    required: ["x-retry-count", ...Object.keys(origin), ...Object.keys(failure)],
    properties: { ...trace, "x-retry-count": { ...retries, minimum: 1 }, ...origin, ...failure },
  },
  deadLetter: {
    type: "object",
    required: ["x-dead-letter-id", "x-attempts", ...Object.keys(origin), ...Object.keys(failure)],
    properties: {
      ...trace,
      "x-dead-letter-id": { type: "string", format: "uuid" },
      "x-retry-count": retries,
      "x-attempts": {
        type: "integer",
        minimum: 1,
        description: "6 after five retries, 1 if a retry is useless",
      },
      ...origin,
      ...failure,
    },
  },
} as const

const message = (
  name: keyof typeof headers,
  title: string,
  summary: string,
  payload: object,
  contentType = "application/json",
) => ({
  name,
  title,
  summary,
  contentType,
  headers: headers[name],
  payload,
})
const body = {
  schemaFormat: "application/schema+json;version=draft-2020-12",
  schema: { $ref: "./update-message.schema.json" },
}

const messages = (...names: ReadonlyArray<keyof typeof headers>) =>
  Object.fromEntries(names.map((name) => [name, { $ref: `#/components/messages/${name}` }]))

const queueChannel = (
  address: string,
  description: string,
  ...names: ReadonlyArray<keyof typeof headers>
) => ({
  address,
  description,
  messages: messages(...names),
  bindings: {
    amqp: { is: "queue", queue: { name: address, durable: true, exclusive: false, autoDelete: false } },
  },
})

const delays = [...new Set(retryDelays(Duration.seconds(5), 5))]

const asyncApi = {
  asyncapi: "3.0.0",
  info: {
    title: "user-embeddings: queues and messages",
    version: messageVersion,
    description: `The messages in RabbitMQ. Delivery is at least once; message_id identifies repeated messages. Bodies over ${maxMessageBytes} bytes, other major versions and ids that do not match the content become dead letters at once. The names are those of the default configuration (WORKER_RETRY_DELAY=5000, WORKER_MAX_RETRIES=5).`,
    license: { name: "MIT" },
  },
  defaultContentType: "application/json",
  channels: {
    userEvents: {
      address: "user.embedding.{event_type}",
      description: `Exchange ${exchange} (topic, durable); the queue ${queue} is bound to user.embedding.*. With RABBITMQ_PARTITIONS=N over 1 the exchange ${partitionsExchange} (x-consistent-hash on the header user-id) is bound instead, and spreads the messages over ${partitionQueue(0)} … N-1; their retry queues are named ${partitionedRetryQueue(5000)} …`,
      parameters: {
        event_type: {
          description: "a built-in event type, or one of EVENT_WEIGHTS",
          examples: [...eventTypes.names],
        },
      },
      messages: messages("update", "pack"),
      bindings: {
        amqp: {
          is: "routingKey",
          exchange: { name: exchange, type: "topic", durable: true, autoDelete: false },
        },
      },
    },
    updates: queueChannel(queue, "The main queue, a quorum queue: workers consume it", "update", "pack"),
    waiting: queueChannel(
      setAsideQueue,
      "Searches that wait until the embedding service is back: workers consume it",
      "update",
    ),
    ...Object.fromEntries(
      companySizes.map((size) => [
        size === 1 ? "isolated" : `isolated${size}`,
        queueChannel(
          quarantineQueueOf(size),
          `Quarantine queue: at most ${size} of its messages are handled together`,
          "update",
        ),
      ]),
    ),
    ...Object.fromEntries(
      delays.map((delay) => [
        `retry${delay}`,
        queueChannel(
          retryQueue(delay),
          `Retry queue: returns a message to ${queue} after ${delay / 1_000} s; nothing consumes it`,
          "retry",
        ),
      ]),
    ),
    failed: queueChannel(
      failedQueue,
      `Exchange ${failedQueue} (direct), routing key ${failedQueue}: dead letters, the original bytes`,
      "deadLetter",
    ),
  },
  operations: {
    publishUpdate: {
      action: "send",
      channel: { $ref: "#/channels/userEvents" },
      summary: `The relay publishes persistent, mandatory messages with publisher confirms; routing keys ${eventTypes.names.map(routingKey).join(", ")}`,
      bindings: { amqp: { deliveryMode: 2, mandatory: true } },
    },
    consumeUpdate: {
      action: "receive",
      channel: { $ref: "#/channels/updates" },
      summary:
        "Workers fold the interaction into the user's embedding and acknowledge the message after the write",
      bindings: { amqp: { ack: true } },
    },
  },
  components: {
    messages: {
      update: message("update", "Update message", "Asks for one interaction to be folded in", body),
      pack: message(
        "pack",
        "Message batch",
        "Several interactions of one type, one on each line of the body; only with EVENTS_PER_MESSAGE over 1. An interaction that fails is republished as a message of its own",
        { schemaFormat: "text/plain", schema: { type: "string" } },
        "application/x-ndjson",
      ),
      retry: message("retry", "Retry", "An update message that waits for the next attempt", body),
      deadLetter: message(
        "deadLetter",
        "Dead letter",
        "A message whose retries are used up or useless; its body may be anything",
        { schemaFormat: "application/schema+json;version=draft-2020-12", schema: {} },
      ),
    },
  },
}

/** File name in docs/contracts → content. */
export const documents: Readonly<Record<string, object>> = {
  "openapi.json": OpenApi.fromApi(api),
  "asyncapi.json": asyncApi,
  "update-message.schema.json": { $schema: dialect, ...updateMessage },
  "user-embedding.schema.json": {
    $schema: dialect,
    ...jsonSchema(Embedding, "User embedding as the API and `export embeddings` show it"),
  },
  "user_embeddings.validator.json": { $jsonSchema: userEmbeddingValidator },
}

export const headerSchemas = headers

export const text = (document: object): string => `${JSON.stringify(document, null, 2)}\n`
