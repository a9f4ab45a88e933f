/** How answers are worded: problem documents, and 500 for what nobody worded. */
import { HttpServerResponse } from "@effect/platform"
import { Cause, Effect } from "effect"
import { Problem } from "../../services/model/Problem.ts"

/** A problem as `application/problem+json`. */
export const problemResponse = (problem: Problem) =>
  HttpServerResponse.text(JSON.stringify(problem.document), {
    status: problem.status,
    contentType: "application/problem+json",
    headers: problem.headers ?? {},
  })

/** A dependency is away; `what` names what it holds, in plural. */
export const serviceUnavailable = (what: string) => () =>
  new Problem({
    status: 503,
    detail: `${what} are not available; try again later`,
    headers: { "retry-after": "1" },
  })

/** The answer of a handler, whose problems are answers too. */
export const answer = <E, R>(effect: Effect.Effect<HttpServerResponse.HttpServerResponse, E, R>) =>
  Effect.catchAll(effect, (error) =>
    error instanceof Problem
      ? Effect.succeed(problemResponse(error))
      : Effect.as(
          Effect.logError("http.failed", Cause.fail(error)),
          problemResponse(new Problem({ status: 500, detail: "an unexpected error; the log says more" })),
        ),
  )
