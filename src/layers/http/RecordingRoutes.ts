/**
 * The routes that record interactions. They bypass the router of the HTTP API, because a fiber per request
 * costs more than all their work (measured: 160 of 180 µs). {@link directHandler} matches the path and calls
 * them as plain functions. A request that it does not recognise goes to the router, whose handlers call the
 * same functions.
 */
import { setImmediate } from "node:timers/promises"
import { HttpServerResponse } from "@effect/platform"
import { Cause, type Clock, Context, Effect, Either, Exit, Layer, Predicate, Runtime } from "effect"
import { type BulkReport, bodyBytes, bulkBodyBytes, bulkItems } from "../../services/api/InteractionApi.ts"
import { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import { type EventTypes, referenceEventTypes } from "../../services/model/EventTypes.ts"
import { type FieldIssue, Problem, unprocessable } from "../../services/model/Problem.ts"
import type { Appended, InteractionLog, InteractionLogError } from "../../services/ports/InteractionLog.ts"
import {
  InteractionRecorder,
  type Submission as Submitted,
} from "../../services/record/InteractionRecorder.ts"
import * as RateLimiter from "../../services/record/RateLimiter.ts"
import * as RetractionRequests from "../../services/record/RetractionRequests.ts"
import * as Submission from "../../services/record/Submission.ts"
import * as Settings from "../../services/Settings.ts"
import * as Telemetry from "../../services/Telemetry.ts"
import { authorisation, type Caller, missingScope } from "./HttpAuthorisation.ts"
import { parseBody } from "./HttpBody.ts"
import { allowedOrigins } from "./HttpCors.ts"
import { failureResponse, notNow } from "./HttpProblems.ts"
import { DirectHandler } from "./HttpServer.ts"
import * as HttpServerSpan from "./HttpServerSpan.ts"

type Trace = Telemetry.TraceContext | null

/** Why the log did not confirm the interactions. After a timeout they may have been recorded. */
export const unavailable = ({ reason, server = "the interaction log" }: InteractionLogError): Problem => {
  const detail = {
    timeout: "did not answer in time; with occurred_at or an Idempotency-Key it is safe to send it again",
    not_set_up: "is not set up: run user-embeddings setup",
    unavailable: "is not available; send it again later",
    conflict: "is busy with other writes; send it again later",
    rejected: "refuses to record it, until an operator has corrected that",
    invalid_data: "cannot store it",
  }[reason]
  const mayHelpLater = reason !== "rejected" && reason !== "invalid_data"
  return notNow(`${server} ${detail}`, mayHelpLater)
}

/** `field` is the name of the key in the request. */
const keyReused = (field: string): Problem =>
  unprocessable(
    [{ field, detail: "was used before for another interaction of this user" }],
    "idempotency-key-reused",
  )
const waitBriefly = { "retry-after": "1" }
export const tooMany = (): Problem =>
  Problem.of("too-many-requests", "too many interactions of this user", { headers: waitBriefly })
/** How long items of a bulk request may be decoded before other requests get a turn. */
const turnMillis = 10
/** Beyond this number of issues in a bulk request, each further item names only its first issue. */
const maxBulkIssues = 5_000

const json = (body: unknown, status: number, headers = {}): Response =>
  new Response(JSON.stringify(body), { status, headers: { "content-type": "application/json", ...headers } })

const recordedResponse = ({ _tag, interaction }: Appended): Response =>
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

/** The contract lists the statuses of all problems that an item can have. */
const rejection = (index: number, problem: Problem): Result => ({
  index,
  status: problem.status as Result["status"],
  error: problem.ofItem,
})

const resultOf = (index: number, appended: Appended): Result => {
  switch (appended._tag) {
    case "KeyReused":
      return rejection(index, keyReused("idempotency_key"))
    case "Refused":
      return rejection(
        index,
        unprocessable([{ field: "reference", detail: appended.detail }], "merge-refused"),
      )
    default: {
      const { _tag, interaction } = appended
      const status = _tag === "Recorded" ? 201 : 200
      return { index, status, message_id: interaction.message_id, duplicate: _tag === "Duplicate" }
    }
  }
}

const bulkResponse = (results: ReadonlyArray<Result>): Response => {
  const count = (status: number) => results.filter((result) => result.status === status).length
  const [accepted, duplicates] = [count(201), count(200)]
  const rejected = results.length - accepted - duplicates
  const report: typeof BulkReport.Type = { accepted, duplicates, rejected, results }
  return json(report, rejected === 0 ? 200 : 207, count(429) > 0 ? waitBriefly : {})
}

/** Finds what items take back. A rejection is a {@link Problem}. */
type Resolve = (
  items: ReadonlyArray<Submission.Requested>,
) => Promise<ReadonlyArray<Either.Either<Submitted, RetractionRequests.Refusal>>>

const refusals = { 404: "not-found", 410: "pruned", 422: "invalid-input" } as const

/** `referenceField` is the name of `reference` in the request. */
const refused = (
  { detail, field, status }: RetractionRequests.Refusal,
  referenceField = "reference",
): Problem => {
  const issue = { field: field === "reference" ? referenceField : field, detail }
  return unprocessable([issue], refusals[status])
}

/** Items that concern a person rather than record an event. A token that stands in a web page must not send them. */
const isCorrection = (item: unknown): boolean =>
  Predicate.isRecord(item) && referenceEventTypes.some((type) => type === item.event_type)

/** A rejection is a {@link Problem} or an unexpected error. */
class Routes {
  constructor(
    private readonly recorder: InteractionRecorder["Type"],
    private readonly clock: Clock.Clock,
    readonly takeToken: (user: string) => boolean,
    private readonly eventTypes: EventTypes,
    private readonly isAllowedOrigin: (origin: string) => boolean,
    private readonly resolve: Resolve,
  ) {}

  search(request: Request, trace: Trace, user: string) {
    return this.recordOne(request, trace, (body, key, now) => Submission.ofSearch(user, body, key, now))
  }

  product(request: Request, trace: Trace, user: string, product: string, route: string) {
    return this.recordOne(request, trace, (body, key, now) => {
      const type = this.eventTypes.ofRoute(route)
      const rule = `must be one of ${this.eventTypes.productRoutes.join(", ")}`
      return type === undefined
        ? Either.left([{ field: "type", detail: rule }])
        : Submission.ofProduct(user, product, type.name, body, key, now)
    })
  }

  retract(request: Request, trace: Trace, user: string) {
    return this.recordOne(request, trace, (body, key) => Submission.ofRetraction(user, body, key))
  }

  merge(request: Request, trace: Trace, user: string) {
    return this.recordOne(request, trace, (body, key, now) => Submission.ofMerge(user, body, key, now))
  }

  async bulk(request: Request, trace: Trace, caller: Caller): Promise<Response> {
    const body = await this.bodyOf(request, bulkBodyBytes)
    if (!Array.isArray(body) || body.length === 0 || body.length > bulkItems)
      throw unprocessable([{ field: "", detail: `must be a JSON array of 1 to ${bulkItems} interactions` }])
    const now = this.clock.unsafeCurrentTimeMillis()
    const noPerson = missingScope(caller, ["person"])
    const results: Array<Result> = []
    const items: Array<Submission.Requested> = []
    const indexOfItem: Array<number> = []
    let issues = 0
    let turnBegan = performance.now()
    for (const [index, item] of body.entries()) {
      if (performance.now() - turnBegan > turnMillis) {
        await setImmediate()
        turnBegan = performance.now()
      }
      if (noPerson !== undefined && isCorrection(item)) {
        results[index] = rejection(index, noPerson)
        continue
      }
      const decoded = Submission.ofBulkItem(item, now, this.eventTypes)
      if (Either.isLeft(decoded)) {
        const named = issues < maxBulkIssues ? decoded.left : decoded.left.slice(0, 1)
        issues += decoded.left.length
        results[index] = rejection(index, unprocessable(named))
      } else if (this.takeToken(RetractionRequests.userOf(decoded.right))) {
        items.push(decoded.right)
        indexOfItem.push(index)
      } else results[index] = rejection(index, tooMany())
    }
    const accepted: Array<Submitted> = []
    const indices: Array<number> = []
    for (const [i, resolved] of (await this.resolve(items)).entries()) {
      const index = indexOfItem[i]!
      if (Either.isRight(resolved)) {
        accepted.push(resolved.right)
        indices.push(index)
      } else results[index] = rejection(index, refused(resolved.left))
    }
    const appended = accepted.length === 0 ? [] : await this.record(accepted, trace)
    for (const [i, index] of indices.entries()) results[index] = resultOf(index, appended[i]!)
    return bulkResponse(results)
  }

  private async recordOne(
    request: Request,
    trace: Trace,
    decode: (
      body: unknown,
      key: string | undefined,
      now: number,
    ) => Either.Either<Submission.Requested, ReadonlyArray<FieldIssue>>,
  ): Promise<Response> {
    const body = (await this.bodyOf(request, bodyBytes)) ?? {}
    const key = request.headers.get("idempotency-key") ?? undefined
    const now = this.clock.unsafeCurrentTimeMillis()
    const decoded = decode(body, key, now)
    if (Either.isLeft(decoded)) throw unprocessable(decoded.left)
    if (!this.takeToken(RetractionRequests.userOf(decoded.right))) throw tooMany()
    const [resolved] = await this.resolve([decoded.right])
    if (Either.isLeft(resolved!)) throw refused(resolved!.left, "message_id")
    const [appended] = await this.record([resolved!.right], trace)
    if (appended === undefined || appended._tag === "KeyReused") throw keyReused("Idempotency-Key")
    if (appended._tag === "Refused") throw Problem.of("merge-refused", appended.detail)
    return recordedResponse(appended)
  }

  /** Browsers send a beacon as text/plain without a preflight: only allowed origins may do so. */
  private bodyOf(request: Request, limit: number): Promise<unknown> {
    const isAllowed = this.isAllowedOrigin(request.headers.get("origin") ?? "")
    return parseBody(request, limit, isAllowed ? ["text/plain"] : [])
  }

  private record(submissions: ReadonlyArray<Submitted>, trace: Trace) {
    const recordedAt = this.clock.unsafeCurrentTimeMillis()
    return new Promise<ReadonlyArray<Appended>>((resolve, reject) =>
      this.recorder.submit(submissions, { trace, recordedAt }, (exit) =>
        Exit.match(exit, {
          onSuccess: resolve,
          onFailure: (cause) =>
            reject(cause._tag === "Fail" ? unavailable(cause.error) : new Error("not recorded", { cause })),
        }),
      ),
    )
  }
}

export class RecordingRoutes extends Context.Tag("user-embeddings/RecordingRoutes")<
  RecordingRoutes,
  Pick<Routes, "search" | "product" | "retract" | "merge" | "bulk" | "takeToken">
>() {}

export const layer = Layer.effect(
  RecordingRoutes,
  Effect.gen(function* () {
    const limit = yield* Settings.RATE_LIMIT_PER_USER
    const { eventTypes } = yield* EmbeddingConfig
    const recorder = yield* InteractionRecorder
    const clock = yield* Effect.clock
    const runtime = yield* Effect.runtime<InteractionLog>()
    const resolve: Resolve = async (items) =>
      RetractionRequests.withoutRequests(items) ??
      Runtime.runPromise(runtime)(
        Effect.either(Effect.mapError(RetractionRequests.resolve(items), unavailable)),
      ).then(Either.getOrThrowWith((problem) => problem))
    const takeToken = RateLimiter.make(limit, clock)
    return new Routes(recorder, clock, takeToken, eventTypes, yield* allowedOrigins, resolve)
  }),
)

/** Paths without escapes, and without a query other than the token of a beacon. All others go to the router. */
const paths =
  /^https?:\/\/[^/]*\/api\/(?:interactions|user\/([^/?#%]+)\/(?:search|product\/([^/?#%]+)\/([^/?#%]+)))(?:\?access_token=[^&#]*)?$/

interface Match {
  /** `http.route`. */
  readonly route: string
  readonly call: (
    routes: RecordingRoutes["Type"],
    request: Request,
    trace: Trace,
    caller: Caller,
  ) => Promise<Response>
}

const match = ({ method, url }: Request, productRoutes: ReadonlySet<string>): Match | undefined => {
  const found = method === "POST" ? paths.exec(url) : null
  if (found === null) return undefined
  const [, user, product, event] = found
  if (user === undefined)
    return {
      route: "/api/interactions",
      call: (routes, request, trace, caller) => routes.bulk(request, trace, caller),
    }
  if (product === undefined || event === undefined)
    return {
      route: "/api/user/{userId}/search",
      call: (routes, request, trace) => routes.search(request, trace, user),
    }
  return {
    route: `/api/user/{userId}/product/{productId}/${productRoutes.has(event) ? event : "{type}"}`,
    call: (routes, request, trace) => routes.product(request, trace, user, product, event),
  }
}

export const directHandler = Layer.effect(
  DirectHandler,
  Effect.gen(function* () {
    const routes = yield* RecordingRoutes
    const accessOf = yield* authorisation
    const beginSpan = yield* HttpServerSpan.begin
    const productRoutes = new Set((yield* EmbeddingConfig).eventTypes.productRoutes)
    const runtime = yield* Effect.runtime()

    return (request: Request): Promise<Response> | undefined => {
      const matched = match(request, productRoutes)
      const { headers } = request
      const asked = { method: request.method, url: request.url, header: (name: string) => headers.get(name) }
      if (matched === undefined) return undefined
      const access = accessOf(asked)
      if (Either.isLeft(access) || missingScope(access.right, ["write"]) !== undefined) return undefined
      const [traceparent, tracestate] = [headers.get("traceparent"), headers.get("tracestate")]
      const { end, span } = beginSpan("POST", matched.route, traceparent, tracestate)
      const trace = Telemetry.traceOf(span)
      const failed = (error: unknown): Response => {
        const response = Effect.withParentSpan(failureResponse(Cause.fail(error)), span)
        return HttpServerResponse.toWeb(Runtime.runSync(runtime)(response))
      }
      return matched
        .call(routes, request, trace, access.right)
        .catch(failed)
        .then((response) => {
          response.headers.set("traceparent", trace.traceparent)
          end(response.status)
          return response
        })
    }
  }),
)
