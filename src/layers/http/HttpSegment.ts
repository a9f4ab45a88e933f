/** Handlers of the group `segment`: calls become interactions. */
import { HttpApiBuilder } from "@effect/platform"
import { Array as Arr, Chunk, Clock, Effect, Either, Predicate, Stream } from "effect"
import { api } from "../../services/api/InteractionApi.ts"
import { segmentBodyBytes } from "../../services/api/SegmentApi.ts"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import { retract } from "../../services/model/Interaction.ts"
import { Problem, unprocessable } from "../../services/model/Problem.ts"
import { InteractionLog, type OrderRefund } from "../../services/ports/InteractionLog.ts"
import { InteractionRecorder, type Submission } from "../../services/record/InteractionRecorder.ts"
import * as SegmentCalls from "../../services/record/SegmentCalls.ts"
import * as Telemetry from "../../services/Telemetry.ts"
import { CurrentCaller, missingScope } from "./HttpAuthorisation.ts"
import { onWebRequest, parseBody } from "./HttpBody.ts"
import { RecordingRoutes, tooMany, unavailable } from "./RecordingRoutes.ts"

/** The calls of a body. Those of a batch have their type with them. */
const callsOf = (name: string, body: unknown): Either.Either<ReadonlyArray<unknown>, Problem> => {
  if (!Predicate.isRecord(body))
    return Either.left(unprocessable([{ field: "", detail: "must be a JSON object" }]))
  if (name !== "batch") return Either.right([{ ...body, type: name }])
  return Array.isArray(body.batch)
    ? Either.right(body.batch)
    : Either.left(unprocessable([{ field: "batch", detail: "must be an array of calls" }]))
}

/** What became of the calls. */
class Counts {
  readonly report = {
    success: true as const,
    recorded: 0,
    duplicates: 0,
    waiting: 0,
    ignored: {} as Record<string, number>,
  }

  count(outcome: "recorded" | "duplicates" | "waiting" | SegmentCalls.Ignored): void {
    Telemetry.count(Telemetry.segmentCalls(outcome))
    const { ignored } = this.report
    if (outcome === "recorded" || outcome === "duplicates" || outcome === "waiting") this.report[outcome]++
    else ignored[outcome] = (ignored[outcome] ?? 0) + 1
  }
}

const answers = {
  Recorded: "recorded",
  Duplicate: "duplicates",
  KeyReused: "key_reused",
  Refused: "refused",
} as const

/** Interactions of one append: a batch may hold more than may wait for a commit. */
const mostPerAppend = 1_000

const record = (submissions: ReadonlyArray<Submission>, counts: Counts) =>
  Effect.forEach(
    Arr.chunksOf(submissions, mostPerAppend),
    (chunk) =>
      Effect.flatMap(InteractionRecorder, (recorder) => recorder.record(chunk)).pipe(
        Effect.mapError(unavailable),
        Effect.tap((appended) => {
          for (const { _tag } of appended) counts.count(answers[_tag])
        }),
      ),
    { discard: true },
  )

/** Takes back those purchases of the order that are in the log. */
const takeBack = Effect.fnUntraced(function* ({ order_id, products, user_id }: OrderRefund, counts: Counts) {
  const log = yield* InteractionLog
  const purchases = yield* Stream.runCollect(log.stream({ user: user_id, type: "product_purchase" })).pipe(
    Effect.mapError(unavailable),
  )
  const wanted = new Set<string | null>(products)
  const refunded = Chunk.toReadonlyArray(purchases).flatMap(({ interaction }) => {
    const isOfOrder = SegmentCalls.orderIdOf(interaction.metadata.order_id) === order_id
    const isRefunded = wanted.size === 0 || wanted.has(interaction.product_id)
    return isOfOrder && isRefunded ? [retract(interaction)] : []
  })
  if (refunded.length === 0) counts.count("waiting")
  const submissions = refunded.map((interaction) => ({
    interaction,
    idempotencyKey: null,
    occurredAtGiven: true,
  }))
  yield* record(submissions, counts)
})

/**
 * An order and its refund may arrive in any order, and at the same time. Each is stored before the other one is looked
 * for, so at least one of them finds the other.
 */
const refund = Effect.fnUntraced(function* (refunds: ReadonlyArray<OrderRefund>, counts: Counts) {
  const log = yield* InteractionLog
  for (const one of refunds) {
    yield* Effect.mapError(log.noteRefund(one), unavailable)
    yield* takeBack(one, counts)
  }
})
const refundOrders = Effect.fnUntraced(function* (submissions: ReadonlyArray<Submission>, counts: Counts) {
  const log = yield* InteractionLog
  const orders = new Map<string, readonly [string, string]>()
  for (const { interaction } of submissions) {
    const order = SegmentCalls.orderIdOf(interaction.metadata.order_id)
    if (interaction.event_type === "product_purchase" && order !== undefined)
      orders.set(`${interaction.user_id}|${order}`, [interaction.user_id, order])
  }
  for (const [user, order] of orders.values()) {
    const noted = yield* Effect.mapError(log.refundOf(user, order), unavailable)
    if (noted !== undefined) yield* takeBack(noted, counts)
  }
})

const userOf = (meant: Submission | OrderRefund): string =>
  SegmentCalls.isRefund(meant) ? meant.user_id : meant.interaction.user_id
const needsPerson = (meant: SegmentCalls.Meant): boolean =>
  typeof meant === "object" && (SegmentCalls.isRefund(meant) || meant.interaction.event_type === "merge")

/** What the calls mean, one list for each. Effect gives other requests a turn between them. */
const meaningsOf = Effect.fnUntraced(function* (calls: ReadonlyArray<unknown>) {
  const { eventTypes } = yield* EmbeddingConfig
  const now = yield* Clock.currentTimeMillis
  return (yield* Effect.forEach(calls, (call) =>
    Effect.sync(() => SegmentCalls.meaningOf(call, now, eventTypes)),
  )).flat()
})

const take = Effect.fnUntraced(function* (name: string, body: unknown) {
  const { takeToken } = yield* RecordingRoutes
  const meanings = yield* meaningsOf(yield* callsOf(name, body))
  const refused = missingScope(yield* CurrentCaller, ["person"])
  // In a batch the other calls count.
  if (refused !== undefined && name !== "batch" && meanings.some(needsPerson)) return yield* refused
  // A library sends a refused batch again as it is. If each event counted, a large batch would never pass.
  const users = new Set(meanings.flatMap((meant) => (typeof meant === "object" ? [userOf(meant)] : [])))
  if (![...users].every(takeToken))
    return yield* new Problem({ status: 429, detail: tooMany, headers: { "retry-after": "1" } })
  const counts = new Counts()
  const submissions: Array<Submission> = []
  const refunds: Array<OrderRefund> = []
  for (const meant of meanings)
    if (typeof meant === "string") counts.count(meant)
    else if (refused !== undefined && needsPerson(meant)) counts.count("missing_scope")
    else if (SegmentCalls.isRefund(meant)) refunds.push(meant)
    else submissions.push(meant)
  yield* record(submissions, counts)
  yield* refundOrders(submissions, counts)
  yield* refund(refunds, counts)
  return counts.report
})

// Raw: see decodeBody.
export const segment = HttpApiBuilder.group(api, "segment", (handlers) =>
  handlers.handleRaw("segment", ({ path, request }) =>
    Effect.flatMap(
      onWebRequest(request, (web) => parseBody(web, segmentBodyBytes)),
      (body) => take(path.call, body),
    ),
  ),
)
