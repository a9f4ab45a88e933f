/**
 * The routes that record interactions: read, decode, record, word the answer. They are plain functions of web requests,
 * for a fiber a request costs more than all of this (measured: 160 of 180 µs). {@link recordingHandler} stands before the
 * HTTP API and answers what needs nothing else of it; the API's own handlers are the same functions.
 */
import { Context, Effect, Either, Exit, Layer, Option, Runtime } from "effect"
import { type BulkReport, bodyBytes, bulkBodyBytes, bulkItems } from "../../services/api/InteractionApi.ts"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import { type FieldIssue, Problem, unprocessable } from "../../services/model/Problem.ts"
import type { Appended, InteractionLogError } from "../../services/ports/InteractionLog.ts"
import {
  InteractionRecorder,
  type Submission as Submitted,
} from "../../services/record/InteractionRecorder.ts"
import * as RateLimiter from "../../services/record/RateLimiter.ts"
import * as Submission from "../../services/record/Submission.ts"
import * as Settings from "../../services/Settings.ts"
import * as Telemetry from "../../services/Telemetry.ts"
import { parseBody } from "./HttpBody.ts"
import * as HttpMiddleware from "./HttpMiddleware.ts"
import { DirectHandler } from "./HttpServer.ts"

type Trace = Telemetry.TraceContext | null

/** Answers are never rejections: what nobody worded is logged, and 500. */
export class RecordingRoutes extends Context.Tag("user-embeddings/RecordingRoutes")<
  RecordingRoutes,
  {
    readonly search: (request: Request, trace: Trace, user: string) => Promise<Response>
    readonly product: (
      request: Request,
      trace: Trace,
      user: string,
      product: string,
      route: string,
    ) => Promise<Response>
    readonly bulk: (request: Request, trace: Trace) => Promise<Response>
  }
>() {}

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

const keyReused: FieldIssue = {
  field: "Idempotency-Key",
  detail: "was used before for another interaction of this user",
}
const tooMany = "too many interactions of this user"

const json = (body: unknown, status: number): Response =>
  new Response(JSON.stringify(body), { status, headers: { "content-type": "application/json" } })

const problemResponse = ({ document, headers, status }: Problem): Response =>
  new Response(JSON.stringify(document), {
    status,
    headers: { "content-type": "application/problem+json", ...headers },
  })

const recorded = ({ _tag, interaction }: Appended): Response =>
  json(
    {
      message_id: interaction.message_id,
      user_id: interaction.user_id,
      event_type: interaction.event_type,
      occurred_at: interaction.occurred_at,
      duplicate: _tag !== "Recorded",
    },
    _tag === "Recorded" ? 201 : 200,
  )

type Result = (typeof BulkReport.Type)["results"][number]

const resultOf = (index: number, { _tag, interaction }: Appended): Result =>
  _tag === "KeyReused"
    ? { index, status: 422, error: { detail: `idempotency_key: ${keyReused.detail}` } }
    : {
        index,
        status: _tag === "Recorded" ? 201 : 200,
        message_id: interaction.message_id,
        duplicate: _tag === "Duplicate",
      }

