#!/usr/bin/env bun
/**
 * `bun scripts/mutations.ts [WORD…]` checks that each failure scenario proves something. It removes one mechanism at a
 * time from the source, runs the scenario that depends on that mechanism, and expects the scenario to fail. It needs a
 * clean checkout and restores it. With words it runs only the mutations whose scenario contains one of them.
 */
import { resolve } from "node:path"
import { run } from "./services/command.ts"
import { up } from "./services/manager.ts"
import * as sacrificial from "./services/sacrificial.ts"

export interface Mutation {
  /** The mechanism that the mutation removes. */
  readonly without: string
  /** A part of the scenario's full name that no other scenario has. */
  readonly scenario: string
  readonly file: string
  /** Where the scenario is, if it is no failure scenario. */
  readonly tests?: string
  /** A fragment of the file, and its replacement. */
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
  from: "const outcomes = yield* Effect.catchAllDefect(worker",
  to: 'yield* worker.consumer.settle(messages.map((one) => [one.delivery, { _tag: "Ack" }] as const))\n  const outcomes = yield* Effect.catchAllDefect(worker',
}
const idsUnchecked = {
  without: "looking for applied ids on the document",
  file: updater,
  from: "&& AppliedIds.has(record.applied, id)",
  to: "&& id.length === 0",
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
  from: 'reason === "conflict" ? { _tag: "Retryable" } : { _tag: "Outage" }',
  to: 'reason === "conflict" ? { _tag: "Retryable" } : { _tag: "Retryable" }',
}

const reads = "src/layers/http/HttpEmbeddings.ts"
const takingBack = "test/programs/Corrections.test.ts"
const merges = "src/services/update/Merges.ts"
const doors = "test/layers/http/HttpDoors.test.ts"
const segment = "test/programs/Segment.test.ts"

const checkpoints = "src/layers/sql/SqlCheckpoints.ts"

