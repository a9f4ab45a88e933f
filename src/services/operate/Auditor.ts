/**
 * Step: compares the log with the embeddings, user by user. Both sides are read in the order of users and compared by
 * count and fingerprint (the XOR of the ids), so memory stays bounded. Only users who differ are compared id by id. The
 * outbox, the queues, the dead letters and products without an embedding explain why an interaction is not applied. An
 * interaction that nothing explains, even when the audit checks again later, is missing.
 */
import { Array as Arr, Context, Effect, Layer, Option, Schema, Stream } from "effect"
import type { UserId } from "../model/Interaction.ts"
import { content, type DeadLettersError } from "../ports/DeadLetters.ts"
import type { InteractionLogError } from "../ports/InteractionLog.ts"
import type { Depths, InteractionQueueError } from "../ports/InteractionQueue.ts"
import type { ProductEmbeddingsError } from "../ports/ProductEmbeddings.ts"
import { loadReadable, type UserEmbeddingsError } from "../ports/UserEmbeddings.ts"
import { auditUser, loadStates, type Services, services, splitApplied } from "./AuditedUser.ts"
import { auditAllUsers, readPeople, usersAtOnce } from "./AuditedUsers.ts"
import { type AuditReport, Findings } from "./AuditFindings.ts"

export { type AuditReport, type Finding, mostDetails } from "./AuditFindings.ts"

type AuditError =
  | InteractionLogError
  | UserEmbeddingsError
  | InteractionQueueError
  | DeadLettersError
  | ProductEmbeddingsError

interface AuditOptions {
  readonly user?: UserId | undefined
  readonly details?: boolean
  /** Receives the number of log rows read so far. */
  readonly progress?: (rows: number) => Effect.Effect<void>
}

export class Auditor extends Context.Tag("user-embeddings/Auditor")<
  Auditor,
  { readonly audit: (options: AuditOptions) => Effect.Effect<AuditReport, AuditError> }
>() {}

export class Inconsistent extends Schema.TaggedError<Inconsistent>()("Inconsistent", {
  missing: Schema.Number,
  extra: Schema.Number,
  not_erased: Schema.Number,
}) {
  override get message() {
    const left = this.not_erased === 0 ? "" : `, ${this.not_erased} are not erased`
    return `${this.missing} interactions are missing, ${this.extra} are extra${left}`
  }
}

/** Rows checked together. */
const page = 1_000
/** Consumers hold messages that no queue shows, so while there are consumers the audit checks this often. */
const mostChecks = 7
const pause = "1 second"

/** Interactions that may be in a queue, at most. */
const queued = ({ main, quarantined, retry }: Depths, eventsPerMessage: number): number =>
  main.ready * eventsPerMessage +
  main.unacked +
  quarantined +
  Object.values(retry).reduce((sum, depth) => sum + depth, 0)

const explainByDeadLetters = Effect.fnUntraced(function* ({ deadLetters }: Services, findings: Findings) {
  const wanted = new Set(findings.unexplained.map(({ message_id }) => message_id))
  const dead = new Set<string>()
  yield* Stream.runForEach(deadLetters.list, (deadLetter) =>
    Effect.sync(() => {
      const { message_id } = content(deadLetter)
      if (message_id !== null && wanted.has(message_id)) dead.add(message_id)
    }),
  )
  const [others, found] = Arr.partition(findings.unexplained, ({ message_id }) => dead.has(message_id))
  for (const one of found) findings.add("dead", one)
  findings.unexplained = others
})

/** The queues are read first: an interaction that has left them by then is on its user's record, which is read later. */
const checkAgain = Effect.fnUntraced(function* (services: Services, findings: Findings) {
  if (findings.unexplained.length === 0) return { consumers: 0, queued: 0, unacked: 0 }
  const { queue } = services
  const depths = yield* queue.depths
  const people = yield* readPeople(services)
  const parts = yield* Effect.forEach(
    Arr.chunksOf(findings.unexplained, page),
    (some) => {
      const rows = some.map((row) => ({ ...row, user_id: people.ownerOf(row.posted_as) }))
      const wanted = new Map(rows.map(({ user_id }) => [user_id, people.idsOf(user_id)]))
      return Effect.flatMap(loadStates(services, wanted), (states) => splitApplied(services, rows, states))
    },
    { concurrency: usersAtOnce },
  )
  findings.unexplained = parts.flatMap(({ unapplied }) => unapplied)
  if (findings.unexplained.length > 0) yield* explainByDeadLetters(services, findings)
  const { consumers, unacked } = depths.main
  return { consumers, queued: queued(depths, queue.eventsPerMessage), unacked }
})

/**
 * Answers how many of the unexplained interactions may be in flight. A message that moves between queues may be seen in
 * neither, and a message held by another process is in none, so the audit checks several times.
 */
const explainByQueues = Effect.fnUntraced(function* (services: Services, findings: Findings) {
  const { queue } = services
  let found = yield* checkAgain(services, findings)
  const tooMany = () => findings.unexplainedCount > found.queued
  for (let checks = 1; tooMany() && checks < (found.consumers > 0 ? mostChecks : 2); checks++) {
    yield* Effect.sleep(pause)
    found = yield* checkAgain(services, findings)
  }
  const held = tooMany() && found.consumers > 0 ? ((yield* queue.traffic)?.unacked ?? 0) : 0
  return found.queued + Math.max(0, held * queue.eventsPerMessage - found.unacked)
})

/** Again, because an erasure may have been in progress. */
const auditBehindErasures = Effect.fnUntraced(function* (services: Services, findings: Findings) {
  if (findings.behindErasures.length === 0) return
  yield* Effect.sleep(pause)
  const finished = new Set((yield* services.log.finishedErasures).map(({ user_id }) => user_id))
  yield* Effect.forEach(findings.behindErasures, (user) => auditUser(services, findings, user, finished), {
    concurrency: usersAtOnce,
    discard: true,
  })
})

const isKnownId = Effect.fnUntraced(function* ({ log, users }: Services, user: UserId) {
  const { ids } = yield* log.person(user)
  if ((yield* loadReadable(users, ids)).size > 0 || (yield* log.pruned.checkpoints(ids)).length > 0)
    return true
  return Option.isSome(yield* Stream.runHead(log.stream({ user })))
})

const audit = Effect.fn("Auditor.audit")(function* (services: Services, options: AuditOptions) {
  const findings = new Findings(options.details ?? false)
  if (options.user === undefined)
    yield* auditAllUsers(services, findings, options.progress ?? (() => Effect.void))
  else if (yield* isKnownId(services, options.user)) {
    findings.users = 1
    const { user_id } = yield* services.log.person(options.user)
    yield* auditUser(services, findings, user_id)
  }
  yield* auditBehindErasures(services, findings)
  findings.conclude(yield* explainByQueues(services, findings))
  return findings.report()
})

export const layer = Layer.effect(
  Auditor,
  Effect.map(services, (services) => ({ audit: (options: AuditOptions) => audit(services, options) })),
)
