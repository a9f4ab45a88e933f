/** Handlers of the group `interactions`: read, decode, record, word the answer. */
import { HttpApiBuilder, type HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { Clock, Effect, Either } from "effect"
import type { EventType } from "../services/Interaction.ts"
import { api, type BulkReport, bodyBytes, bulkBodyBytes, bulkItems } from "../services/InteractionApi.ts"
import type { Appended, InteractionLogError } from "../services/InteractionLog.ts"
import { InteractionRecorder, type Submission as Submitted } from "../services/InteractionRecorder.ts"
import { type FieldIssue, Problem, unprocessable } from "../services/Problem.ts"
import * as RateLimiter from "../services/RateLimiter.ts"
import * as Settings from "../services/Settings.ts"
import * as Submission from "../services/Submission.ts"
import { answer } from "./HttpAnswer.ts"
import { readJson } from "./HttpBody.ts"

type Request = HttpServerRequest.HttpServerRequest

/** The log can't take interactions now; whether a timed-out one was recorded, a repetition tells. */
const unavailable = (error: InteractionLogError): Problem =>
  new Problem({
    status: 503,
    detail:
      error.reason === "timeout"
        ? "the interaction log did not answer in time; with occurred_at or an Idempotency-Key it is safe to send it again"
        : error.reason === "not_set_up"
          ? "the interaction log is not set up: run user-embeddings setup"
          : "the interaction log is not available; send it again later",
    headers: { "retry-after": "1" },
  })

const orProblem = <A>(decoded: Either.Either<A, ReadonlyArray<FieldIssue>>) =>
  Either.mapLeft(decoded, unprocessable)

const keyReused: FieldIssue = {
  field: "Idempotency-Key",
  detail: "was used before for another interaction of this user",
}
const tooMany = "too many interactions of this user"

const recorded = ({ _tag, interaction }: Appended) => ({
  message_id: interaction.message_id,
  user_id: interaction.user_id,
  event_type: interaction.event_type,
  occurred_at: interaction.occurred_at,
  duplicate: _tag !== "Recorded",
})

export const interactions = HttpApiBuilder.group(api, "interactions", (handlers) =>
  Effect.gen(function* () {
    const recorder = yield* InteractionRecorder
    const limit = RateLimiter.make(yield* Settings.RATE_LIMIT_PER_USER)

    const recordOne = (
      request: Request,
      decode: (body: unknown, key: string | undefined, now: number) => Submission.Decoded,
    ) =>
      Effect.gen(function* () {
        const body = (yield* readJson(request, bodyBytes)) ?? {}
        const key = request.headers["idempotency-key"]
        const submission = yield* orProblem(decode(body, key, yield* Clock.currentTimeMillis))
        if (!(yield* limit(submission.interaction.user_id)))
          return yield* new Problem({ status: 429, detail: tooMany, headers: { "retry-after": "1" } })
        const [appended] = yield* Effect.mapError(recorder.record([submission]), unavailable)
        if (appended === undefined || appended._tag === "KeyReused") return yield* unprocessable([keyReused])
        return yield* HttpServerResponse.json(recorded(appended), {
          status: appended._tag === "Recorded" ? 201 : 200,
        })
      })

    const productEvent =
      (type: Exclude<EventType, "search">) =>
      ({
        path,
        request,
      }: {
        readonly path: { readonly userId: string; readonly productId: string }
        readonly request: Request
      }) =>
        recordOne(request, (body, key, now) =>
          Submission.ofProduct(path.userId, path.productId, type, body, key, now),
        )

    const bulk = Effect.fnUntraced(function* (request: Request) {
      const body = yield* readJson(request, bulkBodyBytes)
      if (!Array.isArray(body) || body.length === 0 || body.length > bulkItems)
        return yield* unprocessable([
          { field: "", detail: `must be a JSON array of 1 to ${bulkItems} interactions` },
        ])
      const now = yield* Clock.currentTimeMillis
      const results: Array<(typeof BulkReport.Type)["results"][number]> = []
      const accepted: Array<{ readonly index: number; readonly submission: Submitted }> = []
      for (const [index, item] of body.entries()) {
        const decoded = Submission.ofBulkItem(item, now)
        if (Either.isLeft(decoded)) {
          const { detail, errors } = unprocessable(decoded.left)
          results[index] = { index, status: 422, error: { detail, ...(errors ? { errors } : {}) } }
        } else if (yield* limit(decoded.right.interaction.user_id))
          accepted.push({ index, submission: decoded.right })
        else results[index] = { index, status: 429, error: { detail: tooMany } }
      }
      const appended =
        accepted.length === 0
          ? []
          : yield* Effect.mapError(recorder.record(accepted.map(({ submission }) => submission)), unavailable)
      for (const [i, { index }] of accepted.entries()) {
        const one = appended[i]!
        results[index] =
          one._tag === "KeyReused"
            ? { index, status: 422, error: { detail: `idempotency_key: ${keyReused.detail}` } }
            : {
                index,
                status: one._tag === "Recorded" ? 201 : 200,
                message_id: one.interaction.message_id,
                duplicate: one._tag === "Duplicate",
              }
      }
      const counted = (status: number) => results.filter((result) => result.status === status).length
      const rejected = counted(422) + counted(429)
      const report: typeof BulkReport.Type = {
        accepted: counted(201),
        duplicates: counted(200),
        rejected,
        results,
      }
      return yield* HttpServerResponse.json(report, { status: rejected === 0 ? 200 : 207 })
    })

    return handlers
      .handleRaw("search", ({ path, request }) =>
        answer(recordOne(request, (body, key, now) => Submission.ofSearch(path.userId, body, key, now))),
      )
      .handleRaw("view", (all) => answer(productEvent("product_view")(all)))
      .handleRaw("click", (all) => answer(productEvent("product_click")(all)))
      .handleRaw("purchase", (all) => answer(productEvent("product_purchase")(all)))
      .handleRaw("bulk", ({ request }) => answer(bulk(request)))
  }),
)
