/** RabbitMQ's management API: what AMQP doesn't tell, namely rates and what all consumers together hold. */
import { Effect, Option, Redacted, Schema } from "effect"
import { queue, type Traffic } from "../services/InteractionQueue.ts"
import * as Settings from "../services/Settings.ts"

const deadline = 2_000

const Rate = Schema.optionalWith(Schema.Struct({ rate: Schema.Number }), { default: () => ({ rate: 0 }) })
/** A queue through which nothing has moved yet has no statistics. */
const Queue = Schema.Struct({
  messages_unacknowledged: Schema.Number,
  message_stats: Schema.optionalWith(
    Schema.Struct({ publish_details: Rate, deliver_get_details: Rate, ack_details: Rate }),
    {
      default: () => ({
        publish_details: { rate: 0 },
        deliver_get_details: { rate: 0 },
        ack_details: { rate: 0 },
      }),
    },
  ),
})
const decode = Schema.decodeUnknown(Queue)

const credentials = ({ password, username }: URL): string =>
  Buffer.from(
    `${decodeURIComponent(username) || "guest"}:${decodeURIComponent(password) || "guest"}`,
  ).toString("base64")

/** Where to ask for the main queue, and as whom. */
export const target = (dsn: string, management: string | undefined) => {
  const broker = new URL(dsn)
  const secure = broker.protocol === "amqps:"
  const base = new URL(
    management ?? `${secure ? "https" : "http"}://${broker.hostname}:${secure ? 15671 : 15672}`,
  )
  const virtualHost = decodeURIComponent(broker.pathname.slice(1)) || "/"
  return {
    url: `${base.origin}${base.pathname.replace(/\/+$/, "")}/api/queues/${encodeURIComponent(virtualHost)}/${queue}`,
    authorization: `Basic ${credentials(base.username === "" ? broker : base)}`,
  }
}

/** The traffic of the main queue; `null` when the API can't be reached, refuses, or keeps no statistics. */
export const traffic = Effect.map(
  Effect.all([Settings.RABBITMQ_DSN, Settings.RABBITMQ_MANAGEMENT_URL]),
  ([dsn, management]) =>
    Effect.tryPromise(async (signal) => {
      const { authorization, url } = target(
        Option.getOrElse(Option.map(dsn, Redacted.value), () => ""),
        Option.getOrUndefined(Option.map(management, Redacted.value)),
      )
      const answer = await fetch(url, {
        headers: { authorization },
        signal: AbortSignal.any([signal, AbortSignal.timeout(deadline)]),
      })
      return answer.json()
    }).pipe(
      Effect.flatMap(decode),
      Effect.map(
        ({
          message_stats: { ack_details, deliver_get_details, publish_details },
          messages_unacknowledged,
        }): Traffic => ({
          publish: publish_details.rate,
          deliver: deliver_get_details.rate,
          ack: ack_details.rate,
          unacked: messages_unacknowledged,
        }),
      ),
      // A rate that can't be had is no failure of the queue.
      Effect.orElseSucceed(() => null),
    ),
)
