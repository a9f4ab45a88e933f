/** The contracts, made from the schemas and names that the program itself uses. */
import { OpenApi } from "@effect/platform"
import { Duration, JSONSchema, type Schema } from "effect"
import { userEmbeddingValidator } from "../../src/layers/mongodb/MongoCollections.ts"
import { api, Embedding } from "../../src/services/api/InteractionApi.ts"
import { defaults as eventTypes } from "../../src/services/model/EventTypes.ts"
import { maxMessageBytes, messageVersion, UpdateMessage } from "../../src/services/model/UpdateMessage.ts"
import {
  exchange,
  failedQueue,
  quarantineQueue,
  queue,
  retryQueue,
  routingKey,
} from "../../src/services/ports/InteractionQueue.ts"
import { retryDelays } from "../../src/services/RetryPolicies.ts"

const dialect = "https://json-schema.org/draft/2020-12/schema"

/** JSON Schema of what stands in JSON; further properties are allowed, as every reader has to. */
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
  traceparent: string("W3C trace context of what recorded the interaction"),
  tracestate: string("W3C trace state"),
}
const retries = { type: "integer", minimum: 0, description: "failed attempts so far" }
const origin = {
  "x-original-exchange": string("where it was published first"),
  "x-original-routing-key": string("its first routing key"),
}
const failure = {
  "x-error": string("tag of the error, as MongoError or schema_violation"),
  "x-error-message": string("at most 1 KiB"),
  "x-first-failed-at": iso("first failure"),
  "x-last-failed-at": iso("last failure"),
  "x-worker": string("who parked it"),
}

const headers = {
  update: {
    type: "object",
    required: ["x-retry-count", "x-published-at", "x-recorded-at"],
    properties: {
      ...trace,
      "x-retry-count": retries,
      "x-published-at": instant("published"),
      "x-recorded-at": instant("recorded"),
    },
  },
  pack: {
    type: "object",
    required: ["x-retry-count", "x-published-at", "x-recorded-at"],
    properties: {
      "x-retry-count": retries,
      "x-published-at": instant("published"),
      "x-recorded-at": string("recorded, Unix ms, a line for each interaction"),
      "x-traces": string(
        "W3C trace contexts, a line for each interaction: traceparent and, after a blank, tracestate; empty without one",
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
        description: "6 after five retries, 1 when unrecoverable",
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

const rungs = [...new Set(retryDelays(Duration.seconds(5), 5))]

const asyncApi = {
  asyncapi: "3.0.0",
  info: {
    title: "user-embeddings: queues and messages",
    version: messageVersion,
    description: `What goes through RabbitMQ. Delivery is at least once; message_id tells repetitions. Bodies over ${maxMessageBytes} bytes, other major versions and ids that don't match their content are dead letters at once. Names are those of the default configuration (WORKER_RETRY_DELAY=5000, WORKER_MAX_RETRIES=5).`,
    license: { name: "MIT" },
  },
  defaultContentType: "application/json",
  channels: {
    userEvents: {
      address: "user.embedding.{event_type}",
      description: `Exchange ${exchange} (topic, durable); the queue ${queue} is bound to user.embedding.*`,
      parameters: {
        event_type: {
          description: "the type of the interaction: a built-in type, or one of EVENT_WEIGHTS",
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
    updates: queueChannel(queue, "What workers consume: a quorum queue", "update", "pack"),
    isolated: queueChannel(quarantineQueue, "Messages that are handled alone, one at a time", "update"),
    ...Object.fromEntries(
      rungs.map((delay) => [
        `retry${delay}`,
        queueChannel(
          retryQueue(delay),
          `Waits ${delay / 1_000} s and goes back to ${queue}; no consumer takes from it`,
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
      summary: `The relay publishes persistently and mandatory, with confirmation; routing keys ${eventTypes.names.map(routingKey).join(", ")}`,
      bindings: { amqp: { deliveryMode: 2, mandatory: true } },
    },
    consumeUpdate: {
      action: "receive",
      channel: { $ref: "#/channels/updates" },
      summary: "Workers fold it into the user's embedding and acknowledge after the write",
      bindings: { amqp: { ack: true } },
    },
  },
  components: {
    messages: {
      update: message("update", "Update message", "Asks for one interaction to be folded in", body),
      pack: message(
        "pack",
        "Pack of update messages",
        "Several interactions of one type, each a line of the body; only with EVENTS_PER_MESSAGE over 1. What fails goes on as a message of its own",
        { schemaFormat: "text/plain", schema: { type: "string" } },
        "application/x-ndjson",
      ),
      retry: message("retry", "Retry", "An update message that waits for its next attempt", body),
      deadLetter: message(
        "deadLetter",
        "Dead letter",
        "A message that gave up or could never succeed; its body may be anything",
        { schemaFormat: "application/schema+json;version=draft-2020-12", schema: {} },
      ),
    },
  },
}

/** Name in docs/contracts → content. */
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
