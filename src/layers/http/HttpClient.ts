/** A typed client of the HTTP API, derived from its definition. */
import type { HttpClientError, HttpClientResponse } from "@effect/platform"
import { FetchHttpClient, HttpApiClient, HttpClient, HttpClientRequest } from "@effect/platform"
import { Cause, Effect, Exit, ParseResult, type Redacted, Schema } from "effect"
import { api } from "../../services/api/InteractionApi.ts"
import { decodeVectors } from "../../services/api/VectorRows.ts"
import { issues } from "../../services/model/Interaction.ts"
import { fieldIssue, Problem, ProblemDocument, unprocessable } from "../../services/model/Problem.ts"
import type { Read, UserVector } from "../../services/recommend/EmbeddingReads.ts"

export interface Options {
  /** For example `http://127.0.0.1:3000`. */
  readonly url: string
  /** One of the API_TOKENS of the API. */
  readonly token?: string | Redacted.Redacted<string> | undefined
}

const decodeProblem = Schema.decodeUnknown(ProblemDocument)

/** Fails with the {@link Problem} of a problem document, with Retry-After among its headers. */
const failing = (response: HttpClientResponse.HttpClientResponse) =>
  response.headers["content-type"]?.startsWith("application/problem+json")
    ? response.json.pipe(
        Effect.flatMap(decodeProblem),
        Effect.flatMap((document) => {
          const wait = response.headers["retry-after"]
          return new Problem({
            ...document,
            ...(wait === undefined ? {} : { headers: { "retry-after": wait } }),
          })
        }),
      )
    : Effect.succeed(response)

const httpClient = ({ token }: Options) =>
  Effect.map(HttpClient.HttpClient, (plain) => {
    const authorised =
      token === undefined ? plain : HttpClient.mapRequest(plain, HttpClientRequest.bearerToken(token))
    return HttpClient.transform(authorised, (response) => Effect.flatMap(response, failing))
  })

/** The server answered, but not as the API does: it has another version, or something else listens there. */
export class UnexpectedAnswer extends Schema.TaggedError<UnexpectedAnswer>()("UnexpectedAnswer", {
  message: Schema.String,
}) {}

const transformResponse = Effect.mapError((error: unknown) =>
  ParseResult.isParseError(error) ? new UnexpectedAnswer({ message: error.message }) : error,
)

/** Needs an HTTP client, for example `FetchHttpClient.layer`. */
export const make = (options: Options) =>
  Effect.flatMap(httpClient(options), (httpClient) =>
    HttpApiClient.makeWith(api, { httpClient, baseUrl: options.url, transformResponse }),
  )

/** The vectors of at most 1,000 users, in their order, sent as float32; `null` for a user without one. */
export const vectors = Effect.fnUntraced(function* (
  options: Options,
  user_ids: ReadonlyArray<string>,
  read: Read = "stored",
) {
  const client = yield* httpClient(options)
  const request = HttpClientRequest.post(`${options.url}/api/embeddings`)
  const body = { user_ids, read, format: "float32" }
  const response = yield* client.execute(HttpClientRequest.bodyUnsafeJson(request, body))
  return decodeVectors(new Uint8Array(yield* response.arrayBuffer), user_ids)
})

type Methods = Effect.Effect.Success<ReturnType<typeof make>>

export type Failure = Problem | HttpClientError.HttpClientError | UnexpectedAnswer

type Answer<Method> = Method extends (...args: never) => Effect.Effect<infer A, unknown, unknown>
  ? Exclude<A, readonly [unknown, HttpClientResponse.HttpClientResponse]>
  : never

/** Query parameters may be left out together, as each of them may be. */
type Given<Request> = Request extends { readonly urlParams: infer Query }
  ? Omit<Request, "urlParams"> & { readonly urlParams?: Query }
  : Request
type Arguments<Method> = Method extends (request: infer Request) => unknown
  ? object extends Given<Request>
    ? [request?: Given<Request>]
    : [request: Given<Request>]
  : []

/** The methods of the client as promises. A rejection is a {@link Failure}. */
export type PromiseClient = {
  readonly [Group in keyof Methods]: {
    readonly [Name in keyof Methods[Group]]: (
      ...args: Arguments<Methods[Group][Name]>
    ) => Promise<Answer<Methods[Group][Name]>>
  }
} & {
  /** The vectors of at most 1,000 users, in their order, sent as float32; `null` for a user without one. */
  readonly vectors: (
    users: ReadonlyArray<string>,
    options?: { readonly read?: Read },
  ) => Promise<ReadonlyArray<UserVector | null>>
}

/** Rejects with the failure itself, which the runtime would wrap. */
export const settled = async <A, E>(exit: Promise<Exit.Exit<A, E>>): Promise<A> =>
  Exit.match(await exit, {
    onSuccess: (value) => value,
    onFailure: (cause) => {
      throw Cause.squash(cause)
    },
  })

/** What the API would refuse is refused in the same way, without a request. */
const call = (method: unknown, request: object) =>
  (method as (request: object) => Effect.Effect<unknown, unknown>)({ urlParams: {}, ...request }).pipe(
    Effect.mapError((error) =>
      ParseResult.isParseError(error) ? unprocessable(issues(error).map(fieldIssue)) : error,
    ),
  )

/** `const shop = connect({ url: "http://127.0.0.1:3000" }); await shop.interactions.search({ … })`. */
export const connect = (options: Options): PromiseClient => {
  const client = Effect.runSync(Effect.provide(make(options), FetchHttpClient.layer))
  const promised = Object.entries(client).map(([group, methods]) => [
    group,
    Object.fromEntries(
      Object.entries(methods).map(([name, method]) => [
        name,
        (request: object = {}) => settled(Effect.runPromiseExit(call(method, request))),
      ]),
    ),
  ])
  return {
    ...Object.fromEntries(promised),
    vectors: (users: ReadonlyArray<string>, { read }: { readonly read?: Read } = {}) =>
      settled(Effect.runPromiseExit(Effect.provide(vectors(options, users, read), FetchHttpClient.layer))),
  }
}
