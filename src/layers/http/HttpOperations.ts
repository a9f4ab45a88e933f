/**
 * Handlers of the group `operations`: what the page shows. Retrying and removing dead letters is for those who have a
 * token: where API_TOKENS is unset nobody has one, and they are refused.
 */
import { HttpApiBuilder, type HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { Duration, Effect, Either, Option, Schema, Stream } from "effect"
import { api, bodyBytes } from "../../services/api/InteractionApi.ts"
import { DeadLetterIds } from "../../services/api/OperationsApi.ts"
import type { EmbeddingConfig } from "../../services/EmbeddingConfig.ts"
import { Problem, unprocessable } from "../../services/model/Problem.ts"
import * as DeadLetterAdmin from "../../services/operate/DeadLetterAdmin.ts"
import { userInFigures } from "../../services/operate/ShowUser.ts"
import * as SystemStats from "../../services/operate/SystemStats.ts"
import type { DeadLetters } from "../../services/ports/DeadLetters.ts"
import type { InteractionLog } from "../../services/ports/InteractionLog.ts"
import type { InteractionQueue } from "../../services/ports/InteractionQueue.ts"
import type { ProductEmbeddings } from "../../services/ports/ProductEmbeddings.ts"
import type { UserEmbeddings } from "../../services/ports/UserEmbeddings.ts"
import * as Settings from "../../services/Settings.ts"
import { readJson } from "./HttpBody.ts"
import { answer, serviceUnavailable } from "./HttpProblems.ts"
import { Closing } from "./HttpServer.ts"

type Ports =
  | DeadLetters
  | EmbeddingConfig
  | InteractionLog
  | InteractionQueue
  | ProductEmbeddings
  | UserEmbeddings

/** How often the system is looked at while somebody watches; less often where looking takes long. */
const lookEvery = Duration.seconds(1)
const restPerLook = 1

const decodePicked = Schema.decodeUnknownEither(DeadLetterIds, { onExcessProperty: "error" })
const pickedRule = 'must be {"ids": […]}, {"error": "…"} or {"all": true}'

/** What a failure means to a client. */
const problem = (error: { readonly _tag: string; readonly message: string }): Problem => {
  switch (error._tag) {
    case "UserNotFound":
    case "DeadLetterNotFound":
      return new Problem({ status: 404, detail: error.message })
    case "DeadLettersError":
      return serviceUnavailable("dead letters")()
    case "InteractionLogError":
      return serviceUnavailable("interactions")()
    default:
      return serviceUnavailable("user embeddings")()
  }
}
const toProblem = Effect.mapError(problem)

const tokenNeeded = new Problem({
  status: 403,
  detail:
    "this needs a token, and none is configured: set API_TOKENS and start the API again, or use `user-embeddings failed`",
})

export const operations = HttpApiBuilder.group(api, "operations", (handlers) =>
  Effect.gen(function* () {
    const ports = yield* Effect.context<Ports>()
    const guarded = Option.isSome(yield* Settings.API_TOKENS)
    const closing = yield* Closing
    const reply = <A, E extends { readonly _tag: string; readonly message: string }>(
      effect: Effect.Effect<A, E, Ports>,
    ) =>
      answer(
        Effect.flatMap(toProblem(Effect.provide(effect, ports)), (found) => HttpServerResponse.json(found)),
      )

    const look = Effect.gen(function* () {
      const [took, stats] = yield* Effect.timed(SystemStats.look)
      return { stats, rest: Duration.max(lookEvery, Duration.times(took, restPerLook)) }
    })
    /** One look for all who watch; none while nobody does. */
    const watched = yield* Stream.repeatEffect(look).pipe(
      Stream.flatMap(({ rest, stats }) =>
        Stream.concat(Stream.make(stats), Stream.drain(Stream.fromEffect(Effect.sleep(rest)))),
      ),
      Stream.provideContext(ports),
      Stream.share({ capacity: 1, strategy: "sliding", replay: 1 }),
    )
    const events = watched.pipe(
      Stream.interruptWhen(closing),
      Stream.map((stats) => `data: ${JSON.stringify(stats)}\n\n`),
      Stream.encodeText,
      (body) =>
        HttpServerResponse.stream(body, {
          contentType: "text/event-stream",
          headers: { "cache-control": "no-store" },
        }),
    )

    const listed = ({ error, limit }: { readonly error?: string | undefined; readonly limit: number }) =>
      Effect.map(DeadLetterAdmin.listDeadLetters({ error }), (letters) => ({
        total: letters.length,
        items: letters.slice(-limit).toReversed(),
      }))

    /** Runs an action on the letters that the body names. */
    const act = <A extends object, E extends { readonly _tag: string; readonly message: string }>(
      request: HttpServerRequest.HttpServerRequest,
      action: (filter: DeadLetterAdmin.DeadLetterFilter) => Effect.Effect<A, E, Ports>,
    ) =>
      answer(
        Effect.gen(function* () {
          if (!guarded) return yield* tokenNeeded
          const picked = yield* Either.mapLeft(decodePicked(yield* readJson(request, bodyBytes)), () =>
            unprocessable([{ field: "", detail: pickedRule }]),
          )
          const filter =
            "ids" in picked
              ? { ids: new Set(picked.ids) }
              : { error: "error" in picked ? picked.error : undefined }
          const done = yield* toProblem(Effect.provide(action(filter), ports))
          return yield* HttpServerResponse.json(done)
        }),
      )

    return handlers
      .handleRaw("system", () => reply(SystemStats.look))
      .handleRaw("systemEvents", () => Effect.succeed(events))
      .handleRaw("deadLetters", ({ urlParams }) => reply(listed(urlParams)))
      .handleRaw("deadLetterGroups", () =>
        reply(Effect.map(DeadLetterAdmin.groupDeadLetters({}), (groups) => ({ groups }))),
      )
      .handleRaw("deadLetter", ({ path }) =>
        reply(Effect.map(DeadLetterAdmin.showDeadLetter(path.letterId), (items) => ({ items }))),
      )
      .handleRaw("retryDeadLetters", ({ request }) => act(request, DeadLetterAdmin.retryDeadLetters))
      .handleRaw("removeDeadLetters", ({ request }) =>
        act(request, (filter) =>
          DeadLetterAdmin.pickDeadLetters(filter).pipe(
            Effect.flatMap(DeadLetterAdmin.removeDeadLetters),
            Effect.map((removed) => ({ removed })),
          ),
        ),
      )
      .handleRaw("profile", ({ path }) => reply(userInFigures(path.userId)))
  }),
)
