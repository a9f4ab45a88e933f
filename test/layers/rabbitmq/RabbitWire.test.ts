/** The update message, field by field, as read by a plain amqplib client. */
import { expect } from "bun:test"
import { Config, Effect } from "effect"
import { make } from "../../../src/services/model/Interaction.ts"
import { encodeMessage } from "../../../src/services/model/UpdateMessage.ts"
import { InteractionQueue } from "../../../src/services/ports/InteractionQueue.ts"
import { layerSuite } from "../../support/effect.ts"
import { connectAmqp, withServers } from "../../support/servers.ts"
import { external } from "../../support/stacks.ts"

const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
const recordedAt = Date.UTC(2026, 1, 10, 12, 35)
const interaction = make({
  user_id: "u-42",
  event_type: "search",
  search_phrase: "wireless headphones",
  occurred_at: "2026-02-10T12:34:56.789Z",
  metadata: { device: "ios" },
})

withServers(["rabbitmq", "mysql", "mongodb"], "RabbitMQ on the wire", () =>
  layerSuite("update message", external(), (it) => {
    it("has the documented body, properties and headers", () =>
      Effect.gen(function* () {
        const queue = yield* InteractionQueue
        const dsn = yield* Config.string("RABBITMQ_DSN")
        const before = Date.now()
        const confirmations = yield* queue.publish([
          {
            messageId: interaction.message_id,
            eventType: "search",
            body: encodeMessage(interaction),
            trace: { traceparent, tracestate: "vendor=1" },
            recordedAt,
          },
        ])
        expect(confirmations).toEqual(["confirmed"])
        const message = yield* Effect.promise(async () => {
          const connection = await connectAmqp(dsn)
          const channel = await connection.createChannel()
          const got = await channel.get("user_embedding_updates", { noAck: true })
          await connection.close()
          return got
        })
        if (message === false) throw new Error("nothing in the queue")
        const { fields, properties } = message
        expect(JSON.parse(message.content.toString())).toEqual({
          user_id: "u-42",
          event_type: "search",
          search_phrase: "wireless headphones",
          product_id: null,
          occurred_at: "2026-02-10T12:34:56.789Z",
          metadata: { device: "ios" },
          message_id: "0e9e47f25f104f99fec6a93759cce98711e0abd4add39cc47d17201048ad1db4",
          version: "1.0",
        })
        expect([fields.exchange, fields.routingKey]).toEqual(["user_events", "user.embedding.search"])
        expect(properties).toMatchObject({
          contentType: "application/json",
          deliveryMode: 2,
          messageId: interaction.message_id,
          appId: "user-embeddings",
          type: "search",
        })
        // The quorum queue adds x-delivery-count.
        const { "x-delivery-count": _, "x-published-at": publishedAt, ...headers } = properties.headers ?? {}
        expect(headers).toEqual({
          traceparent,
          tracestate: "vendor=1",
          "x-retry-count": 0,
          "x-recorded-at": recordedAt,
        })
        expect(publishedAt).toBeGreaterThanOrEqual(before)
        expect(properties.timestamp).toBe(Math.floor(publishedAt / 1000))
      }))
  }),
)
