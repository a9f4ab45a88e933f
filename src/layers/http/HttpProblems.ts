/** The response to a failure, on both paths to a handler. */
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

const unexpected = problemResponse(
  new Problem({ status: 500, detail: "an unexpected error occurred; the log of the server describes it" }),
)

/** A failure that is not a {@link Problem} is logged. The client learns nothing of its cause. */
export const failureResponse = (cause: Cause.Cause<unknown>) => {
  const error = Cause.squash(cause)
  return error instanceof Problem
    ? Effect.succeed(problemResponse(error))
    : Effect.as(Effect.logError("http.failed", cause), unexpected)
}

/** A dependency is unavailable; `what` names the data it holds, in the plural. */
export const serviceUnavailable = (what: string) => () =>
  new Problem({
    status: 503,
    detail: `${what} are not available; try again later`,
    headers: { "retry-after": "1" },
  })

/** The response of a handler, in which a failure is a response too. */
export const answer = <E, R>(effect: Effect.Effect<HttpServerResponse.HttpServerResponse, E, R>) =>
  Effect.catchAll(effect, (error) => failureResponse(Cause.fail(error)))
