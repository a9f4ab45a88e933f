/** Handlers of the group `segment`: calls become interactions. */
import { HttpApiBuilder } from "@effect/platform"
import { Clock, Effect, Either, Predicate } from "effect"
import { api } from "../../services/api/InteractionApi.ts"
import { segmentBodyBytes } from "../../services/api/SegmentApi.ts"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import { type Problem, unprocessable } from "../../services/model/Problem.ts"
import type { Appended, OrderRefund } from "../../services/ports/InteractionLog.ts"
import { recordAll, type Submission } from "../../services/record/InteractionRecorder.ts"
import * as OrderRefunds from "../../services/record/OrderRefunds.ts"
import * as SegmentCalls from "../../services/record/SegmentCalls.ts"
import * as Telemetry from "../../services/Telemetry.ts"
import { CurrentCaller, missingScope } from "./HttpAuthorisation.ts"
import { onWebRequest, parseBody } from "./HttpBody.ts"
import { allowedOrigins } from "./HttpCors.ts"
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

const answers = {
  Recorded: "recorded",
  Duplicate: "duplicates",
  KeyReused: "key_reused",
  Refused: "refused",
} as const

/** What became of the calls. */
class Counts {
  readonly report = {
    success: true as const,
    recorded: 0,
    duplicates: 0,
    waiting: 0,
    ignored: {} as Record<string, number>,
  }

  countAppended(appended: ReadonlyArray<Appended>): void {
    for (const { _tag } of appended) this.count(answers[_tag])
  }

  count(outcome: "recorded" | "duplicates" | "waiting" | SegmentCalls.Ignored, times = 1): void {
    if (times === 0) return
    Telemetry.count(Telemetry.segmentCalls(outcome), times)
    const { ignored } = this.report
    if (outcome === "recorded" || outcome === "duplicates" || outcome === "waiting")
      this.report[outcome] += times
    else ignored[outcome] = (ignored[outcome] ?? 0) + times
  }
}

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

/** Takes the purchases of orders back, now or when they arrive. */
const refund = Effect.fnUntraced(function* (counts: Counts, refunds: ReadonlyArray<OrderRefund>) {
  for (const { pruned, prunedRefunds, retractions, waiting } of yield* OrderRefunds.refund(refunds)) {
    counts.countAppended(
      yield* recordAll(
        retractions.map((interaction) => ({ interaction, idempotencyKey: null, occurredAtGiven: true })),
      ),
    )
    counts.count("pruned", pruned)
    counts.count("duplicates", prunedRefunds)
    counts.count("waiting", waiting)
  }
})

const take = Effect.fnUntraced(function* (name: string, body: unknown) {
  const { takeToken } = yield* RecordingRoutes
  const meanings = yield* meaningsOf(yield* callsOf(name, body))
  const refused = missingScope(yield* CurrentCaller, ["person"])
  // In a batch the other calls count.
  if (refused !== undefined && name !== "batch" && meanings.some(needsPerson)) return yield* refused
  // A library sends a refused batch again as it is. If each event counted, a large batch would never pass.
  const users = new Set(meanings.flatMap((meant) => (typeof meant === "object" ? [userOf(meant)] : [])))
  if (![...users].every(takeToken)) return yield* tooMany()
  const counts = new Counts()
  const submissions: Array<Submission> = []
  const refunds: Array<OrderRefund> = []
  for (const meant of meanings)
    if (typeof meant === "string") counts.count(meant)
    else if (refused !== undefined && needsPerson(meant)) counts.count("missing_scope")
    else if (SegmentCalls.isRefund(meant)) refunds.push(meant)
    else submissions.push(meant)
  counts.countAppended(yield* recordAll(submissions))
  if (refunds.length > 0) yield* refund(counts, refunds)
  return counts.report
})

/**
 * Some libraries name no JSON: RudderStack's for Node sends compressed batches as a form. A page can send such a request
 * without a preflight, so its origin must be allowed. Other programs send no origin.
 */
const typesOf = ({ headers }: Request, isAllowed: (origin: string) => boolean): ReadonlyArray<string> => {
  const origin = headers.get("origin")
  return origin === null || isAllowed(origin) ? ["text/plain", "application/x-www-form-urlencoded"] : []
}

// Raw: see decodeBody.
export const segment = HttpApiBuilder.group(api, "segment", (handlers) =>
  Effect.map(allowedOrigins, (isAllowed) =>
    handlers.handleRaw("segment", ({ path, request }) =>
      Effect.flatMap(
        onWebRequest(request, (web) => parseBody(web, segmentBodyBytes, typesOf(web, isAllowed))),
        (body) => Effect.catchTag(take(path.call, body), "InteractionLogError", unavailable),
      ),
    ),
  ),
)
