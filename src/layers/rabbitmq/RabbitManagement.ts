/**
 * RabbitMQ's management API. AMQP has no way to ask for rates, unacknowledged messages of all consumers, bindings or
 * policies. All of it is optional: a server without this API, or a user who may not use it, is no fault.
 */
import { Effect, Either, Option, Redacted, Schema } from "effect"
import { nodeUrls } from "../../services/NodeUrls.ts"
import type { Traffic } from "../../services/ports/InteractionQueue.ts"
import * as Settings from "../../services/Settings.ts"

/** Milliseconds for one node. */
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

const Policy = Schema.Struct({
  name: Schema.String,
  pattern: Schema.String,
  "apply-to": Schema.String,
  priority: Schema.Number,
  definition: Schema.Record({ key: Schema.String, value: Schema.Unknown }),
})
export type Policy = typeof Policy.Type

const credentials = ({ password, username }: URL): string =>
  Buffer.from(
    `${decodeURIComponent(username) || "guest"}:${decodeURIComponent(password) || "guest"}`,
  ).toString("base64")

const urlsIn = (text: string, protocols: ReadonlyArray<string>): ReadonlyArray<URL> =>
  Either.getOrElse(nodeUrls(text, protocols), () => []).map((url) => new URL(url))

/** URL and credentials on each node for `path` in the virtual host of the DSN. */
export const targets = (dsn: string, management: string | undefined, what: string, path = "") => {
  const brokers = urlsIn(dsn, Settings.amqpProtocols)
  const bases =
    management === undefined
      ? brokers.map(({ hostname, protocol }) => {
          const secure = protocol === "amqps:"
          return new URL(`${secure ? "https" : "http"}://${hostname}:${secure ? 15671 : 15672}`)
        })
      : urlsIn(management, Settings.managementProtocols)
  const [broker = new URL("amqp://localhost")] = brokers
  const virtualHost = decodeURIComponent(broker.pathname.slice(1)) || "/"
  return bases.map((base) => ({
    url: `${base.origin}${base.pathname.replace(/\/+$/, "")}/api/${what}/${encodeURIComponent(virtualHost)}${path}`,
    authorization: `Basic ${credentials(base.username === "" ? broker : base)}`,
  }))
}

/** The first answer of the nodes, which are asked in turn. Fails if none of them agrees. */
const ask = (what: string, path: string, init: RequestInit = {}) =>
  Effect.map(Effect.all([Settings.RABBITMQ_DSN, Settings.RABBITMQ_MANAGEMENT_URL]), ([dsn, management]) => {
    const all = targets(
      Option.getOrElse(Option.map(dsn, Redacted.value), () => ""),
      Option.getOrUndefined(Option.map(management, Redacted.value)),
      what,
      path,
    )
    return Effect.firstSuccessOf(
      all.map(({ authorization, url }) =>
        Effect.tryPromise(async (signal) => {
          const answer = await fetch(url, {
            ...init,
            headers: { authorization, "content-type": "application/json" },
            signal: AbortSignal.any([signal, AbortSignal.timeout(deadline)]),
          })
          if (!answer.ok) throw new Error(`${answer.status}`)
          return answer.text()
        }),
      ),
    )
  })

/** `null` when the API is unreachable or refuses: an unknown value is no failure of the queue. */
const get = <A, I>(schema: Schema.Schema<A, I>, what: string, path = "") =>
  Effect.map(ask(what, path), (request) =>
    request.pipe(
      Effect.flatMap(Schema.decodeUnknown(Schema.parseJson(schema))),
      Effect.orElseSucceed(() => null),
    ),
  )

/** The traffic of these queues together. `null` if the first is not known. */
export const traffic = (names: ReadonlyArray<string>) =>
  Effect.map(
    Effect.forEach(names, (name) => get(Queue, "queues", `/${name}`)),
    (requests) =>
      Effect.map(Effect.all(requests, { concurrency: "unbounded" }), ([first, ...others]): Traffic | null => {
        if (first === undefined || first === null) return null
        const total = { publish: 0, deliver: 0, ack: 0, unacked: 0 }
        for (const found of [first, ...others]) {
          if (found === null) continue
          total.publish += found.message_stats.publish_details.rate
          total.deliver += found.message_stats.deliver_get_details.rate
          total.ack += found.message_stats.ack_details.rate
          total.unacked += found.messages_unacknowledged
        }
        return total
      }),
  )

export const bindings = get(Schema.Array(Binding), "bindings")
export const policies = get(Schema.Array(Policy), "policies")
export const operatorPolicies = get(Schema.Array(Policy), "operator-policies")

/** Sets a policy, and answers whether the broker has accepted it. */
export const setPolicy = (name: string, policy: object) =>
  Effect.map(ask("policies", `/${name}`, { method: "PUT", body: JSON.stringify(policy) }), Effect.isSuccess)
