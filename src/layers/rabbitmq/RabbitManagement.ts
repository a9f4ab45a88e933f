/** RabbitMQ's management API. AMQP has no way to ask for rates, unacknowledged messages of all consumers, or bindings. */
import { Effect, Option, Redacted, Schema } from "effect"
import { queue, setAsideQueue, type Traffic } from "../../services/ports/InteractionQueue.ts"
import * as Settings from "../../services/Settings.ts"

const deadline = 2_000

const none = { rate: 0 }
const Rate = Schema.optionalWith(Schema.Struct({ rate: Schema.Number }), { default: () => none })
/** A queue has no statistics before its first message. */
const Queue = Schema.Struct({
  messages_unacknowledged: Schema.Number,
  message_stats: Schema.optionalWith(
    Schema.Struct({ publish_details: Rate, deliver_get_details: Rate, ack_details: Rate }),
    { default: () => ({ publish_details: none, deliver_get_details: none, ack_details: none }) },
  ),
})

const Binding = Schema.Struct({
  source: Schema.String,
  destination: Schema.String,
  routing_key: Schema.String,
})
export type Binding = typeof Binding.Type

const credentials = ({ password, username }: URL): string =>
  Buffer.from(
    `${decodeURIComponent(username) || "guest"}:${decodeURIComponent(password) || "guest"}`,
  ).toString("base64")

/** URL and credentials for `what` in the virtual host of the DSN. */
export const target = (dsn: string, management: string | undefined, what = "queues", name = `/${queue}`) => {
  const broker = new URL(dsn)
  const secure = broker.protocol === "amqps:"
  const base = new URL(
    management ?? `${secure ? "https" : "http"}://${broker.hostname}:${secure ? 15671 : 15672}`,
  )
  const virtualHost = decodeURIComponent(broker.pathname.slice(1)) || "/"
  return {
    url: `${base.origin}${base.pathname.replace(/\/+$/, "")}/api/${what}/${encodeURIComponent(virtualHost)}${name}`,
    authorization: `Basic ${credentials(base.username === "" ? broker : base)}`,
  }
}

/** `null` when the API is unreachable or refuses: an unknown value is no failure of the queue. */
const get = <A, I>(schema: Schema.Schema<A, I>, what: string, name: string) =>
  Effect.map(Effect.all([Settings.RABBITMQ_DSN, Settings.RABBITMQ_MANAGEMENT_URL]), ([dsn, management]) =>
    Effect.tryPromise(async (signal) => {
      const { authorization, url } = target(
        Option.getOrElse(Option.map(dsn, Redacted.value), () => ""),
        Option.getOrUndefined(Option.map(management, Redacted.value)),
        what,
        name,
      )
      const answer = await fetch(url, {
        headers: { authorization },
        signal: AbortSignal.any([signal, AbortSignal.timeout(deadline)]),
      })
      return answer.json()
    }).pipe(
      Effect.flatMap(Schema.decodeUnknown(schema)),
      Effect.orElseSucceed(() => null),
    ),
  )

/** The traffic of the main queue. `null` also where the broker keeps no statistics. */
export const traffic = Effect.map(
  Effect.all([get(Queue, "queues", `/${queue}`), get(Queue, "queues", `/${setAsideQueue}`)]),
  (requests) =>
    Effect.map(
      Effect.all(requests, { concurrency: 2 }),
      ([main, setAside]): Traffic | null =>
        main && {
          publish: main.message_stats.publish_details.rate,
          deliver: main.message_stats.deliver_get_details.rate,
          ack: main.message_stats.ack_details.rate,
          unacked: main.messages_unacknowledged + (setAside?.messages_unacknowledged ?? 0),
        },
    ),
)

export const bindings = get(Schema.Array(Binding), "bindings", "")
