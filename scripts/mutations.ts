#!/usr/bin/env bun
/**
 * `bun scripts/mutations.ts [WORD…]`: does each failure test prove something? Takes one mechanism at a time out of the
 * source, runs the scenario that depends on it, and expects it to fail. Needs a clean checkout, and puts it back. With
 * words only the mutations whose scenario has one of them in its name.
 */
import { resolve } from "node:path"
import { run } from "./services/command.ts"
import { up } from "./services/manager.ts"
import * as sacrificial from "./services/sacrificial.ts"

interface Mutation {
  /** What is taken out. */
  readonly without: string
  readonly scenario: string
  readonly file: string
  readonly from: string
  readonly to: string
}

const root = resolve(import.meta.dir, "..")
const worker = "src/services/update/EmbeddingWorker.ts"
const updater = "src/services/update/EmbeddingUpdater.ts"
const relay = "src/services/record/OutboxRelay.ts"
const policies = "src/services/RetryPolicies.ts"
const republish = "src/layers/rabbitmq/RabbitRepublish.ts"

const ackFirst = {
  without: "acknowledging only after the write",
  file: worker,
  from: "const updated = updater.update(innocent)",
  to: 'yield* consumer.settle(innocent.map((one) => [one, { _tag: "Ack" }] as const))\n    const updated = updater.update(innocent)',
}
const idsUnchecked = {
  without: "looking for applied ids on the document",
  file: updater,
  from: "|| AppliedIds.has(record.applied, message_id)",
  to: "|| message_id.length === 0",
}
const republishUnconfirmed = {
  without: "confirming the republish before the original is acknowledged",
  file: republish,
  from: "const confirmations = yield* publishTraced(",
  to: "this.intake.acknowledge(held.map(({ delivery }) => delivery))\n    const confirmations = yield* publishTraced(",
}
const noOutage = {
  without: "pausing while a store is out",
  file: policies,
  from: 'reason === "rejected" ? { _tag: "Retryable" } : { _tag: "Outage" }',
  to: 'reason === "rejected" ? { _tag: "Retryable" } : { _tag: "Retryable" }',
}

