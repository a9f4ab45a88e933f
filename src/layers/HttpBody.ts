/** Reads a request's JSON body within a limit; everything that is wrong with it is a {@link Problem}. */
import type { HttpServerRequest } from "@effect/platform"
import { Effect, Stream } from "effect"
import { Problem } from "../services/Problem.ts"

const utf8 = new TextDecoder("utf-8", { fatal: true })

/** The connection closes, for the rest of the body is not read. */
const tooLarge = (limit: number) =>
  new Problem({
    status: 413,
    detail: `the body must be at most ${limit} bytes`,
    headers: { connection: "close" },
  })
const unsupported = (detail: string) => new Problem({ status: 415, detail })

/** Why a body sent so can't be read, or `undefined` when it can. */
const refused = ({ headers }: HttpServerRequest.HttpServerRequest): Problem | undefined => {
  const [type = "", ...parameters] = (headers["content-type"] ?? "").toLowerCase().split(";")
  if (!/^application\/([\w.-]+\+)?json$/.test(type.trim()))
    return unsupported("the body must be sent as content-type application/json")
  const charset = parameters.map((text) => text.trim()).find((text) => text.startsWith("charset="))
  if (charset !== undefined && !/^charset="?utf-?8"?$/.test(charset))
    return unsupported("the body must be in UTF-8")
  return (headers["content-encoding"] ?? "identity") === "identity"
    ? undefined
    : unsupported("the body must be sent without content-encoding")
}
const unreadable = () => new Problem({ status: 400, detail: "the body could not be read to its end" })

/** All bytes, without trusting the announced length. */
const readBytes = (request: HttpServerRequest.HttpServerRequest, limit: number) =>
  Effect.suspend(() => {
    const announced = Number(request.headers["content-length"] ?? Number.NaN)
    if (announced > limit) return Effect.fail(tooLarge(limit))
    if (announced <= limit)
      return Effect.map(Effect.mapError(request.arrayBuffer, unreadable), (bytes) => new Uint8Array(bytes))
    const parts: Array<Uint8Array> = []
    let length = 0
    return Stream.runForEach(Stream.mapError(request.stream, unreadable), (part) => {
      parts.push(part)
      length += part.byteLength
      return length > limit ? Effect.fail(tooLarge(limit)) : Effect.void
    }).pipe(Effect.map(() => new Uint8Array(Buffer.concat(parts))))
  })

/** The parsed body; `undefined` when there is none. */
export const readJson = (
  request: HttpServerRequest.HttpServerRequest,
  limit: number,
): Effect.Effect<unknown, Problem> =>
  Effect.gen(function* () {
    const hasBody =
      request.headers["content-length"] !== undefined || request.headers["transfer-encoding"] !== undefined
    const bytes = hasBody ? yield* readBytes(request, limit) : new Uint8Array(0)
    if (bytes.byteLength === 0) return undefined
    const problem = refused(request)
    if (problem !== undefined) return yield* problem
    return yield* Effect.try({
      try: (): unknown => JSON.parse(utf8.decode(bytes)),
      catch: () => new Problem({ status: 400, detail: "the body is not JSON in UTF-8" }),
    })
  })
