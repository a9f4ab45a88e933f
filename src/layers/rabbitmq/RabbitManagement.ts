/** RabbitMQ's management API: what AMQP doesn't tell, namely rates, what all consumers together hold, and bindings. */
import { Effect, Option, Redacted, Schema } from "effect"
import { queue, type Traffic } from "../../services/ports/InteractionQueue.ts"
import * as Settings from "../../services/Settings.ts"

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

/** A queue that an exchange fills by a routing key. */
export interface Binding {
  readonly to: string
  readonly from: string
  readonly key: string
}
const Bindings = Schema.Array(
  Schema.Struct({ source: Schema.String, destination: Schema.String, routing_key: Schema.String }),
)

const credentials = ({ password, username }: URL): string =>
  Buffer.from(
    `${decodeURIComponent(username) || "guest"}:${decodeURIComponent(password) || "guest"}`,
  ).toString("base64")

/** Where to ask for `what` of the broker's virtual host, and as whom. */
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

/** Asks; `null` when the API can't be reached or refuses: what can't be known is no failure of the queue. */
const ask = <A, I>(schema: Schema.Schema<A, I>, what: string, name: string) =>
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

/** The traffic of the main queue; `null` also where no statistics are kept. */
export const traffic = Effect.map(ask(Queue, "queues", `/${queue}`), (asked) =>
  Effect.map(
    asked,
    (found): Traffic | null =>
      found && {
        publish: found.message_stats.publish_details.rate,
        deliver: found.message_stats.deliver_get_details.rate,
        ack: found.message_stats.ack_details.rate,
        unacked: found.messages_unacknowledged,
      },
  ),
)

/** All bindings of the virtual host. */
export const bindings = Effect.map(ask(Bindings, "bindings", ""), (asked) =>
  Effect.map(
    asked,
    (found) =>
      found?.map(
        ({ destination, routing_key, source }): Binding => ({
          to: destination,
          from: source,
          key: routing_key,
        }),
      ) ?? null,
  ),
)
