/** The response to a failure, on both paths to a handler. */
import { HttpServerResponse } from "@effect/platform"
import { Cause, Effect } from "effect"
import { Problem, unprocessable } from "../../services/model/Problem.ts"
import type { DeadLetterNotFound } from "../../services/operate/DeadLetterAdmin.ts"
import type { UserNotFound } from "../../services/operate/ShowUser.ts"
import type { DeadLettersError } from "../../services/ports/DeadLetters.ts"
import type { InteractionLogError } from "../../services/ports/InteractionLog.ts"
import type { PhraseEmbedderError } from "../../services/ports/PhraseEmbedder.ts"
import type { PortFailure } from "../../services/ports/PortFailure.ts"
import type { UserEmbeddingsError } from "../../services/ports/UserEmbeddings.ts"
import type { CatalogueError } from "../../services/recommend/Catalogue.ts"
import type {
  NoTaste,
  ProductNotFound,
  TooManyUsers,
  UnknownAttributes,
} from "../../services/recommend/Recommender.ts"

export const problemResponse = (problem: Problem) =>
  HttpServerResponse.text(JSON.stringify(problem.document), {
    status: problem.status,
    contentType: "application/problem+json",
    headers: problem.headers ?? {},
  })

const unexpected = problemResponse(
  Problem.of("unexpected", "an unexpected error occurred; the log of the server describes it"),
)

/** A failure that is not a {@link Problem} is logged. The client learns nothing of its cause. */
export const failureResponse = (cause: Cause.Cause<unknown>) => {
  const error = Cause.squash(cause)
  return error instanceof Problem
    ? Effect.succeed(problemResponse(error))
    : Effect.as(Effect.logError("http.failed", cause), unexpected)
}

const whyUnavailable: Record<PortFailure["reason"], string> = {
  unavailable: "cannot be reached",
  timeout: "did not answer in time",
  not_set_up: "is not set up: run user-embeddings setup",
  invalid_data: "cannot store or read it",
  conflict: "is busy with other writes",
  rejected: "refused the request",
}

export const notNow = (detail: string, mayHelpLater: boolean): Problem =>
  mayHelpLater
    ? Problem.of("unavailable", detail, { headers: { "retry-after": "1" } })
    : Problem.of("operator-needed", detail)

/** `what` names the unavailable data, in the plural. */
export const serviceUnavailable = (what: string, failure?: Pick<PortFailure, "reason" | "server">) => {
  const why = failure?.server && `: ${failure.server} ${whyUnavailable[failure.reason]}`
  // Data that cannot be read stays so, until an operator has corrected it.
  const mayHelpLater = failure?.reason !== "invalid_data"
  return notNow(
    `${what} are not available${why ?? ""}${mayHelpLater ? "; try again later" : ""}`,
    mayHelpLater,
  )
}

type Failure =
  | CatalogueError
  | DeadLetterNotFound
  | DeadLettersError
  | InteractionLogError
  | NoTaste
  | PhraseEmbedderError
  | ProductNotFound
  | TooManyUsers
  | UnknownAttributes
  | UserEmbeddingsError
  | UserNotFound

const problemOf = (error: Failure): Problem => {
  switch (error._tag) {
    case "DeadLetterNotFound":
    case "NoTaste":
    case "ProductNotFound":
    case "UserNotFound":
      return Problem.of("not-found", error.message)
    case "TooManyUsers":
      return Problem.of("too-many-users", error.message)
    case "DeadLettersError":
      return serviceUnavailable("dead letters", error)
    case "InteractionLogError":
      return serviceUnavailable("interactions", error)
    case "PhraseEmbedderError":
      return error.reason === "no_embedder"
        ? Problem.of("no-embedder", error.detail)
        : serviceUnavailable("embeddings of phrases")
    case "ProductEmbeddingsError":
      return serviceUnavailable("product embeddings", error)
    case "UnknownAttributes":
      return unprocessable(
        error.attributes.map((name) => ({
          field: `filter.${name}`,
          detail: "no product has this attribute; products get it by PUT /api/product/{id}",
        })),
      )
    case "UserEmbeddingsError":
      return serviceUnavailable("user embeddings", error)
  }
}

/** What the failure of a step means to the client. */
export const toProblem = Effect.mapError(problemOf)