const make = Effect.gen(function* () {
  const recorder = yield* InteractionRecorder
  const { eventTypes } = yield* EmbeddingConfig
  const clock = yield* Effect.clock
  const limit = RateLimiter.make(yield* Settings.RATE_LIMIT_PER_USER)
  const run = Runtime.runFork(yield* Effect.runtime())

  const record = (submissions: ReadonlyArray<Submitted>, trace: Trace) =>
    new Promise<ReadonlyArray<Appended>>((resolve, reject) =>
      recorder.submit(submissions, { trace, recordedAt: clock.unsafeCurrentTimeMillis() }, (exit) =>
        Exit.match(exit, {
          onSuccess: resolve,
          onFailure: (cause) =>
            reject(cause._tag === "Fail" ? unavailable(cause.error) : new Error("not recorded", { cause })),
        }),
      ),
    )

  const recordOne = async (
    request: Request,
    trace: Trace,
    decode: (body: unknown, key: string | undefined, now: number) => Submission.Decoded,
  ) => {
    const body = (await parseBody(request, bodyBytes)) ?? {}
    const key = request.headers.get("idempotency-key") ?? undefined
    const now = clock.unsafeCurrentTimeMillis()
    const decoded = decode(body, key, now)
    if (Either.isLeft(decoded)) throw unprocessable(decoded.left)
    if (!limit(decoded.right.interaction.user_id, now))
      throw new Problem({ status: 429, detail: tooMany, headers: { "retry-after": "1" } })
    const [appended] = await record([decoded.right], trace)
    if (appended === undefined || appended._tag === "KeyReused") throw unprocessable([keyReused])
    return recorded(appended)
  }

  const recordMany = async (request: Request, trace: Trace) => {
    const body = await parseBody(request, bulkBodyBytes)
    if (!Array.isArray(body) || body.length === 0 || body.length > bulkItems)
      throw unprocessable([{ field: "", detail: `must be a JSON array of 1 to ${bulkItems} interactions` }])
    const now = clock.unsafeCurrentTimeMillis()
    const results: Array<Result> = []
    const accepted: Array<Submitted> = []
    const places: Array<number> = []
    for (const [index, item] of body.entries()) {
      const decoded = Submission.ofBulkItem(item, now, eventTypes)
      if (Either.isLeft(decoded)) {
        const { detail, errors } = unprocessable(decoded.left)
        results[index] = { index, status: 422, error: { detail, ...(errors ? { errors } : {}) } }
      } else if (limit(decoded.right.interaction.user_id, now)) {
        accepted.push(decoded.right)
        places.push(index)
      } else results[index] = { index, status: 429, error: { detail: tooMany } }
    }
    const appended = accepted.length === 0 ? [] : await record(accepted, trace)
    for (const [i, index] of places.entries()) results[index] = resultOf(index, appended[i]!)
    const counted = (status: number) => results.filter((result) => result.status === status).length
    const rejected = counted(422) + counted(429)
    const report: typeof BulkReport.Type = {
      accepted: counted(201),
      duplicates: counted(200),
      rejected,
      results,
    }
    return json(report, rejected === 0 ? 200 : 207)
  }

  const toResponse = (error: unknown): Response => {
    if (error instanceof Problem) return problemResponse(error)
    run(Effect.logError("http.failed", error))
    return problemResponse(new Problem({ status: 500, detail: "an unexpected error; the log says more" }))
  }

  return RecordingRoutes.of({
    search: (request, trace, user) =>
      recordOne(request, trace, (body, key, now) =>
        Submission.ofSearch(user, body, key, now, eventTypes),
      ).catch(toResponse),
    product: (request, trace, user, product, route) =>
      recordOne(request, trace, (body, key, now) => {
        const type = eventTypes.ofRoute(route)
        return type === undefined
          ? Either.left([{ field: "type", detail: `must be one of ${eventTypes.productRoutes.join(", ")}` }])
          : Submission.ofProduct(user, product, type.name, body, key, now, eventTypes)
      }).catch(toResponse),
    bulk: (request, trace) => recordMany(request, trace).catch(toResponse),
  })
})

export const layer = Layer.effect(RecordingRoutes, make)

/** Paths without query and escapes; all others are the API's. */
const paths =
  /^https?:\/\/[^/]*\/api\/(?:interactions|user\/([^/?#%]+)\/(?:search|product\/([^/?#%]+)\/([^/?#%]+)))$/

/** Answers recording requests at once; `undefined` = left to the API. */
export const recordingHandler = Layer.effect(
  DirectHandler,
  Effect.gen(function* () {
    const ingest = yield* RecordingRoutes
    const clock = yield* Effect.clock
    const authorised = yield* HttpMiddleware.authorisation
    const { eventTypes } = yield* EmbeddingConfig
    const routes = new Set(eventTypes.productRoutes)
    const tracer = (yield* Telemetry.isTracing) ? yield* Effect.tracer : undefined

    /** The server span, or where nobody makes spans the trace alone. */
    const begin = (route: string, { headers }: Request, started: bigint) => {
      const traceparent = headers.get("traceparent")
      const parent =
        traceparent === null
          ? undefined
          : Telemetry.externalSpan({ traceparent, tracestate: headers.get("tracestate") })
      const name = `POST ${route}`
      return (
        tracer?.span(name, Option.fromNullable(parent), Context.empty(), [], started, "server") ??
        parent ??
        Telemetry.newTrace()
      )
    }

    return (request: Request): Promise<Response> | undefined => {
      if (request.method !== "POST") return undefined
      const match = paths.exec(request.url)
      if (match === null || !authorised(request.headers.get("authorization") ?? undefined)) return undefined
      const started = clock.unsafeCurrentTimeNanos()
      const [, user, product, event] = match
      const route =
        user === undefined
          ? "/api/interactions"
          : event === undefined
            ? "/api/user/{userId}/search"
            : `/api/user/{userId}/product/{productId}/${routes.has(event) ? event : "{type}"}`
      const span = begin(route, request, started)
      const trace = Telemetry.traceOf(span)
      const answer =
        user === undefined
          ? ingest.bulk(request, trace)
          : product === undefined || event === undefined
            ? ingest.search(request, trace, user)
            : ingest.product(request, trace, user, product, event)
      return answer.then((response) => {
        response.headers.set("traceparent", trace.traceparent)
        const ended = clock.unsafeCurrentTimeNanos()
        const seconds = Number(ended - started) / 1_000_000_000
        Telemetry.observe(Telemetry.httpDuration("POST", route, response.status), seconds)
        if (span._tag === "Span")
          Telemetry.endServerSpan(span, { method: "POST", route, status: response.status }, ended)
        return response
      })
    }
  }),
)
