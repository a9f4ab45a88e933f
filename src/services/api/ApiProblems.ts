/** Problems and authentication, as the endpoints declare them. */
import { HttpApiMiddleware, HttpApiSchema, HttpApiSecurity, OpenApi } from "@effect/platform"
import { Schema } from "effect"
import { Problem, ProblemDocument } from "../model/Problem.ts"
import { described } from "../model/ProblemTypes.ts"

/** OpenAPI names the schema of a transformation after its type side. */
const problemType = Schema.typeSchema(Problem).annotations({ identifier: "ProblemDocument" })
const ProblemResponse = Schema.transform(ProblemDocument, problemType, {
  strict: true,
  decode: (document) => new Problem(document),
  encode: ({ document }) => document,
}).pipe(HttpApiSchema.withEncoding({ kind: "Json", contentType: "application/problem+json" }))

/** For `addError`: the endpoint may fail with a {@link Problem} of these statuses. */
export const problems = (...statuses: ReadonlyArray<number>) =>
  Schema.Union(
    ...statuses.map((status) =>
      ProblemResponse.annotations(HttpApiSchema.annotations({ status, description: described(status) })),
    ),
  )

/** The statuses of a body that cannot be read or decoded. */
export const bodyStatuses = [400, 413, 415, 422] as const

/**
 * A bearer token, or without API_TOKENS a request that no page of another origin sent (403). HttpMiddleware.ts checks it
 * before routing, because a request for an unknown path needs a token too. Its scope is checked after routing.
 */
export class Authorisation extends HttpApiMiddleware.Tag<Authorisation>()("user-embeddings/Authorisation", {
  failure: problems(401, 403),
  security: {
    bearer: HttpApiSecurity.annotate(
      HttpApiSecurity.bearer,
      OpenApi.Description,
      "Only where API_TOKENS is set. A token needs one of the scopes that are listed. A page of API_CORS_ORIGINS may send JSON as text/plain to the routes of the scope write, and a token that has no other scope as ?access_token=",
    ),
  },
}) {}

/** The token as the user name of Basic, without a password: so Segment's libraries send their write key. */
export class SegmentAuthorisation extends HttpApiMiddleware.Tag<SegmentAuthorisation>()(
  "user-embeddings/SegmentAuthorisation",
  { failure: problems(401, 403), security: { basic: HttpApiSecurity.basic } },
) {}
