/** Handlers of the group `operations`, which the page reads. HttpMiddleware.ts adds the token to their log lines. */
import { HttpApiBuilder, type HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { Duration, Effect, Stream } from "effect"
import { defaultLimit } from "../../services/api/ApiParameters.ts"
import { api, bodyBytes } from "../../services/api/InteractionApi.ts"
import { DeadLetterSelection, defaultHours } from "../../services/api/OperationsApi.ts"
import { unprocessable } from "../../services/model/Problem.ts"
import * as DeadLetterAdmin from "../../services/operate/DeadLetterAdmin.ts"
import { History } from "../../services/operate/History.ts"
import { recentEvents } from "../../services/operate/RecentEvents.ts"
import { userInFigures } from "../../services/operate/ShowUser.ts"
import * as SystemStats from "../../services/operate/SystemStats.ts"
import { decodeBody } from "./HttpBody.ts"
import { toProblem } from "./HttpProblems.ts"
import { Closing } from "./HttpServer.ts"

const shortestPause = Duration.seconds(1)

/** The figures of the system. All clients share one reading; without clients nothing is read. */
const sharedStats = Effect.gen(function* () {
  const readAndPause = Effect.map(Effect.timed(SystemStats.look), ([duration, stats]) =>
    // The pause is at least as long as the reading, so that slow servers are not read all the time.
    Stream.concat(
      Stream.make(stats),
      Stream.drain(Stream.fromEffect(Effect.sleep(Duration.max(shortestPause, duration)))),
    ),
  )
  return yield* Stream.repeatEffect(readAndPause).pipe(
    Stream.flatten(),
    Stream.provideContext(yield* Effect.context<Effect.Effect.Context<typeof SystemStats.look>>()),
    Stream.share({ capacity: 1, strategy: "sliding", replay: 1 }),
  )
})

const eventStream = (stats: Stream.Stream<SystemStats.SystemStats>, closing: Effect.Effect<void>) =>
  HttpServerResponse.stream(
    stats.pipe(
      Stream.interruptWhen(closing),
      Stream.map((stats) => `data: ${JSON.stringify(stats)}\n\n`),
      Stream.encodeText,
    ),
    { contentType: "text/event-stream", headers: { "cache-control": "no-store" } },
  )

const newestDeadLetters = (filter: DeadLetterAdmin.DeadLetterFilter, limit: number) =>
  Effect.map(DeadLetterAdmin.listDeadLetters(filter), (all) => ({
    total: all.length,
    items: all.slice(-limit).toReversed(),
  }))

const remove = (filter: DeadLetterAdmin.DeadLetterFilter) =>
  DeadLetterAdmin.pickDeadLetters(filter).pipe(
    Effect.flatMap(DeadLetterAdmin.removeDeadLetters),
    Effect.map((removed) => ({ removed })),
  )

const decodeSelection = decodeBody(DeadLetterSelection)

const selected = Effect.fnUntraced(function* (request: HttpServerRequest.HttpServerRequest) {
  const selection = yield* Effect.mapError(decodeSelection(request, bodyBytes), (problem) =>
    problem.status === 422
      ? unprocessable([{ field: "", detail: 'must be {"ids": […]}, {"error": "…"} or {"all": true}' }])
      : problem,
  )
  if ("ids" in selection) return { ids: new Set(selection.ids) }
  return { error: "error" in selection ? selection.error : undefined }
})

export const operations = HttpApiBuilder.group(api, "operations", (handlers) =>
  Effect.gen(function* () {
    const closing = yield* Closing
    const stats = yield* sharedStats
    const history = yield* History
    return (
      handlers
        .handle("system", () => SystemStats.look)
        // Raw: a stream has no schema.
        .handleRaw("systemEvents", () => Effect.succeed(eventStream(stats, closing)))
        .handle("systemHistory", ({ urlParams: { hours = defaultHours } }) => history.since(hours))
        .handle("recentEvents", ({ urlParams: { limit = defaultLimit, ...filter } }) =>
          Effect.map(toProblem(recentEvents({ ...filter, limit })), (items) => ({ items })),
        )
        .handle("deadLetters", ({ urlParams: { limit = defaultLimit, ...filter } }) =>
          toProblem(newestDeadLetters(filter, limit)),
        )
        .handle("deadLetterGroups", ({ urlParams }) =>
          Effect.map(toProblem(DeadLetterAdmin.groupDeadLetters(urlParams)), (groups) => ({ groups })),
        )
        .handle("deadLetter", ({ path }) =>
          Effect.map(toProblem(DeadLetterAdmin.showDeadLetter(path.letterId)), (items) => ({ items })),
        )
        // Raw: see decodeBody.
        .handleRaw("retryDeadLetters", ({ request }) =>
          Effect.flatMap(selected(request), (filter) =>
            toProblem(DeadLetterAdmin.retryDeadLetters(filter)),
          ).pipe(Effect.tap((counts) => Effect.annotateLogs(Effect.logInfo("dead_letters.retried"), counts))),
        )
        .handleRaw("removeDeadLetters", ({ request }) =>
          Effect.flatMap(selected(request), (filter) => toProblem(remove(filter))).pipe(
            Effect.tap((counts) => Effect.annotateLogs(Effect.logInfo("dead_letters.removed"), counts)),
          ),
        )
        .handle("profile", ({ path }) => toProblem(userInFigures(path.userId)))
    )
  }),
)
