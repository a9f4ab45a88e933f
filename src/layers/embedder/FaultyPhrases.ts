/**
 * Finds the phrases that make a request fail, so that no other phrase of the request fails with them. A harmless text
 * shows first whether the service works at all: if it does, the request is halved until the faulty phrases are alone.
 */
import { Array as Arr, Clock, Duration, Effect, Either } from "effect"
import { PhraseEmbedderError } from "../../services/ports/PhraseEmbedder.ts"
import type { CallFailure } from "./OpenAi.ts"

export type Result = Either.Either<Float32Array, PhraseEmbedderError>
export type Request = (
  phrases: ReadonlyArray<string>,
  within?: Duration.Duration,
) => Effect.Effect<ReadonlyArray<Result>, CallFailure>

const harmlessDeadline = Duration.seconds(5)
/** After this time, or after so many failures without a success in between, the rest of the phrases is retried later. */
const searchMillis = 33_000
const mostFailuresInARow = 16

/** The search for the faulty phrases of one or more requests. */
interface Search {
  readonly request: Request
  /** Why the service does not embed the harmless text; `undefined` if it does. Requested at most once. */
  readonly serviceProblem: Effect.Effect<PhraseEmbedderError | undefined>
  /** Unix ms. */
  readonly endsAt: number
  failuresInARow: number
  /** The service does not work at the moment: nothing more is requested. */
  broken: PhraseEmbedderError | undefined
}

const isRefusal = ({ reason }: PhraseEmbedderError): boolean =>
  reason === "invalid_input" || reason === "unauthorized"

const misconfigured = ({ detail }: PhraseEmbedderError) =>
  new PhraseEmbedderError({ reason: "misconfigured", detail: `no text can be embedded: ${detail}` })

const askHarmless = (request: Request, text: string): Search["serviceProblem"] =>
  Effect.match(request([text], harmlessDeadline), {
    onSuccess: ([result]) => (result && Either.isLeft(result) ? misconfigured(result.left) : undefined),
    onFailure: ({ error }) => (error.reason === "invalid_input" ? misconfigured(error) : error),
  })

const all = (phrases: ReadonlyArray<string>, error: PhraseEmbedderError): ReadonlyArray<Result> =>
  phrases.map(() => Either.left(error))

const afterFailure = (
  search: Search,
  phrases: ReadonlyArray<string>,
  { cause, error }: CallFailure,
): Effect.Effect<ReadonlyArray<Result>> =>
  Effect.gen(function* () {
    if (cause === "service") return all(phrases, error)
    const refused = isRefusal(error)
    const single = phrases.length === 1
    // A single phrase that was not refused is tried again later, whatever the cause is.
    const problem = cause === "phrase" || (single && !refused) ? undefined : yield* search.serviceProblem
    search.broken = problem
    if (problem !== undefined) return all(phrases, problem)
    if (single)
      return all(
        phrases,
        refused ? new PhraseEmbedderError({ reason: "invalid_input", detail: error.detail }) : error,
      )
    if (!refused) search.failuresInARow += 1
    const late = (yield* Clock.currentTimeMillis) >= search.endsAt
    if (late || search.failuresInARow >= mostFailuresInARow)
      return all(
        phrases,
        refused
          ? new PhraseEmbedderError({ reason: "timeout", detail: "no time left to find the faulty phrase" })
          : error,
      )
    const [left, right] = Arr.splitAt(phrases, phrases.length >> 1)
    return Arr.flatten(
      yield* Effect.all([embedPart(search, left), embedPart(search, right)], { concurrency: 2 }),
    )
  })

const embedPart = (search: Search, phrases: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<Result>> =>
  Effect.suspend(() => {
    if (search.broken !== undefined) return Effect.succeed(all(phrases, search.broken))
    return Effect.matchEffect(search.request(phrases), {
      onFailure: (failure) => afterFailure(search, phrases, failure),
      onSuccess: (results) => {
        search.failuresInARow = 0
        // A service whose vectors are all unusable has another model or other dimensions than configured.
        return results.every(Either.isLeft)
          ? Effect.map(search.serviceProblem, (problem) => (problem ? all(phrases, problem) : results))
          : Effect.succeed(results)
      },
    })
  })

/**
 * Embeds phrases with several requests, `atOnce` at the same time. `harmless`: the harmless text, as the service must
 * receive it.
 */
export const embedApart = (
  request: Request,
  requests: ReadonlyArray<ReadonlyArray<string>>,
  atOnce: number,
  harmless: string,
) =>
  Effect.gen(function* () {
    const serviceProblem = yield* Effect.cached(askHarmless(request, harmless))
    const endsAt = (yield* Clock.currentTimeMillis) + searchMillis
    const search = { request, serviceProblem, endsAt, failuresInARow: 0, broken: undefined }
    return Arr.flatten(
      yield* Effect.forEach(requests, (phrases) => embedPart(search, phrases), { concurrency: atOnce }),
    )
  })