export const mutations: ReadonlyArray<Mutation> = [
  ...[
    {
      scenario: "a taste has another ETag",
      without: "the hour in the ETag of a taste",
      file: reads,
      from: "Vector.toBytes(mean), hour)",
      to: "Vector.toBytes(mean), hour * 0)",
    },
    {
      scenario: "reads, embedded an ETag holds until the answer changes",
      without: "the mean in the ETag of a taste",
      file: reads,
      from: "fingerprint(of, Vector.toBytes(mean), hour)",
      to: "fingerprint(of, hour)",
    },
    {
      scenario: "reads, embedded an ETag holds until the answer changes",
      without: "the form in an ETag",
      file: reads,
      from: "embedding.updated_at, read, form)",
      to: "embedding.updated_at, read)",
    },
    {
      scenario: "reads, embedded a thousand users are read at once",
      without: "following aliases",
      file: "src/services/update/People.ts",
      from: "next.add(target)",
      to: "next.clear()",
    },
  ].map((mutation) => ({ tests: "test/layers/http/HttpReads.test.ts", ...mutation })),
  {
    scenario: "a search is skipped",
    without: "skipping what no embedder is there for",
    file: policies,
    tests: "test/programs/OwnVectors.test.ts",
    from: 'case "no_embedder":\n          return { _tag: "Skip" }',
    to: 'case "no_embedder":\n          return { _tag: "Unrecoverable" }',
  },
  ...[
    {
      scenario: "nothing changes but the log",
      without: "adding the sums to the checkpoint",
      from: "yield* addToCheckpoints(sql, parts, settings)",
      to: "",
    },
    {
      scenario: "nothing changes but the log",
      without: "keeping what was done with products",
      from: "yield* addToProducts(sql, parts, settings.lambda)",
      to: "",
    },
    {
      scenario: "nothing changes but the log",
      without: "counting rows for popularity before they are deleted",
      from: "yield* keepRows(sql, ids)",
      to: "",
    },
    {
      scenario: "taken back or behind an erasure",
      without: "looking again for retractions",
      from: "&& retractions.length === known.length",
      to: "",
    },
    {
      scenario: "taken back or behind an erasure",
      without: "looking again for erasures",
      from: "&& erased.length === 0",
      to: "",
    },
  ].map((one) => ({ tests: "test/services/operate/Pruner.test.ts", file: checkpoints, ...one })),
  {
    scenario: "misses no interaction that is taken back",
    without: "counting taken back interactions without a row",
    tests: "test/services/operate/Replayer.test.ts",
    file: "src/services/update/UserRebuild.ts",
    from: "ids.gone - (yield* countTakenBack(services, user_id, state, pruned, retracted))",
    to: "ids.gone",
  },
  {
    scenario: "pairs of products are counted before their rows go",
    without: "keeping rows whose pairs are not counted",
    tests: "test/services/operate/Pruner.test.ts",
    file: "src/services/operate/Pruner.ts",
    from: "if (!rows.every(({ id }) => id <= countedUpTo))",
    to: "if (!rows.every(({ id }) => id > 0))",
  },
  {
    scenario: "first of all products by their whole score",
    without: "adding the terms to the scores of the search",
    tests: "test/services/recommend/ExactTerms.test.ts",
    file: "src/services/recommend/Recommender.ts",
    from: "{ ...places, filter, bonus, extra }",
    to: "{ ...places, filter, bonus }",
  },
  ...[
    {
      without: "encoding products that change",
      from: "      this.codes?.set(row, unit)\n",
      to: "",
    },
    {
      without: "encoding all products again when the mean has moved",
      from: "moved <= codesMoveAt * (1 - meanSquared)",
      to: "moved < Number.POSITIVE_INFINITY",
    },
    {
      without: "encoding products that change while all are encoded",
      from: "      codes?.set(row, this.vectorAt(row))\n",
      to: "",
    },
  ].map((mutation) => ({
    ...mutation,
    scenario: "a search with codes finds 99 % of the best",
    tests: "test/services/recommend/LargeCatalogue.test.ts",
    file: "src/services/recommend/CatalogueRows.ts",
  })),
  {
    scenario: "without a vector index in the store all products are held in memory",
    without: "holding all products if there is no index",
    tests: "test/services/recommend/Catalogue.test.ts",
    file: "src/services/recommend/CatalogueRefresh.ts",
    from: "if (isIndexed) return",
    to: "return",
  },
  {
    scenario: "the pairs of a deleted product go with it",
    without: "removing the pairs of deleted products",
    tests: "test/services/recommend/ExactTerms.test.ts",
    file: "src/services/recommend/ProductWriter.ts",
    from: "yield* (yield* ProductPairs).remove(ids)",
    to: "yield* ProductPairs",
  },
  ...[
    {
      scenario: "nothing changes but the log",
      without: "leaving out rows of pruned events that were posted again",
      from: "rows: all.filter(({ interaction }) => !pruned.has(AppliedIds.prefix(interaction.message_id))),",
      to: "rows: all,",
    },
    {
      scenario: "takes the pruned events of a guest over",
      without: "the checkpoints of aliases",
      from: "[user_id, ...(links?.aliases ?? []).map((alias) => alias.user_id)]",
      to: "[user_id]",
    },
  ].map((one) => ({
    tests: "test/services/operate/Pruner.test.ts",
    file: "src/services/update/PrunedEvents.ts",
    ...one,
  })),
  {
    scenario: "newest events of the surviving events",
    tests: takingBack,
    without: "taking the ids of the frozen record",
    file: merges,
    from: "[...AppliedIds.toSet(source.applied), message_id]",
    to: "[message_id]",
  },
  ...[
    {
      without: "asking whether the target has taken the record",
      file: merges,
      from: "if (!hasAlias(target, source.user_id)) yield*",
      to: "yield*",
    },
    {
      without: "leaving a frozen record alone",
      file: updater,
      from: "links?.alias_of === undefined && links?.merging_into === undefined",
      to: "links?.alias_of === undefined",
    },
  ].map((one) => ({
    scenario: "finished by whoever meets it",
    tests: "test/programs/KilledMerges.test.ts",
    ...one,
  })),
  {
    scenario: "ids in the ledgers of both users",
    tests: "test/services/update/Merges.test.ts",
    without: "looking in the ledgers of aliases",
    file: "src/services/model/Aliases.ts",
    from: "[record, ...(record.links?.aliases ?? [])]",
    to: "[record]",
  },
  {
    scenario: "not applied yet, or applied in part",
    tests: "test/services/update/Merges.test.ts",
    without: "erasing all ids of a person",
    file: "src/layers/sql/SqlErasures.ts",
    from: "({ ids }) => begin(ids)",
    to: "() => begin(wanted)",
  },
  {
    scenario: "merges at the same time form no circle",
    tests: "test/layers/sql/SqlInteractionLog.test.ts",
    without: "locking the people of a merge",
    file: "src/layers/sql/SqlAliases.ts",
    from: "yield* linksOf(sql, wanted, lock)",
    to: "yield* linksOf(sql, wanted)",
  },
  {
    scenario: "GET /metrics needs a token with a scope",
    tests: doors,
    without: "checking the scope of the route",
    file: "src/layers/http/HttpHandlers.ts",
    from: "if (refused !== undefined) return yield* refused",
    to: "if (refused?.status === 0) return yield* refused",
  },
  {
    scenario: "a small body that becomes a very large one",
    tests: doors,
    without: "counting inflated bytes",
    file: "src/layers/http/HttpBody.ts",
    from: "{ maxOutputLength: limit }",
    to: "{}",
  },
  {
    scenario: "a preflight of an allowed origin is answered",
    tests: doors,
    without: "comparing whole origins",
    file: "src/layers/http/HttpCors.ts",
    from: "origins.includes(origin)",
    to: "origins.some((one) => origin.startsWith(one))",
  },
  {
    scenario: "a beacon to search from https://shop.example with old",
    tests: doors,
    without: "refusing powerful tokens in URLs",
    file: "src/layers/http/HttpAuthorisation.ts",
    from: 'token.scopes.join() === "write"',
    to: 'token.scopes.includes("write")',
  },
  {
    scenario: "a bulk request takes nothing back without the scope person",
    tests: doors,
    without: "the scope of single items",
    file: "src/layers/http/RecordingRoutes.ts",
    from: "noPerson !== undefined && isCorrection(item)",
    to: 'noPerson === "" && isCorrection(item)',
  },
  {
    scenario: "a timestamp in the future becomes now",
    tests: segment,
    without: "the key of a call",
    file: "src/services/record/SegmentCalls.ts",
    from: "item.product_id}` : messageId",
    to: "item.product_id}` : undefined",
  },
  {
    scenario: "a refund waits for its order",
    tests: segment,
    without: "noting refunds",
    file: "src/services/record/OrderRefunds.ts",
    from: "yield* log.noteRefunds(refunds)",
    to: "",
  },
  {
    scenario: "a refund waits for its order",
    tests: segment,
    without: "looking for the refund of an order",
    file: "src/services/record/OrderRefunds.ts",
    from: "else if (order !== undefined) users.add",
    to: "else if (order === null) users.add",
  },
  {
    scenario: "a refund whose order arrives while it looks",
    tests: segment,
    without: "noting a refund before its order is looked for",
    file: "src/services/record/OrderRefunds.ts",
    from: "  yield* log.noteRefunds(refunds)\n  const people = [...Map.groupBy(refunds, ({ user_id }) => user_id)]\n  return yield* Effect.forEach(people, ([user, some]) => find(user, some))",
    to: "  const people = [...Map.groupBy(refunds, ({ user_id }) => user_id)]\n  const found = yield* Effect.forEach(people, ([user, some]) => find(user, some))\n  yield* log.noteRefunds(refunds)\n  return found",
  },
  {
    scenario: "a refund finds the order of a guest",
    tests: segment,
    without: "looking for the refunds of people who are merged",
    file: "src/services/record/OrderRefunds.ts",
    from: "if (isMerge(interaction)) merged.add",
    to: "if (interaction === null) merged.add",
  },
  {
    scenario: "a refund of a pruned purchase",
    tests: segment,
    without: "keeping the purchases of orders that are pruned",
    file: "src/layers/sql/SqlCheckpoints.ts",
    from: "yield* keepPurchases(sql, parts)",
    to: "yield* keepPurchases(sql, [])",
  },
  {
    scenario: "a token with the scope write alone merges nobody",
    tests: segment,
    without: "the scope of single calls",
    file: "src/layers/http/HttpSegment.ts",
    from: "refused !== undefined && needsPerson(meant)",
    to: "refused?.status === 0 && needsPerson(meant)",
  },
  { scenario: "newest events of the surviving events", tests: takingBack, ...idsUnchecked },
  {
    scenario: "newest events of the surviving events",
    tests: takingBack,
    without: "recording what is taken back before it is applied",
    file: updater,
    from: "...[...retracted].filter((id) => !isApplied(user_id, id)),",
    to: "",
  },
  {
    scenario: "whose product was embedded anew",
    tests: takingBack,
    without: "comparing the product's stamp",
    file: "src/services/update/Retractions.ts",
    from: "changed + maxClockDifference < recorded",
    to: "recorded > 0",
  },
  {
    scenario: "killed and read-only under load on two APIs",
    without: "replacing connections to a read-only server",
    file: "src/layers/sql/MysqlPool.ts",
    from: "if (isStale(cause) || isConnectionLost(error)) {",
    to: "if (isConnectionLost(error)) {",
  },
  {
    scenario: "killed and read-only under load on two APIs",
    without: "splitting a statement that is too large",
    file: "src/layers/sql/SqlAppend.ts",
    from: "if (!isTooLarge(error) || entries.length === 1)",
    to: "if (!isTooLarge(error) || entries.length <= 1_000)",
  },
  { scenario: "answers with errors of its own", ...noOutage },
  { scenario: "workers killed at random points", ...ackFirst },
  { scenario: "workers killed at random points", ...idsUnchecked },
  {
    scenario: "MongoDB is out: the backlog is given back",
    without: "giving back what waits",
    file: worker,
    from: "yield* settleAll(worker, settled)\n  return",
    to: "yield* settleAll(worker, settled.filter(([, one]) => !isWaiting(one)))\n  return",
  },
  {
    scenario: "MongoDB is out: the backlog is given back",
    without: "publishing again what is given back",
    file: republish,
    from: "const left = yield* this.attempt(\n",
    to: 'this.intake.requeue(notAcked.flatMap(([one, { _tag }]) => (_tag === "Return" ? [one] : [])))\n    const left = yield* this.attempt(\n',
  },
  {
    scenario: "the embedding service 401",
    without: "receiving product events while the embedding service is out",
    file: "src/services/update/OutageState.ts",
    from: 'return { main: "all", setAside: probe }',
    to: 'return { main: "none", setAside: probe }',
  },
  {
    scenario: "workers killed at random points",
    without: "the version in the compare-and-swap",
    file: "src/layers/mongodb/MongoUserEmbeddings.ts",
    from: '$eq: ["$version", expected]',
    to: '$gte: ["$version", 0]',
  },
  { scenario: "workers killed while a write hangs", ...ackFirst },
  { scenario: "workers killed between write and acknowledgement", ...idsUnchecked },
  {
    scenario: "the API killed between commit and publish",
    without: "marking rows published only after the confirmation",
    file: relay,
    from: "const confirmations = yield* queue.publish(rows.map(toMessage))",
    to: "yield* log.markPublished(rows, yield* Clock.currentTimeMillis)\n    const confirmations = yield* queue.publish(rows.map(toMessage))",
  },
  ...["between commit and publish", "at random points under load"].map((name) => ({
    scenario: `the API killed ${name}`,
    without: "draining the outbox",
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
    without: "leaving what could not be published to the drain",
    file: relay,
    from: "const confirmations = yield* queue.publish(rows.map(toMessage))",
    to: 'const confirmations = yield* Effect.orElseSucceed(queue.publish(rows.map(toMessage)), () => rows.map(() => "confirmed"))',
  },
  {
    scenario: "RabbitMQ out of memory",
    without: "answering before publishing",
    file: "src/services/record/InteractionRecorder.ts",
    from: "let next = 0\n    for (const job",
    to: "yield* Effect.ignore(relay.drain)\n    let next = 0\n    for (const job",
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
    without: "looking for applied ids in the overflow",
    file: updater,
    from: "if (ledgersOfUser(user_id).length === 0)",
    to: "if (ledgersOfUser(user_id).length >= 0)",
  },
  ...[
    {
      without: "the row's id in messages",
      file: relay,
      from: "logId: id,",
      to: "",
    },
    {
      without: "publishing rows again that became visible after an erasure",
      file: "src/layers/sql/SqlErasures.ts",
      from: "if (note === undefined) return 0",
      to: "if (note !== undefined) return 0",
    },
    {
      without: "the generation of ids in the ledger",
      file: "src/services/model/AppliedIds.ts",
      from: 'generation === 0 ? "" :',
      to: 'generation >= 0 ? "" :',
    },
    {
      without: "removing what an attempt before the erasure has stored",
      file: updater,
      from: "if (erased.length === 0) return",
      to: "if (erased.length >= 0) return",
    },
  ].map((mutation) => ({ scenario: "erasures at random moments", ...mutation })),
  {
    scenario: "poison ten kinds",
    without: "keeping the original bytes",
    file: republish,
    from: "routingKey, body, options }",
    to: "routingKey, body: Buffer.from(Buffer.from(body).toString()), options }",
  },
  {
    scenario: "poison one that kills",
    without: "quarantine",
    file: "src/services/update/Quarantine.ts",
    from: "export const quarantineAfterRedeliveries = 3",
    to: "export const quarantineAfterRedeliveries = 3_000",
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
    without: "the retry queues",
    file: policies,
    from: "const delay = delays[retryCount]",
    to: "const delay = delays[delays.length]",
  },
  {
    scenario: "the embedding service 429",
    without: "Retry-After",
    file: policies,
    from: 'failureClass._tag === "Retryable" && failureClass.notBefore',
    to: 'failureClass._tag !== "Retryable" && "notBefore" in failureClass',
  },
  {
    scenario: "the embedding service 401",
    without: "pausing while the service refuses",
    file: policies,
    from: '        case "unauthorized":\n        case "quota_exhausted":\n        case "misconfigured":\n',
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
    from: "worker.state = OutageState.stop(worker.state)",
    to: 'worker.state = OutageState.stop(worker.state)\n  const left = worker.held.take(worker.state, 1e9, 0, false).work?.batch ?? []\n  yield* worker.consumer.settle(left.map((one) => [one.delivery, { _tag: "Ack" }] as const))',
  },
  {
    scenario: "SIGTERM twice",
    without: "ending at the second signal",
    file: "src/programs/main.ts",
    from: "if (stoppedBy !== undefined) process.exit(codeOf(signal))",
    to: "",
  },
]

/** Runs one scenario. Answers the first error when it fails, and undefined when it passes. */
const errorOf = async (
  { scenario, tests = "test/failures" }: Mutation,
  env: NodeJS.ProcessEnv,
): Promise<string | undefined> => {
  const child = Bun.spawn([process.execPath, "test", tests, "--test-name-pattern", scenario], {
    cwd: root,
    env,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  })
  const [output, code] = await Promise.all([child.stderr.text(), child.exited])
  if (!/^ *1 (pass|fail)$/m.test(output)) return `NOT ONE SCENARIO: ${output.trim().split("\n").at(-1)}`
  return code === 0 ? undefined : (output.match(/^error: .*|.*timed out.*/m)?.[0] ?? "failed")
}

/** Applies a mutation, runs its scenario and restores the file. A verdict in capitals is a mutation not noticed. */
const verdictOn = async (mutation: Mutation, env: NodeJS.ProcessEnv): Promise<string> => {
  const { file, from, to } = mutation
  const path = resolve(root, file)
  const source = await Bun.file(path).text()
  if (!source.includes(from)) return "NOT FOUND in the source: adapt the mutation"
  await Bun.write(
    path,
    source.replace(from, () => to),
  )
  try {
    return (await errorOf(mutation, env)) ?? "SURVIVED: the scenario still passes"
  } finally {
    await Bun.write(path, source)
  }
}

const main = async (words: ReadonlyArray<string>): Promise<number> => {
  if ((await run(["git", "status", "--porcelain", "src"], { cwd: root })) !== "")
    throw new Error("src has changes: commit them first")
  const chosen = mutations.filter(
    ({ scenario }) => words.length === 0 || words.some((word) => scenario.includes(word)),
  )
  const { statuses } = await up({ only: ["mysql"] })
  const servers: NodeJS.ProcessEnv = Object.assign({}, ...statuses.map(({ env }) => env))
  servers[sacrificial.sacrificialVariable] = await sacrificial.up()
  let unnoticed = 0
  for (const mutation of chosen) {
    const verdict = await verdictOn(mutation, { ...process.env, ...servers })
    if (/^[A-Z]{3}/.test(verdict)) unnoticed += 1
    console.log(`${mutation.scenario} | without ${mutation.without} | ${verdict}`)
  }
  console.log(`${chosen.length - unnoticed} of ${chosen.length} mutations noticed`)
  return unnoticed === 0 ? 0 : 1
}

if (import.meta.main) process.exit(await main(process.argv.slice(2)))
