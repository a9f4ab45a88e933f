/** The handlers of the HTTP contract: read, decode, call the step, word the answer. */
import { HttpApiBuilder, type HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { Clock, Effect, Either, Layer, type ParseResult, Schema } from "effect"
import { EmbeddingConfig } from "../services/EmbeddingConfig.ts"
import { EventVectors } from "../services/EventVectors.ts"
import * as Health from "../services/Health.ts"
import type { EventType } from "../services/Interaction.ts"
import { issues } from "../services/Interaction.ts"
import {
  api,
  type BulkReport,
  bodyBytes,
  bulkBodyBytes,
  bulkItems,
  ProductEmbeddingBody,
  vectorBytes,
} from "../services/InteractionApi.ts"
import type { Appended, InteractionLogError } from "../services/InteractionLog.ts"
import { InteractionRecorder, type Submission as Submitted } from "../services/InteractionRecorder.ts"
import { type FieldIssue, Problem, unprocessable } from "../services/Problem.ts"
import { ProductEmbeddings } from "../services/ProductEmbeddings.ts"
import * as RateLimiter from "../services/RateLimiter.ts"
import * as Settings from "../services/Settings.ts"
import * as Submission from "../services/Submission.ts"
import { UserEmbeddings } from "../services/UserEmbeddings.ts"
import * as Vector from "../services/Vector.ts"
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
const notNow = (what: string) => () =>
  new Problem({
    status: 503,
    detail: `${what} are not available; try again later`,
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

const interactions = HttpApiBuilder.group(api, "interactions", (handlers) =>
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

const decodeProduct = Schema.decodeUnknownEither(ProductEmbeddingBody, {
  errors: "all",
  onExcessProperty: "error",
})

const embeddings = HttpApiBuilder.group(api, "embeddings", (handlers) =>
  Effect.gen(function* () {
    const users = yield* UserEmbeddings
    const products = yield* ProductEmbeddings
    const vectors = yield* EventVectors
    const { dimensions } = yield* EmbeddingConfig

    const show = Effect.fnUntraced(function* (user: string, withVector: boolean) {
      const records = yield* Effect.mapError(users.load([user]), notNow("user embeddings"))
      const record = records.get(user)
      if (record?.embedding === undefined)
        return yield* new Problem({ status: 404, detail: `user ${user} has no embedding` })
      const { created_at, embedding, last_updated, metadata, recent, updated_at, ...facts } = record.embedding
      const iso = (instant: number) => new Date(instant).toISOString()
      return yield* HttpServerResponse.json({
        ...facts,
        dimension_count: embedding.length,
        last_updated: iso(last_updated),
        created_at: iso(created_at),
        updated_at: iso(updated_at),
        version: record.version,
        recent: recent.map(({ product_id, search_phrase, ...event }) => ({
          ...event,
          ...(search_phrase === null ? { product_id } : { search_phrase }),
        })),
        metadata: { ...metadata, last_recalculation: iso(metadata.last_recalculation) },
        ...(withVector ? { embedding: [...embedding] } : {}),
      })
    })

    const vectorOf = Effect.fnUntraced(function* ({ text, vector }: typeof ProductEmbeddingBody.Type) {
      if (vector !== undefined) {
        const detail = Vector.problem(vector, dimensions)
        return detail === undefined
          ? Float32Array.from(vector)
          : yield* unprocessable([{ field: "vector", detail }])
      }
      const [embedded] = yield* vectors.ofTexts([text ?? ""])
      return yield* Either.mapLeft(embedded!, (error) =>
        error.reason === "invalid_input" || error.reason === "bad_vector"
          ? unprocessable([{ field: "text", detail: error.message }])
          : notNow("embeddings of texts")(),
      )
    })

    const store = Effect.fnUntraced(function* (product_id: string, request: Request) {
      const decoded = decodeProduct((yield* readJson(request, vectorBytes(dimensions))) ?? {})
      const body = yield* Either.mapLeft(decoded, (error: ParseResult.ParseError) =>
        unprocessable(
          issues(error).map(({ field, problem }) => ({
            field,
            detail: problem
              .replace(/^is unexpected.*/, "is not a known field")
              .replace(/^Expected Struct.*/, "must be a JSON object"),
          })),
        ),
      )
      const embedding = yield* vectorOf(body)
      const { category = null, product_name = null, text = null } = body
      const product = { product_id, embedding, product_name, category, space: vectors.space, text }
      const [created = false] = yield* Effect.mapError(
        products.upsert([product]),
        notNow("product embeddings"),
      )
      return yield* HttpServerResponse.json(
        { product_id, space: vectors.space, dimension_count: embedding.length, created },
        { status: created ? 201 : 200 },
      )
    })

    return handlers
      .handleRaw("embedding", ({ path, urlParams }) => answer(show(path.userId, urlParams.vector === "true")))
      .handleRaw("putProduct", ({ path, request }) => answer(store(path.productId, request)))
  }),
)

const health = HttpApiBuilder.group(api, "health", (handlers) =>
  Effect.gen(function* () {
    const check = yield* Health.make("api")
    return handlers
      .handleRaw("livez", () => answer(HttpServerResponse.json({ status: "ok" })))
      .handleRaw("readyz", () => answer(readiness(check)))
  }),
)

/** 200 with each dependency's state, or 503 when the part can't do its job. */
export const readiness = (check: Effect.Effect<Health.Health>) =>
  Effect.flatMap(check, (health) =>
    HttpServerResponse.json(health, { status: health.status === "unavailable" ? 503 : 200 }),
  )

/** A problem as `application/problem+json`. */
export const problemResponse = (problem: Problem) =>
  HttpServerResponse.text(JSON.stringify(problem.document), {
    status: problem.status,
    contentType: "application/problem+json",
    headers: problem.headers ?? {},
  })

const answer = <E, R>(effect: Effect.Effect<HttpServerResponse.HttpServerResponse, E, R>) =>
  Effect.catchAll(effect, (error) =>
    error instanceof Problem
      ? Effect.succeed(problemResponse(error))
      : Effect.as(
          Effect.logError("http.failed", error),
          problemResponse(new Problem({ status: 500, detail: "an unexpected error; the log says more" })),
        ),
  )

export const layer = HttpApiBuilder.api(api).pipe(Layer.provide([interactions, embeddings, health]))
