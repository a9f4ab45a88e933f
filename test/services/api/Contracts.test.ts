/**
 * The contracts in docs/contracts match the program, are valid for independent validators, and describe what the program
 * sends. The messages of version 1.0 in test/corpus must stay decodable.
 */
import { describe, expect, test } from "bun:test"
import specs from "@asyncapi/specs"
import { Validator } from "@seriousme/openapi-schema-validator"
import Ajv from "ajv"
import Ajv2020 from "ajv/dist/2020"
import addFormats from "ajv-formats"
import { Effect, Either } from "effect"
import { documents, headerSchemas, text } from "../../../scripts/contracts/documents.ts"
import { firstLine, types } from "../../../scripts/contracts/types.ts"
import { toLine } from "../../../src/layers/files/EmbeddingFile.ts"
import * as ProblemPage from "../../../src/services/api/ProblemPage.ts"
import { defaults } from "../../../src/services/model/EventTypes.ts"
import * as Fold from "../../../src/services/model/Fold.ts"
import { Problem } from "../../../src/services/model/Problem.ts"
import { type ProblemType, problemTypes } from "../../../src/services/model/ProblemTypes.ts"
import * as UpdateMessage from "../../../src/services/model/UpdateMessage.ts"
import { InteractionQueue, queue } from "../../../src/services/ports/InteractionQueue.ts"
import corpus from "../../corpus/update-messages-1.0.json" with { type: "json" }
import { message, product, search } from "../../support/pipeline.ts"
import { connectAmqp, freshRabbit, withServers } from "../../support/servers.ts"
import { external } from "../../support/stacks.ts"

const folder = new URL("../../../docs/contracts/", import.meta.url)
const ajv = addFormats(new Ajv2020({ strict: true, allowUnionTypes: true, allErrors: true }))
const conforms = (schema: object, value: unknown) => {
  const validate = ajv.compile(schema)
  return validate(value) ? [] : validate.errors
}
const updateMessage = documents["update-message.schema.json"]!
const parsed = (bytes: Uint8Array): unknown => JSON.parse(Buffer.from(bytes).toString())

describe("the committed contracts", () => {
  test.each(Object.keys(documents))("%s is what `bun run contracts` writes", async (name) => {
    expect(await Bun.file(new URL(name, folder)).text()).toBe(text(documents[name]!))
  })

  test("openapi.d.ts is made from openapi.json as it is", async () => {
    expect(await Bun.file(types).text()).toStartWith(firstLine())
  })

  test("docs/problems.md and the page /problems have a section for each problem, and OpenAPI names it", async () => {
    const written = await Bun.file(new URL("../problems.md", folder)).text()
    expect(written).toBe(ProblemPage.markdown())
    const served = ProblemPage.html()
    const openapi = JSON.stringify(documents["openapi.json"])
    for (const [type, { status, title }] of Object.entries(problemTypes)) {
      expect(written).toContain(`\n## ${type}\n\n**${status}: ${title}.**`)
      expect(served).toContain(`<section id="${type}">`)
      expect(Problem.of(type as ProblemType, "").document).toMatchObject({
        type: `/problems#${type}`,
        status,
      })
      expect(openapi).toContain(`/problems#${type}`)
    }
    // A problem is made by Problem.of alone, which knows no others.
    const sources = new Bun.Glob("src/{layers,services,programs}/**/*.ts").scan(".")
    for await (const path of sources)
      for (const [made] of (await Bun.file(path).text()).matchAll(/new Problem\([\s\S]{30}/g))
        expect([path, made]).toEqual([path, expect.stringMatching(/type: uriOf|document/)])
  })

  test("OpenAPI: valid", async () => {
    const { errors, valid } = await new Validator().validate(text(documents["openapi.json"]!))
    expect([valid, errors]).toEqual([true, undefined])
    const broken = { ...documents["openapi.json"], paths: { "no-slash": {} } }
    expect((await new Validator().validate(text(broken))).valid).toBe(false)
  })

  test("AsyncAPI 3: valid", () => {
    const schema: object = specs.schemasWithoutId["3.0.0"]
    const validate = addFormats(new Ajv({ strict: false, allErrors: true, validateFormats: false })).compile(
      schema,
    )
    expect([validate(documents["asyncapi.json"]), validate.errors]).toEqual([true, null])
    expect(validate({ ...documents["asyncapi.json"], channels: { failed: { adress: "failed" } } })).toBe(
      false,
    )
  })
})

describe("sent data conforms to the contracts", () => {
  const at = "2026-02-10T12:34:56.789Z"
  const interactions = [search("u-1", "a tent", at), product("u-1", "product_purchase", "p-1", at)]

  test.each(interactions)("the body of an update message: $event_type", (interaction) => {
    const body = parsed(UpdateMessage.encodeMessage(interaction))
    expect(conforms(updateMessage, body)).toEqual([])
    const { message_id: _, ...without } = Object(body)
    expect(conforms(updateMessage, without)).not.toEqual([])
    expect(conforms(updateMessage, { ...Object(body), version: "2.0" })).not.toEqual([])
    expect(conforms(updateMessage, { ...Object(body), product_id: "p-2", search_phrase: "a" })).not.toEqual(
      [],
    )
  })

  test("a user's document in JSON", () => {
    const vector = Float32Array.of(0.6, 0.8)
    const weights = { search: 0.7, product_view: 0.3, product_click: 0.5, product_purchase: 1 }
    const settings = { lambda: 0.023, weights, history: "cumulative", space: "test:2" } as const
    const events = interactions.map((interaction) => ({ interaction, vector }))
    const embedding = Either.getOrThrow(Fold.fold(undefined, events, settings, Date.parse(at)))
    const line = JSON.parse(toLine({ embedding, version: 1 }))
    expect(conforms(documents["user-embedding.schema.json"]!, line)).toEqual([])
    expect(conforms(documents["user-embedding.schema.json"]!, { ...line, history: "none" })).not.toEqual([])
  })
})

withServers(["rabbitmq", "mysql", "mongodb"], "what RabbitMQ delivers conforms to the contracts", () => {
  test("properties, headers and body of a published message", async () => {
    const rabbit = await freshRabbit()
    const interaction = search("u-1", "a tent", "2026-02-10T12:34:56.789Z")
    const publish = Effect.flatMap(InteractionQueue, (queue) =>
      queue.publish([
        {
          ...message(interaction),
          trace: { traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", tracestate: null },
        },
      ]),
    )
    await Effect.runPromise(Effect.provide(publish, external({ RABBITMQ_DSN: rabbit.dsn })))
    const connection = await connectAmqp(rabbit.dsn)
    try {
      const channel = await connection.createChannel()
      const delivered = await channel.get(queue, { noAck: true })
      if (delivered === false) throw new Error("nothing was published")
      const { content, fields, properties } = delivered
      expect(conforms(headerSchemas.update, properties.headers)).toEqual([])
      expect(conforms(updateMessage, parsed(content))).toEqual([])
      expect([fields.exchange, fields.routingKey]).toEqual(["user_events", "user.embedding.search"])
      expect(properties).toMatchObject({
        contentType: "application/json",
        deliveryMode: 2,
        messageId: interaction.message_id,
        appId: "user-embeddings",
        type: "search",
      })
    } finally {
      await connection.close()
      await rabbit.drop()
    }
  }, 60_000)
})

describe("messages of version 1.0 can be decoded", () => {
  test.each(corpus)("$name", ({ body, decoded }) => {
    const interaction = Either.getOrThrow(UpdateMessage.decodeMessage(Buffer.from(body), defaults))
    expect<unknown>(interaction).toEqual(decoded)
  })
})