const mutations: ReadonlyArray<Mutation> = [
  { scenario: "workers killed at random points", ...ackFirst },
  { scenario: "workers killed at random points", ...idsUnchecked },
  {
    scenario: "workers killed at random points",
    without: "the version in the compare-and-swap",
    file: "src/layers/mongodb/MongoUserEmbeddings.ts",
    from: '$eq: ["$version", expected]',
    to: '$gte: ["$version", 0]',
  },
  { scenario: "workers killed while its write hangs", ...ackFirst },
  { scenario: "workers killed between write and acknowledgement", ...idsUnchecked },
  {
    scenario: "the API killed between commit and publish",
    without: "marking rows published only after the confirmation",
    file: relay,
    from: "const confirmations = yield* queue.publish(rows.map(toMessage))",
    to: "yield* log.markPublished(rows.map((row) => row.interaction.message_id), yield* Clock.currentTimeMillis)\n    const confirmations = yield* queue.publish(rows.map(toMessage))",
  },
  ...["between commit and publish", "at random points under load"].map((name) => ({
    scenario: `the API killed ${name}`,
    without: "the sweep",
    file: relay,
    from: "const left = rows.filter(",
    to: "const left = [].filter(",
  })),
  {
    scenario: "RabbitMQ killed under load",
    without: "reopening sessions",
    file: "src/layers/rabbitmq/Rabbit.ts",
    from: 'Schedule.resetAfter(RetryPolicies.reconnectRetry, "30 seconds")',
    to: "Schedule.stop",
  },
  {
    scenario: "RabbitMQ killed under load",
    without: "leaving what could not be published to the sweep",
    file: relay,
    from: "const confirmations = yield* queue.publish(rows.map(toMessage))",
    to: 'const confirmations = yield* Effect.orElseSucceed(queue.publish(rows.map(toMessage)), () => rows.map(() => "confirmed"))',
  },
  {
    scenario: "RabbitMQ out of memory",
    without: "answering before publishing",
    file: "src/services/record/InteractionRecorder.ts",
    from: "let next = 0\n    for (const job",
    to: "yield* Effect.ignore(relay.sweep)\n    let next = 0\n    for (const job",
  },
  { scenario: "no room in RabbitMQ for dead letters: the binding", ...republishUnconfirmed },
  { scenario: "no room in RabbitMQ for dead letters: the greatest length", ...republishUnconfirmed },
  {
    scenario: "no room in RabbitMQ for dead letters: the greatest length",
    without: "a new channel after a refusal",
    file: "src/layers/rabbitmq/RabbitPublisher.ts",
    from: "if (this.nacked && this.inFlight.size === 0)",
    to: "if (false)",
  },
  { scenario: "no room in RabbitMQ for retries", ...republishUnconfirmed },
  { scenario: "MongoDB stopped, frozen and killed", ...noOutage },
  {
    scenario: "MongoDB without an answer",
    without: "counting attempts in the header",
    file: republish,
    from: '"x-retry-count": retryCount + 1',
    to: '"x-retry-count": retryCount',
  },
  { scenario: "delivered more than once to four workers", ...idsUnchecked },
  {
    scenario: "delivered more than once all of the log",
    without: "looking for applied ids in the ledger",
    file: updater,
    from: "if (toLookUp.length === 0)",
    to: "if (toLookUp.length >= 0)",
  },
  {
    scenario: "poison ten sorts",
    without: "keeping the original bytes",
    file: republish,
    from: "    body,",
    to: "    body: Buffer.from(Buffer.from(body).toString()),",
  },
  {
    scenario: "poison one that kills",
    without: "suspicion",
    file: policies,
    from: "export const suspectRedeliveries = 3",
    to: "export const suspectRedeliveries = 3_000",
  },
  {
    scenario: "the embedding service wrong dimension",
    without: "giving up at once on bad vectors",
    file: policies,
    from: '        case "bad_vector":\n',
    to: "",
  },
  {
    scenario: "the embedding service 500",
    without: "the ladder",
    file: policies,
    from: "const rung = delays[retryCount]",
    to: "const rung = delays[delays.length]",
  },
  {
    scenario: "the embedding service 429",
    without: "Retry-After",
    file: policies,
    from: 'judged._tag === "Retryable" && judged.notBefore ?',
    to: 'judged._tag === "Skip" && judged.notBefore ?',
  },
  {
    scenario: "the embedding service 401",
    without: "pausing while the service refuses",
    file: policies,
    from: '        case "unauthorized":\n        case "quota_exhausted":\n',
    to: "",
  },
  {
    scenario: "the embedding service no answer",
    without: "the deadline of a call",
    file: "src/layers/embedder/OpenAi.ts",
    from: "const deadline = Duration.seconds(15)",
    to: "const deadline = Duration.seconds(150)",
  },
  {
    scenario: "SIGTERM under full prefetch",
    without: "finishing what is held",
    file: worker,
    from: "stopping = true\n        change",
    to: 'stopping = true\n        yield* consumer.settle(held.map((one) => [one, { _tag: "Ack" }] as const))\n        held = []\n        change',
  },
  {
    scenario: "SIGTERM twice",
    without: "ending at the second signal",
    file: "src/programs/main.ts",
    from: "if (signals > 1) process.exit(130)",
    to: "",
  },
]

if ((await run(["git", "status", "--porcelain", "src"], { cwd: root })) !== "")
  throw new Error("src has changes: commit them first")
const words = process.argv.slice(2)
const chosen = mutations.filter(
  ({ scenario }) => words.length === 0 || words.some((word) => scenario.includes(word)),
)
const { statuses } = await up({ only: ["mysql"] })
const servers: Record<string, string> = Object.assign({}, ...statuses.map(({ env }) => env))
servers[sacrificial.sacrificialVariable] = await sacrificial.up()
/** Whether the scenario fails, and the first error it names. */
const failsWith = async (scenario: string): Promise<string | undefined> => {
  const child = Bun.spawn([process.execPath, "test", "test/failures", "--test-name-pattern", scenario], {
    cwd: root,
    env: { ...process.env, ...servers },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  })
  const [output, code] = await Promise.all([child.stderr.text(), child.exited])
  if (!/^ *1 (pass|fail)$/m.test(output)) return `NOT ONE SCENARIO: ${output.trim().split("\n").at(-1)}`
  return code === 0 ? undefined : (output.match(/^error: .*|.*timed out.*/m)?.[0] ?? "failed")
}

let survived = 0
for (const { file, from, scenario, to, without } of chosen) {
  const path = resolve(root, file)
  const source = await Bun.file(path).text()
  let verdict = "NOT FOUND in the source: the mutation must follow it"
  if (source.includes(from)) {
    await Bun.write(
      path,
      source.replace(from, () => to),
    )
    try {
      verdict = (await failsWith(scenario)) ?? "SURVIVED: the scenario passes all the same"
    } finally {
      await Bun.write(path, source)
    }
  }
  if (/^[A-Z]{3}/.test(verdict)) survived += 1
  console.log(`${scenario} | without ${without} | ${verdict}`)
}
console.log(`${chosen.length - survived} of ${chosen.length} mutations noticed`)
process.exit(survived === 0 ? 0 : 1)
