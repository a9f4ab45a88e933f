/** A typed client of the HTTP API, derived from its definition. */
import type { HttpClientError, HttpClientResponse } from "@effect/platform"
import { FetchHttpClient, HttpApiClient, HttpClient, HttpClientRequest } from "@effect/platform"
import { Cause, Effect, Exit, type ParseResult, type Redacted, Schema } from "effect"
import { api } from "../../services/api/InteractionApi.ts"
import { Problem, ProblemDocument } from "../../services/model/Problem.ts"

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
        Effect.flatMap(({ detail, errors, status }) => {
          const wait = response.headers["retry-after"]
          const headers = wait === undefined ? {} : { headers: { "retry-after": wait } }
          return new Problem({ status, detail, ...(errors ? { errors } : {}), ...headers })
        }),
      )
    : Effect.succeed(response)

/** Needs an HTTP client, for example `FetchHttpClient.layer`. */
export const make = Effect.fnUntraced(function* ({ token, url }: Options) {
  const plain = yield* HttpClient.HttpClient
  const authorised =
    token === undefined ? plain : HttpClient.mapRequest(plain, HttpClientRequest.bearerToken(token))
  return yield* HttpApiClient.makeWith(api, {
    httpClient: HttpClient.transform(authorised, (response) => Effect.flatMap(response, failing)),
    baseUrl: url,
  })
})

type Methods = Effect.Effect.Success<ReturnType<typeof make>>

export type Failure = Problem | HttpClientError.HttpClientError | ParseResult.ParseError

type Answer<Method> = Method extends (...args: never) => Effect.Effect<infer A, unknown, unknown>
  ? Exclude<A, readonly [unknown, HttpClientResponse.HttpClientResponse]>
  : never

/** The methods of the client as promises. A rejection is a {@link Failure}. */
export type PromiseClient = {
  readonly [Group in keyof Methods]: {
    readonly [Name in keyof Methods[Group]]: Methods[Group][Name] extends (...args: infer Args) => unknown
      ? (...args: Args) => Promise<Answer<Methods[Group][Name]>>
      : never
  }
}

/** Rejects with the failure itself, which the runtime would wrap. */
export const settled = async <A, E>(exit: Promise<Exit.Exit<A, E>>): Promise<A> =>
  Exit.match(await exit, {
    onSuccess: (value) => value,
    onFailure: (cause) => {
      throw Cause.squash(cause)
    },
  })

const call = (method: unknown, args: ReadonlyArray<unknown>) =>
  (method as (...args: ReadonlyArray<unknown>) => Effect.Effect<unknown, unknown>)(...args)

/** `const shop = connect({ url: "http://127.0.0.1:3000" }); await shop.interactions.search({ … })`. */
export const connect = (options: Options): PromiseClient => {
  const client = Effect.runSync(Effect.provide(make(options), FetchHttpClient.layer))
  const promised = Object.entries(client).map(([group, methods]) => [
    group,
    Object.fromEntries(
      Object.entries(methods).map(([name, method]) => [
        name,
        (...args: ReadonlyArray<unknown>) => settled(Effect.runPromiseExit(call(method, args))),
      ]),
    ),
  ])
  return Object.fromEntries(promised)
}
