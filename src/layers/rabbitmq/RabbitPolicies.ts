/** Policies of our queues: the one that `setup` sets, and those that lose messages. */
import { Array, Effect } from "effect"
import type { Finding } from "../../services/ports/Dependencies.ts"
import * as RabbitManagement from "./RabbitManagement.ts"

const policyName = "user-embeddings"
/** As `setup` reports it. */
export const part = `policy ${policyName}`
const consumerTimeout = "consumer-timeout"

/**
 * Leaders of new queues are spread over the nodes. A policy does that, because an argument would be refused for queues
 * that exist without it. RabbitMQ redelivers what a worker has held for longer than the consumer timeout, and counts that
 * as a failed delivery, so the timeout is out of reach. From 4.3 on, RabbitMQ waits 60 s before it redelivers what
 * consumers on a dead node held.
 */
const definition = {
  "queue-leader-locator": "balanced",
  [consumerTimeout]: 86_400_000,
  "consumer-disconnected-timeout": 10_000,
}

/** The definition, and less of it for older versions, which refuse names that they do not know. */
const definitions = Array.makeBy(3, (left) =>
  Object.fromEntries(Object.entries(definition).slice(0, 3 - left)),
)

/** Any policy of an operator has precedence. */
const priority = -1

/** Sets the policy, and answers whether the broker lets this user do that. */
export const set = Effect.map(
  Effect.forEach(definitions, (some) =>
    RabbitManagement.setPolicy(policyName, {
      pattern: "^(user_embedding_updates(\\..*)?|failed)$",
      "apply-to": "queues",
      priority,
      definition: some,
    }),
  ),
  (attempts) => Effect.reduce(attempts, false, (done, attempt) => (done ? Effect.succeed(true) : attempt)),
)

type Policies = ReadonlyArray<RabbitManagement.Policy>

const appliesTo = (queue: string, policy: RabbitManagement.Policy): boolean => {
  try {
    return (
      ["all", "queues", "quorum_queues"].includes(policy["apply-to"]) &&
      new RegExp(policy.pattern).test(queue)
    )
  } catch {
    return false // The broker has another syntax of patterns.
  }
}

/** Of the policies that match a queue, one with the highest priority is in force. */
const inForce = (policies: Policies, queue: string): RabbitManagement.Policy | undefined =>
  policies.filter((policy) => appliesTo(queue, policy)).toSorted((a, b) => b.priority - a.priority)[0]

/** Which consumer timeout is in force for a queue. */
export const consumerTimeoutNote = (policies: Policies | null, queue: string): string => {
  if (policies === null)
    return "the consumer timeout is not known: the management API does not answer (RABBITMQ_MANAGEMENT_URL)"
  const policy = inForce(policies, queue)
  const timeout = policy?.definition[consumerTimeout]
  return typeof timeout === "number"
    ? `the consumer timeout is ${timeout / 1_000} s, by policy ${policy?.name}`
    : "the consumer timeout is consumer_timeout of rabbitmq.conf, which no API tells: 30 minutes unless it was changed"
}

const effects: ReadonlyMap<string, string> = new Map([
  ["message-ttl", "messages expire"],
  ["expires", "the queue is deleted while nothing consumes it"],
  ["max-length", "the number of messages is limited"],
  ["max-length-bytes", "the size of all messages is limited"],
  ["overflow", "the oldest messages are dropped when the queue is full"],
  ["delivery-limit", "messages are dropped after some deliveries"],
  ["dead-letter-exchange", "messages go elsewhere"],
  ["dead-letter-routing-key", "messages go elsewhere"],
])
const isHarmless = (key: string, value: unknown): boolean => key === "overflow" && value !== "drop-head"

/** One finding for each policy of a kind that expires, limits or drops messages of one of our queues. */
export const findings = (
  kind: "policy" | "operator_policy",
  policies: Policies,
  queues: ReadonlyArray<string>,
): ReadonlyArray<Finding> =>
  policies.flatMap((policy) => {
    const { definition, name } = policy
    const limited = queues.filter((queue) => inForce(policies, queue) === policy)
    const told = Object.entries(definition).flatMap(([key, value]) =>
      effects.has(key) && !isHarmless(key, value) ? [`${key} ${value}: ${effects.get(key)}`] : [],
    )
    if (limited.length === 0 || told.length === 0) return []
    return [
      {
        problem: `${kind.replace("_", " ")} ${name} applies to ${limited.join(", ")} (${told.join("; ")})`,
        remedy: `exclude these queues from its pattern, or: rabbitmqctl clear_${kind} -p VHOST ${name}`,
      },
    ]
  })
